# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from damage import flip
from fake_sources import HMEM, Builder, builder, edit, format_patch, git, git_fake

from harness.cli.kernels import parse_age, register_kernel_commands
from harness.core.errors import HarnessError, UnbuildableError, UsageError

__all__ = ["builder"]


def explains(command: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except HarnessError as error:
            click.echo(f"harness: {error}", err=True)
            sys.exit(4 if isinstance(error, UnbuildableError) else 2)

    return guarded


@pytest.fixture
def harness(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("HARNESS_STORE", str(builder.store.root))
    group = click.Group("harness")
    register_kernel_commands(group, explains)

    def call(*words: object) -> Result:
        return CliRunner().invoke(group, [str(word) for word in words], catch_exceptions=False)

    return call


def test_build(harness: Callable[..., Result], builder: Builder, tmp_path: Path) -> None:
    tree = git_fake(tmp_path / "linux")
    first = harness("build", f"build:{tree}")
    assert first.exit_code == 0
    (entry,) = builder.entries()
    assert first.stdout == f"9.1.0  {entry}/vmlinuz\n"
    assert "built Linux 9.1.0" in first.stderr
    again = harness("build", f"build:{tree}")
    assert (again.stdout, again.stderr) == (first.stdout, "")
    assert harness("build", f"build:{tree}", "--config", "no_cxl_region").exit_code == 0
    assert len(builder.entries()) == 2


def test_none_of_a_series_is_the_source_itself(
    harness: Callable[..., Result], builder: Builder, tmp_path: Path
) -> None:
    tree, patch = git_fake(tmp_path / "linux"), tmp_path / "0001-x.patch"
    patch.write_bytes(format_patch(tree, {HMEM: ("return 2", "return 22")}, "x"))
    git(tree, "reset", "-q", "--hard", "HEAD^")
    first = harness("build", f"build:{tree}", "--series", tmp_path, "--upto", 0)
    assert first.exit_code == 0
    (entry,) = builder.entries()
    assert json.loads((entry / "manifest.json").read_text())["series"] is None
    again = harness("build", f"build:{tree}")
    assert (again.stdout, again.stderr) == (first.stdout, "")
    assert harness("build", f"build:{tree}", "--series", tmp_path).exit_code == 0
    assert len(builder.entries()) == 2


def test_build_explains_errors(
    harness: Callable[..., Result], builder: Builder, tmp_path: Path
) -> None:
    tree = git_fake(tmp_path / "linux")
    for words, text in (
        ((f"build:{tree}@nope",), "has no 'nope'"),
        ((f"build:{tmp_path}/none",), "there is no folder"),
        ((f"build:{tree}", "--config", "no_such"), "no fragment 'no_such'"),
        ((f"build:{tree}", "--upto", "1"), "--upto needs a series"),
        ((f"build:{tree}", "--series", tmp_path / "none"), "no such file or folder"),
        (("fedora:40",), "does not name a kernel"),
        (("debian:7.2", "--llvm"), "for kernels that are built"),
    ):
        done = harness("build", *words)
        assert done.exit_code == 2, words
        assert text in done.stderr
        assert "hint:" in done.stderr
    edit(tree, "/* Two. */", "#error broken")
    done = harness("build", f"build:{tree}")
    assert done.exit_code == 4
    assert "error: #error broken" in done.stderr
    assert harness("build", f"build:{tree}", "--config", "hmem_builtin").exit_code == 4


def test_list_and_prune(harness: Callable[..., Result], builder: Builder, tmp_path: Path) -> None:
    assert harness("kernels").stdout == "0 in the store, 0 MB\n"
    tree = git_fake(tmp_path / "linux")
    harness("build", f"build:{tree}")
    (entry,) = builder.entries()
    listed = harness("kernels").stdout.splitlines()
    assert len(listed) == 4
    (row,) = [line for line in listed if line.startswith("kernel ")]
    assert entry.name[:12] in row and row.endswith(f"9.1.0  build:{tree}")
    assert str(entry) in harness("kernels", "--full").stdout
    assert harness("kernels", "prune", "--keep", "1G").stdout == "freed 0 MB\n"
    old = time.time() - 3 * 86400
    for path in builder.store.root.rglob("*"):
        os.utime(path, (old, old), follow_symlinks=False)
    assert harness("kernels", "prune", "--older-than", "7d").stdout == "freed 0 MB\n"
    pruned = harness("kernels", "prune", "--older-than", "2d")
    assert f"removed kernel {entry.name[:12]}  9.1.0" in pruned.stdout
    assert builder.entries() == []


def test_verify(harness: Callable[..., Result], builder: Builder, tmp_path: Path) -> None:
    harness("build", f"build:{git_fake(tmp_path / 'linux')}")
    (entry,) = builder.entries()
    assert harness("kernels", "verify").exit_code == 0
    flip(next((entry / "modules").rglob("*.ko")))
    done = harness("kernels", "verify")
    assert done.exit_code == 1
    assert done.stdout.startswith(f"{entry}: damaged in the store: modules/")


@pytest.mark.parametrize(
    "words", [(), ("--keep", "much"), ("--older-than", "7"), ("--older-than", "d")]
)
def test_prune_explains_errors(harness: Callable[..., Result], words: tuple[str, ...]) -> None:
    done = harness("kernels", "prune", *words)
    assert done.exit_code == 2
    assert "hint:" in done.stderr


def test_ages() -> None:
    assert [parse_age(text) for text in ("90m", "12h", "7 d", "2w")] == [
        5400.0, 43200.0, 604800.0, 1209600.0,
    ]  # fmt: skip
    with pytest.raises(UsageError):
        parse_age("1y")
