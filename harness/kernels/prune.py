# SPDX-License-Identifier: GPL-2.0-or-later
"""List the kernels of the store, with their sizes, and remove old ones."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.core.cache import Store
from harness.core.progress import Progress
from harness.kernels.build.build import source_of_output
from harness.kernels.build.from_source import CCACHE, OUTPUTS
from harness.kernels.build.tree import FOLDER as SOURCES
from harness.kernels.build.tree import USED, SourceTree
from harness.kernels.store import KIND, remove_unless_used

# A run that has just found its kernel may not have locked it yet.
_GRACE_SECONDS = 300.0
_MANIFEST = "manifest.json"
# The folder of `harness.guest.initramfs`.
_INITRAMFS = "initramfs"

Sort = Literal["kernel", "objects", "source", "initramfs", "ccache"]


@dataclass(frozen=True)
class StoredItem:
    """A folder of the store that can be removed.

    Attributes:
        sort: a kernel, the objects of a build, a source tree, the part of the initramfs that all
            runs of a kernel share, or the compiler's cache.
        size: in bytes.
        used: the time of its last use, in seconds since the epoch.
        text: a description.
        orphan: the kernel that it was made for no longer exists.
    """

    sort: Sort
    path: Path
    size: int
    used: float
    text: str
    orphan: bool = False


def stored_items(store: Store) -> tuple[StoredItem, ...]:
    """Return all folders that can be pruned, the most recently used first."""
    items = (*_kernels(store), *_outputs(store), *_sources(store))
    more = (*_initramfs(store), *_ccache(store))
    return tuple(sorted((*items, *more), key=lambda item: -item.used))


def size_of_the_rest(store: Store) -> int:
    """Return the bytes in the store that are not listed: package lists, guest programs, records."""
    listed = {KIND, OUTPUTS, SOURCES, _INITRAMFS, CCACHE}
    return sum(_size(path) for path in _folders(store.root) if path.name not in listed)


def choose_to_prune(
    items: tuple[StoredItem, ...], *, keep: int | None, older_than: float | None, now: float
) -> tuple[StoredItem, ...]:
    """Return the items to remove: orphans first, then the least recently used ones.

    Args:
        items: all items of the store.
        keep: the most bytes of them that stay; None for no limit.
        older_than: remove items that were not used for this many seconds; None for no limit.
        now: seconds since the epoch.
    """
    total = sum(item.size for item in items)
    chosen = []
    for item in sorted(items, key=lambda item: (not item.orphan, item.used)):
        age = now - item.used
        too_old = older_than is not None and age > older_than
        too_much = keep is not None and total > keep
        if (too_old or too_much or item.orphan) and age > _GRACE_SECONDS:
            chosen.append(item)
            total -= item.size
    return tuple(chosen)


def prune(
    store: Store,
    progress: Progress,
    *,
    keep: int | None = None,
    older_than: float | None = None,
) -> tuple[tuple[StoredItem, ...], tuple[StoredItem, ...]]:
    """Remove orphans and items that were not used for long, except those in use.

    Args:
        keep: the most bytes of the whole store; None for no limit.
        older_than: as in `choose_to_prune`.

    Returns:
        The removed items, and those that were kept because they are in use.
    """
    removed: list[StoredItem] = []
    in_use: list[StoredItem] = []
    if keep is not None:
        keep -= size_of_the_rest(store)
    items = stored_items(store)
    chosen = choose_to_prune(items, keep=keep, older_than=older_than, now=time.time())
    for item in chosen:
        with suppress(FileNotFoundError):
            (removed if _remove(item, store, progress) else in_use).append(item)
    # Items of kernels that have just been removed.
    orphans = choose_to_prune(tuple(_initramfs(store)), keep=None, older_than=None, now=time.time())
    for item in orphans:
        if item.path not in {kept.path for kept in in_use}:
            with suppress(FileNotFoundError):
                (removed if _remove(item, store, progress) else in_use).append(item)
    return tuple(removed), tuple(in_use)


def _remove(item: StoredItem, store: Store, progress: Progress) -> bool:
    if item.sort in ("kernel", "initramfs"):
        return remove_unless_used(item.path, store)
    if item.sort == "ccache":
        return remove_unless_used(item.path, store, ".")
    name = item.path.name if item.sort == "source" else source_of_output(item.path.name)
    source = SourceTree(store.root / SOURCES / name, name)
    with source.claimed(store, progress), source.looked_at(store, progress):
        # A build may have used it during the wait for the claim, or be about to claim it.
        last_use = _last_use_of_source if item.sort == "source" else _last_use_of_output
        if last_use(item.path) > item.used:
            return False
        store.remove(item.path)
    return True


def _kernels(store: Store) -> Iterator[StoredItem]:
    for folder in _folders(store.root / KIND):
        try:
            manifest = json.loads((folder / _MANIFEST).read_text())
            text = f"{manifest['release']}  {manifest['spec']}"
        except (OSError, ValueError, KeyError, TypeError):
            text = "damaged"
        used = _newest((folder / _MANIFEST, folder))
        yield StoredItem("kernel", folder, _size(folder), used, text)


def _outputs(store: Store) -> Iterator[StoredItem]:
    for folder in _folders(store.root / OUTPUTS):
        used = _last_use_of_output(folder)
        yield StoredItem("objects", folder, _size(folder), used, "objects of builds")


def _sources(store: Store) -> Iterator[StoredItem]:
    for folder in _folders(store.root / SOURCES):
        try:
            text = (folder / "origin").read_text().strip()
        except OSError:
            text = "a source tree"
        used = _last_use_of_source(folder)
        yield StoredItem("source", folder, _size(folder), used, text)


def _initramfs(store: Store) -> Iterator[StoredItem]:
    for folder in _folders(store.root / _INITRAMFS):
        text, orphan = "of an unknown kernel", False
        with suppress(OSError, ValueError, KeyError, TypeError):
            kernel = json.loads((folder / _MANIFEST).read_text())["kernel"]
            text = f"{kernel['release']}  {kernel['spec']}"
            orphan = kernel["stored"] and not (store.root / KIND / kernel["identity"]).exists()
        used = _newest((folder / _MANIFEST, folder))
        gone = ", which was removed" if orphan else ""
        yield StoredItem("initramfs", folder, _size(folder), used, text + gone, orphan)


def _ccache(store: Store) -> Iterator[StoredItem]:
    folder = store.root / CCACHE
    size = _size(folder) if folder.is_dir() else 0
    if size:
        yield StoredItem("ccache", folder, size, _newest((folder,)), "the compiler's cache")


def _last_use_of_output(folder: Path) -> float:
    return _newest((folder / "harness-build.log", folder))


def _last_use_of_source(folder: Path) -> float:
    return _newest(
        (folder / USED, folder / "index", folder / "seen", folder / "state.json", folder)
    )


def _newest(paths: tuple[Path, ...]) -> float:
    times = [0.0]
    for path in paths:
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def _folders(parent: Path) -> tuple[Path, ...]:
    if not parent.is_dir():
        return ()
    return tuple(sorted(path for path in parent.iterdir() if path.is_dir()))


def _size(folder: Path) -> int:
    """Return the bytes of a folder on disk; files that disappear meanwhile do not count."""
    total = 0
    with suppress(FileNotFoundError):
        for _, _, names, handle in os.fwalk(folder):
            for name in names:
                with suppress(OSError):
                    total += os.stat(name, dir_fd=handle, follow_symlinks=False).st_blocks * 512
    return total
