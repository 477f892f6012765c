# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel tree of the distribution's source and a separate store for measuring builds.

Nothing of the user's store changes, but that it gets the source package when it lacks it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.core.cache import Store
from harness.core.paths import store_root
from harness.core.progress import TerminalProgress
from harness.kernels.build.build import BuildJob, make_argv
from harness.kernels.build.config import plan_config
from harness.kernels.build.from_source import CCACHE, OUTPUTS
from harness.kernels.build.sandbox import find_sandbox
from harness.kernels.build.toolchain import find_toolchain, jobs
from harness.kernels.build.tree import SourceTree
from harness.kernels.debian.source import debian_source
from harness.kernels.spec import parse_kernel_spec

_HMEM = Path("drivers/dax/hmem/hmem.c")
_MESSAGE = re.compile(r"CXL did not claim resource[^\"]*, registering")
# What a run needs besides kernels; each entry never changes once it is there.
_SHARED = ("accelerators", "initramfs", "layouts", "qemu", "userland")
_IDENTITY = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")


@dataclass(frozen=True)
class BuildRoom:
    """A separate folder for builds.

    Attributes:
        root: everything is below it.
        tree: a git tree with the source of a kernel.
        store: a store that has what runs need, and no kernel.
    """

    root: Path
    tree: Path
    store: Path

    @property
    def spec(self) -> str:
        """The SPEC of the tree."""
        return f"build:{self.tree}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment for a harness in this folder."""
        return {"HARNESS_STORE": str(self.store), "HARNESS_EVIDENCE": str(self.root / "evidence")}

    def edit(self, number: int) -> None:
        """Change one line of hmem.c; each number gives a different object."""
        path = self.tree / _HMEM
        text, count = _MESSAGE.subn(
            f"CXL did not claim resource ({number}), registering", path.read_text()
        )
        if count != 1:
            sys.exit(f"bench: {path} does not have the line that is changed")
        path.write_text(text)

    def kernel(self) -> Path:
        """The newest kernel in the store."""
        return max(
            (self.store / "kernels").iterdir(), key=lambda one: (one / "config").stat().st_mtime
        )

    def manifest(self) -> dict[str, dict[str, int]]:
        """The manifest of the newest kernel in the store."""
        content: dict[str, dict[str, int]] = json.loads(
            (self.kernel() / "manifest.json").read_text()
        )
        return content

    def output(self) -> Path:
        """The newest folder of objects."""
        return max(
            (self.store / OUTPUTS).iterdir(),
            key=lambda one: (one / "harness-build.log").stat().st_mtime,
        )


@contextmanager
def build_room(version: str, *, ccache: bool) -> Iterator[BuildRoom]:
    """Make a folder next to the user's store, and remove it at the end; it takes 5 GB.

    Args:
        version: of Debian's source of the kernel.
        ccache: use what the user's store has of the compiler's cache, else begin with an empty one.
    """
    mine = Store(store_root())
    progress = TerminalProgress()
    source, state = debian_source(parse_kernel_spec(f"build:debian:{version}"), mine, progress)
    # Next to the store: /tmp may be in memory.
    with tempfile.TemporaryDirectory(prefix="cxl-bench-", dir=mine.root.parent) as folder:
        room = BuildRoom(Path(folder), Path(folder, "linux"), Path(folder, "store"))
        progress.note(f"writing out the source of Linux {version}")
        _write_tree(room.tree, source, state.tree)
        for kind in _SHARED:
            mine.folder(kind)
            room.store.mkdir(exist_ok=True)
            (room.store / kind).symlink_to(mine.root / kind)
        shutil.copytree(mine.root / "aliases", room.store / "aliases", symlinks=True)
        if ccache:
            (room.store / CCACHE).symlink_to(mine.folder(CCACHE))
        yield room


def _write_tree(tree: Path, source: SourceTree, state: str) -> None:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *_IDENTITY, "-C", str(tree), *words],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        return done.stdout.strip()

    tree.mkdir()
    git("init", "--quiet", "--initial-branch=main")
    (tree / ".git/objects/info/alternates").write_text(f"{source.repository.folder}/objects\n")
    git("update-ref", "HEAD", git("commit-tree", state, "-m", "the distribution's source"))
    git("read-tree", "-u", "--reset", "HEAD")


class PlainMake:
    """Plain make, as without the harness, in a built folder.

    The folder is a copy of the harness's, at the same path in the same sandbox, so that make finds
    all of it up to date.
    """

    def __init__(self, room: BuildRoom) -> None:
        folder = room.root / "plain"
        folder.mkdir()
        (folder / "tree").symlink_to(room.tree)
        output = folder / "output"
        subprocess.run(["cp", "--archive", room.output(), output], check=True)
        self._job = BuildJob(
            source=SourceTree(folder, "plain"),
            commit="",
            plan=plan_config([]),
            toolchain=find_toolchain("gcc"),
            sandbox=find_sandbox(),
            output=output,
            ccache=(room.store / CCACHE).resolve(),
            what="plain make",
        )

    def __call__(self) -> float:
        """Return the seconds of one make."""
        begin = time.monotonic()
        done = subprocess.run(
            make_argv(self._job, (f"-j{jobs()}",)), capture_output=True, text=True
        )
        seconds = time.monotonic() - begin
        if done.returncode != 0:
            sys.exit(f"bench: make:\n{done.stdout}{done.stderr}")
        self.compiled = len(re.findall(r"^  CC ", done.stdout, re.M))
        return seconds
