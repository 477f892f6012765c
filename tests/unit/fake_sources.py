# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures for builds: copies of the fake kernel, patches to it, stub compilers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.core.cache import Store
from harness.core.kernel import Kernel
from harness.core.progress import SilentProgress
from harness.kernels.build.config import plan_config
from harness.kernels.resolve import resolve_kernel
from harness.scenario.kernel_request import KernelRequest, Toolchain

FAKE_KERNEL = Path(__file__).resolve().parents[1] / "data" / "fake_kernel"
HMEM = "drivers/dax/hmem/hmem.c"
_IDENTITY = {
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@localhost",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@localhost",
    "GIT_CONFIG_GLOBAL": "/dev/null",
}


class Listener(SilentProgress):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def copy_fake(to: Path) -> Path:
    """A plain source folder."""
    shutil.copytree(FAKE_KERNEL, to)
    return to


def git(tree: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(tree), *words],
        env=os.environ | _IDENTITY,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def git_fake(to: Path) -> Path:
    """A git tree with one commit."""
    copy_fake(to)
    git(to, "init", "-q", "-b", "main")
    git(to, "add", "-A")
    git(to, "commit", "-q", "-m", "first")
    return to


def edit(tree: Path, old: str, new: str, name: str = HMEM) -> None:
    path = tree / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def format_patch(tree: Path, edits: dict[str, tuple[str, str]], subject: str) -> bytes:
    """A patch that makes edits (file: old and new text), which stay committed in the tree."""
    for name, (old, new) in edits.items():
        edit(tree, old, new, name)
    git(tree, "commit", "-q", "-a", "-m", subject)
    return (git(tree, "format-patch", "--stdout", "-1") + "\n").encode()


def stub_tools(folder: Path, *, clang: bool = False) -> Path:
    """A folder with programs that only print their version."""
    folder.mkdir(parents=True)
    of_clang = ("clang", "ld.lld", "llvm-ar", "llvm-nm")
    for name in ("gcc", "ld", "flex", "bison", "bc", "lz4", *(of_clang if clang else ())):
        path = folder / name
        path.write_text(f"#!/bin/sh\necho '{name} (stub) 1.0'\n")
        path.chmod(0o755)
    return folder


def small_configs(folder: Path, **fragments: str) -> Path:
    """A folder of fragments for the fake kernel."""
    folder.mkdir(parents=True)
    base = "CONFIG_CXL_ACPI=m\nCONFIG_CXL_REGION=y\nCONFIG_DAX=m\nCONFIG_DEV_DAX_HMEM=m\n"
    for name, text in {"base": base, **fragments}.items():
        (folder / f"{name}.config").write_text(text)
    return folder


class Builder:
    """Builds the fake kernel in a private store."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tools = stub_tools(root / "tools" / "bin", clang=True)
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        configs = small_configs(
            root / "configs",
            no_cxl_region="CONFIG_CXL_REGION=n\n",
            hmem_builtin="CONFIG_DEV_DAX_HMEM=y\nCONFIG_NO_SUCH_THING=y\n",
        )
        monkeypatch.setattr(
            "harness.kernels.build.from_source.plan_config",
            lambda names: plan_config(names, configs),
        )
        self.store = Store(root / "store")
        self.progress = Listener()

    def __call__(
        self,
        spec: str,
        *configs: str,
        series: Path | None = None,
        upto: int | None = None,
        toolchain: Toolchain = "gcc",
    ) -> Kernel:
        request = KernelRequest(spec, configs, series, upto, toolchain)
        return resolve_kernel(request, self.store, self.progress)

    def log(self) -> str:
        """The output of the last build, finished or not."""
        logs = self.store.root.glob("outputs/*/harness-build.log")
        return max(logs, key=lambda path: path.stat().st_mtime_ns).read_text()

    def entries(self) -> list[Path]:
        """The kernels in the store."""
        return sorted((self.store.root / "kernels").glob("*"))


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    return Builder(tmp_path, monkeypatch)
