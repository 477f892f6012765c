# SPDX-License-Identifier: GPL-2.0-or-later
"""A build leaves links in the place of files that the harness reads or writes later.

test_hostile_sources.py tests attacks while a build runs.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from fake_sources import Builder, builder, edit, git_fake

from harness.core.errors import NotConfigurableError, UnbuildableError, UsageError
from harness.core.progress import TerminalProgress
from harness.kernels.build.config import (
    ConfigPlan,
    check_config,
    parse_config,
    parse_fragment,
    plan_config,
)
from harness.kernels.build.sandbox import find_sandbox
from harness.kernels.build.untrusted_files import UntrustedFolder

__all__ = ["builder"]

SECRET = "hunter2"
IMAGE = "arch/x86/boot/bzImage"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the user's that no build can read."""
    if find_sandbox().bwrap is None:
        pytest.skip(find_sandbox().note)
    path = tmp_path / "home" / "secret"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


def attacking(tmp_path: Path, goal: str, command: str) -> Path:
    """A tree whose make runs a command after this goal."""
    tree = git_fake(tmp_path / "linux")
    makefile = tree / "Makefile"
    test = f'case " $(MAKECMDGOALS) " in *" {goal} "*) {command};; esac'
    text = makefile.read_text()
    last = "$(MAKECMDGOALS)\n"
    assert text.endswith(last)
    makefile.write_text(f"{text.removesuffix(last)}$(MAKECMDGOALS); {test}\n")
    return tree


def everything_in(folder: Path) -> bytes:
    return b"".join(
        path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()
    )


OWN_FILES = (
    *("harness-build.log", "ccache.log", "asked.config", "unfinished", "configured.json"),
    *("files", "harness-asked.config", "harness-unfinished", "harness-configured.json"),
    *("harness-files", "harness-ccache.log"),
)


