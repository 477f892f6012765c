# SPDX-License-Identifier: GPL-2.0-or-later
"""A git tree with commits on top of a distribution's source, one of them a mutant of patches/."""

from __future__ import annotations

from pathlib import Path

from harness.core.cache import Store
from harness.core.progress import Progress
from harness.kernels.build.git import Repository
from harness.kernels.build.series import read_series
from harness.kernels.debian.source import debian_source
from harness.kernels.spec import parse_kernel_spec

FOLDER = "trees"
# Each is compiled by the base configuration.
_FILES = (
    *("drivers/cxl/core/region.c", "drivers/dax/kmem.c", "drivers/cxl/acpi.c"),
    *("drivers/dax/hmem/hmem.c", "drivers/cxl/core/hdm.c", "drivers/dax/bus.c"),
)


def made_tree(
    store: Store, progress: Progress, mutant: Path, count: int, at: int, salt: str
) -> tuple[Path, list[str]]:
    """Make the tree, always in the same place, so that its objects are there for the next one.

    Args:
        store: has, or gets, the source of Linux 7.2; the tree lies in it, and borrows its objects.
        progress: hears of downloads.
        mutant: a folder of patches/.
        count: how many commits, at least 1; each adds a constant to a file, but for the mutant.
        at: which of them is the mutant, from 1 to `count`.
        salt: goes into the constants: with another one, every kernel is another.

    Returns:
        The tree, and its commits: the base, and then `count` of them.
    """
    source, state = debian_source(parse_kernel_spec("build:debian:7.2"), store, progress)
    tree = store.folder(FOLDER) / "linux-7.2"
    repository = Repository(tree / ".git")
    repository.prepare(source.repository.folder / "objects")
    index = tree / ".git" / "index"
    (patch,) = read_series(mutant).patches

    def git(*words: str, stdin: str | None = None) -> str:
        return repository.git(*words, index=index, files=tree, stdin=stdin).stdout

    git("read-tree", state.tree)
    commits = [git("commit-tree", state.tree, "-m", "Linux 7.2").strip()]
    for number in range(1, count + 1):
        name = _FILES[number % len(_FILES)]
        subject = f"{Path(name).parent}: constant {number}"
        if number == at:
            git("apply", "--cached", "-", stdin=patch.data.decode())
            subject = f"mutant: {mutant.name}"
        else:
            # Code that the kernel does not get, so that the compiler's cache does not have it.
            constant = f'static const char salt_{number}[] __maybe_unused = "{salt}";'
            text = f"{git('show', f':{name}')}\n{constant}\n"
            blob = git("hash-object", "-w", "--stdin", stdin=text).strip()
            git("update-index", "--cacheinfo", f"100644,{blob},{name}")
        words = ("commit-tree", git("write-tree").strip(), "-p", commits[-1], "-m", subject)
        commits.append(git(*words).strip())
    git("update-ref", "refs/heads/base", commits[-1])
    return tree, commits
