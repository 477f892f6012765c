# SPDX-License-Identifier: GPL-2.0-or-later
"""A build leaves links where the harness reads and writes after it: none leads to a file of mine.

test_hostile_sources.py has what a build does while it runs.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from fake_sources import Builder, builder, edit, git_fake

from harness.core.errors import NotConfigurableError, UnbuildableError, UsageError
from harness.core.progress import TerminalProgress
from harness.kernels.build.config import ConfigPlan, check_config, plan_config
from harness.kernels.build.kernel_config import parse_config
from harness.kernels.build.sandbox import find_sandbox
from harness.kernels.build.unmet_options import parse_fragment
from harness.kernels.build.untrusted_files import UntrustedFolder

__all__ = ["builder"]

SECRET = "hunter2"
IMAGE = "arch/x86/boot/bzImage"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the user's that no build gets to see."""
    if find_sandbox().bwrap is None:
        pytest.skip(find_sandbox().note)
    path = tmp_path / "home" / "secret"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


def attacking(tmp_path: Path, goal: str, command: str) -> Path:
    """A tree of which each make ends with a command, when it was called for this goal."""
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


@pytest.mark.parametrize(
    "name",
    [
        *("harness-build.log", "ccache.log", "asked.config", "unfinished", "configured.json"),
        *("files", "harness-asked.config", "harness-unfinished", "harness-configured.json"),
        *("harness-files", "harness-ccache.log", ".config"),
    ],
)
def test_the_harness_writes_to_no_file_that_a_link_names(
    builder: Builder, tmp_path: Path, secret: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice: what a build leaves is there when the next one begins."""
    tree = attacking(tmp_path, "allnoconfig", f"cd $(O); ln -sfn {secret} {name}")
    if name == ".config":  # written by the harness where a whole one is the start
        start = tmp_path / "whole.config"
        start.write_text("CONFIG_CXL_ACPI=m\n")
        tree = attacking(tmp_path / "other", "modules", f"cd $(O); ln -sfn {secret} {name}")
        plan = plan_config([f"distro:{start}"])
        monkeypatch.setattr("harness.kernels.build.from_source.plan_config", lambda names: plan)
    for number in (2, 22):
        file = tree / "Kconfig"
        file.write_text(file.read_text() + f"# {number}\n")
        try:
            builder(f"build:{tree}")
        except UnbuildableError as error:
            assert f"{name} is not a file in its folder" in error.message
    assert secret.read_text() == SECRET
    links = [path for path in builder.store.root.glob(f"outputs/*/**/{name}") if path.is_symlink()]
    assert links, "the attack has run"
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
def test_no_file_that_a_link_names_becomes_part_of_a_kernel(
    builder: Builder, tmp_path: Path, secret: Path, name: str, command: str
) -> None:
    home = secret.parent
    for known in ("bzImage", "bzImage.ko"):
        (home / known).write_text(SECRET)
    before = sorted(tmp_path.rglob("*.ko"))
    words = command.format(secret=secret, home=home)
    tree = attacking(tmp_path, "modules", f"cd $(O); {words}")
    with pytest.raises(UnbuildableError, match="is not a file in its folder") as caught:
        builder(f"build:{tree}")
    assert caught.value.message.startswith(name.format(home=home))
    assert builder.entries() == []
    assert SECRET.encode() not in everything_in(builder.store.root)
    made = set(tmp_path.rglob("*.ko")) - set(before)
    assert all(path.is_relative_to(builder.store.root / "outputs") for path in made)


@pytest.mark.parametrize("name", ["decodecode", "decode_stacktrace.sh"])
def test_a_series_keeps_no_file_of_mine_as_a_script(
    builder: Builder, tmp_path: Path, secret: Path, name: str
) -> None:
    tree = git_fake(tmp_path / "linux")
    (tree / "scripts" / name).unlink(missing_ok=True)
    (tree / "scripts" / name).symlink_to(secret)
    with pytest.raises(UnbuildableError, match=f"scripts/{name} is not a file in its folder"):
        builder(f"build:{tree}")
    assert SECRET.encode() not in everything_in(builder.store.root)


def test_what_a_build_says_does_not_control_the_terminal(builder: Builder, tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m"
    tree = git_fake(tmp_path / "linux")
    edit(tree, "9.1.0", f"9.1.0-{evil!r}".replace("'", ""), "scripts/fake_kernel.py")
    with pytest.raises(UsageError, match="names no release"):
        builder(f"build:{tree}")
    edit(tree, "/* Two. */", f"#error no {evil}")
    with pytest.raises(UnbuildableError) as caught:
        builder(f"build:{tree}")
    stream = io.StringIO()
    TerminalProgress(stream).note(f"building {evil}")
    said = f"{stream.getvalue()}{caught.value}"
    assert "building ?" in said and "error: #error no ?" in said
    assert not [one for one in said if one not in "\n\t" and not one.isprintable()]


def test_an_explanation_quotes_no_file_of_mine(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"config NOVEL\n\tbool\n\tdepends on {SECRET}\n")
    (tmp_path / "linux").mkdir()
    (tmp_path / "linux" / "Kconfig").symlink_to(tmp_path / "secret")
    plan = ConfigPlan(("x",), None, parse_fragment("CONFIG_NOVEL=y\n", "x.config"))
    with pytest.raises(NotConfigurableError, match=r"NOVEL: .* this source has none") as caught:
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
        with pytest.raises(UnbuildableError, match="is not a file in its folder"):
            folder.read_text(name)
    for name in ("away/file", "below", "../outside/file"):
        with pytest.raises(UnbuildableError, match="is not a file in its folder"):
            folder.write_text(name, "owned")
    folder.write_text("link", "mine")
    assert (tmp_path / "outside" / "file").read_text() == SECRET
    assert folder.read_text("link") == "mine"