@pytest.mark.parametrize("names", [OWN_FILES, (".config",)], ids=["own files", ".config"])
def test_the_harness_writes_to_no_file_that_a_link_names(
    builder: Builder,
    tmp_path: Path,
    secret: Path,
    names: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It builds twice: the second build finds the links of the first."""
    links = "; ".join(f"ln -sfn {secret} {name}" for name in names)
    goal = "allnoconfig"
    if names == (".config",):  # written by the harness where a whole one is the start
        start = tmp_path / "whole.config"
        start.write_text("CONFIG_CXL_ACPI=m\n")
        goal, plan = "modules", plan_config([f"distro:{start}"])
        monkeypatch.setattr("harness.kernels.build.from_source.plan_config", lambda names: plan)
    tree = attacking(tmp_path, goal, f"cd $(O); {links}")
    for number in (2, 22):
        file = tree / "Kconfig"
        file.write_text(file.read_text() + f"# {number}\n")
        try:
            builder(f"build:{tree}")
        except UnbuildableError as error:
            assert f"{names[0]} is not a regular file in its folder" in error.message
    assert secret.read_text() == SECRET
    for name in names:
        made = [path for path in builder.store.root.glob(f"outputs/*/**/{name}")]
        assert any(path.is_symlink() for path in made), "the attack has run"
    assert SECRET.encode() not in everything_in(builder.store.root)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("System.map", "ln -sfn {secret} System.map"),
        (".config", "ln -sfn {secret} .config"),
        (IMAGE, f"ln -sfn {{secret}} {IMAGE}"),
        (IMAGE, "rm -r arch/x86/boot; ln -s {home} arch/x86/boot"),
        ("vmlinux", "ln -sfn {secret} vmlinux"),
        ("modules.builtin", "ln -sfn {secret} modules.builtin"),
        ("modules.order", "ln -sfn {secret} modules.order"),
        ("drivers/dax/kmem.ko", "ln -sfn {secret} drivers/dax/kmem.ko"),
        ("drivers/cxl/region.ko", "mv drivers away; ln -s away drivers"),
        ("{home}/bzImage.ko", "echo {home}/bzImage.o > modules.order"),
        ("../../../../home/bzImage.ko", "echo ../../../../home/bzImage.o > modules.order"),
        ("System.map", "rm System.map; mkfifo System.map"),
    ],
)
def test_no_file_of_the_users_becomes_part_of_a_kernel(
    builder: Builder, tmp_path: Path, secret: Path, name: str, command: str
) -> None:
    home = secret.parent
    for known in ("bzImage", "bzImage.ko"):
        (home / known).write_text(SECRET)
    before = sorted(tmp_path.rglob("*.ko"))
    words = command.format(secret=secret, home=home)
    tree = attacking(tmp_path, "modules", f"cd $(O); {words}")
    with pytest.raises(UnbuildableError, match="is not a regular file in its folder") as caught:
        builder(f"build:{tree}")
    assert caught.value.message.startswith(name.format(home=home))
    assert builder.entries() == []
    assert SECRET.encode() not in everything_in(builder.store.root)
    made = set(tmp_path.rglob("*.ko")) - set(before)
    assert all(path.is_relative_to(builder.store.root / "outputs") for path in made)


@pytest.mark.parametrize("name", ["decodecode", "decode_stacktrace.sh"])
def test_no_file_of_the_users_is_kept_as_a_script(
    builder: Builder, tmp_path: Path, secret: Path, name: str
) -> None:
    tree = git_fake(tmp_path / "linux")
    (tree / "scripts" / name).unlink(missing_ok=True)
    (tree / "scripts" / name).symlink_to(secret)
    with pytest.raises(UnbuildableError, match=f"scripts/{name} is not a regular file"):
        builder(f"build:{tree}")
    assert SECRET.encode() not in everything_in(builder.store.root)


def test_output_of_a_build_does_not_control_the_terminal(builder: Builder, tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m"
    tree = git_fake(tmp_path / "linux")
    edit(tree, "9.1.0", f"9.1.0-{evil!r}".replace("'", ""), "scripts/fake_kernel.py")
    with pytest.raises(UsageError, match="has no release"):
        builder(f"build:{tree}")
    edit(tree, "/* Two. */", f"#error no {evil}")
    with pytest.raises(UnbuildableError) as caught:
        builder(f"build:{tree}")
    stream = io.StringIO()
    TerminalProgress(stream).note(f"building {evil}")
    output = f"{stream.getvalue()}{caught.value}"
    assert "building ?" in output and "error: #error no ?" in output
    assert not [char for char in output if char not in "\n\t" and not char.isprintable()]


def test_an_explanation_quotes_no_file_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"config NOVEL\n\tbool\n\tdepends on {SECRET}\n")
    (tmp_path / "linux").mkdir()
    (tmp_path / "linux" / "Kconfig").symlink_to(tmp_path / "secret")
    plan = ConfigPlan(("x",), None, parse_fragment("CONFIG_NOVEL=y\n", "x.config"))
    with pytest.raises(NotConfigurableError, match=r"NOVEL: .* no such option") as caught:
        check_config(plan, parse_config(""), tmp_path / "linux")
    assert SECRET not in caught.value.message


def test_an_untrusted_folder(tmp_path: Path) -> None:
    folder = UntrustedFolder(tmp_path / "made")
    (folder.path / "below").mkdir(parents=True)
    (folder.path / "below" / "file").write_text("x")
    assert folder.read_text("below/file") == "x"
    folder.copy("below/file", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "x"
    folder.write_text("below/file", "y")
    assert folder.read_text("below/file") == "y"
    with pytest.raises(FileNotFoundError):
        folder.read_text("below/none")
    with pytest.raises(FileNotFoundError):
        folder.read_text("none/file")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text(SECRET)
    (folder.path / "away").symlink_to(tmp_path / "outside")
    (folder.path / "link").symlink_to(tmp_path / "outside" / "file")
    os.mkfifo(folder.path / "pipe")
    names = ("away/file", "link", "below", "pipe", "below/file/x", "../outside/file", "/etc/passwd")
    for name in (*names, "below/../below/file", ""):
        with pytest.raises(UnbuildableError, match="is not a regular file in its folder"):
            folder.read_text(name)
    for name in ("away/file", "below", "../outside/file"):
        with pytest.raises(UnbuildableError, match="is not a regular file in its folder"):
            folder.write_text(name, "owned")
    folder.write_text("link", "mine")
    assert (tmp_path / "outside" / "file").read_text() == SECRET
    assert folder.read_text("link") == "mine"
