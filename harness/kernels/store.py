# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that the store has: how their folder reads. Light to import: every run starts here."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.files import DamagedEntryError, is_damaged, require_whole
from harness.core.kernel import Kernel
from harness.core.progress import Progress

if TYPE_CHECKING:
    from harness.debian.apt import Package

# To be changed when the content of an entry changes: old entries are then not found any more.
KIND = "kernels"
_IMAGE, _MODULES, _CONFIG, _MANIFEST = "vmlinuz", "modules", "config", "manifest.json"
DECODERS = ("decode_stacktrace.sh", "decodecode")
"""What of a kernel's scripts decodes its traces; the first calls the second."""


def write_manifest(folder: Path, *, spec: str, release: str, packages: Iterable[Package]) -> None:
    """Say in an entry what it was made from."""
    listed = [
        {"name": one.name, "version": one.version, "suite": one.suite, "sha256": one.sha256}
        for one in packages
    ]
    content = {"spec": spec, "release": release, "packages": listed}
    (folder / _MANIFEST).write_text(json.dumps(content, indent=1) + "\n")


def read_stored(spec: str, entry: Path) -> Kernel:
    """The kernel in a store entry, as a user named it. Its modules are not looked at.

    Raises:
        DamagedEntryError: the image, the configuration or the manifest is not what was stored.
        UsageError: the manifest is none.
    """
    require_whole(entry, (_IMAGE, _CONFIG, _MANIFEST))
    manifest = entry / _MANIFEST
    try:
        release = json.loads(manifest.read_text())["release"]
        with suppress(OSError):  # a store that is only read has no last use
            os.utime(manifest)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"the stored kernel is damaged: {error}",
            where=str(entry),
            hint="delete this folder, and the kernel is fetched again",
        ) from error
    return Kernel(
        spec=spec,
        release=release,
        image=entry / _IMAGE,
        modules=entry / _MODULES,
        config=entry / _CONFIG,
        identity=entry.name,
        symbols=found_symbols(entry),
        scripts=found_scripts(entry),
    )


def require_whole_modules(kernel: Kernel, store: Store) -> None:
    """Refuse modules that are not what was stored; those of a kernel of the user's are his.

    Raises:
        DamagedEntryError: a file of them has another content, or is missing.
    """
    entry = kernel.image.parent
    if entry.parent == store.root / KIND:
        require_whole(entry, (_MODULES,))


def discard_damaged(error: DamagedEntryError, store: Store, progress: Progress) -> None:
    """Remove a damaged entry of any kind, so that it is made again, and say so.

    Raises:
        UsageError: a run uses it, or the store cannot be written.
    """
    entry = error.entry
    name = f"{entry.parent.name}/{entry.name[:12]}"
    with store.lock(f"{entry.parent.name}.{entry.name}", what=f"making {name} again"):
        if not entry.is_dir() or not is_damaged(entry):
            return  # another harness was faster
        progress.note(f"{name} is {error.message}; it is made again")
        if not remove_unless_used(entry, store):
            raise UsageError(
                f"{error.message}; and a run uses it",
                where=str(entry),
                hint="wait until that run has ended, and start again; is the disk sound?",
            )


def found_symbols(folder: Path) -> Path | None:
    """The vmlinux in a folder, if there is one."""
    path = folder / "vmlinux"
    return path if path.is_file() else None


def found_scripts(*folders: Path) -> Path | None:
    """The `scripts` of the first of these folders in which it has what decodes traces."""
    places = (folder / "scripts" for folder in folders)
    return next((one for one in places if (one / DECODERS[0]).is_file()), None)


@contextmanager
def kernel_in_use(kernel: Kernel) -> Iterator[None]:
    """Keep a kernel of the store from being removed; nothing happens for a kernel of the user's.

    Raises:
        UsageError: it was removed just before.
    """
    with entry_in_use(kernel.image.parent):
        if not kernel.image.exists():
            raise UsageError(
                f"the kernel {kernel.spec} was removed from the store",
                where=str(kernel.image.parent),
                hint="start again, and it is fetched or built again",
            )
        yield


@contextmanager
def entry_in_use(entry: Path) -> Iterator[None]:
    """Keep a folder of the store that has a manifest from being removed, if it is there."""
    with _locked(entry / _MANIFEST):
        yield


@contextmanager
def folder_in_use(folder: Path) -> Iterator[None]:
    """Create a folder of the store that changes, and keep it from being removed."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder) as handle:
            if handle is not None and _is_there(folder, handle):
                os.utime(folder)
                yield
                return


def _is_there(folder: Path, handle: int) -> bool:
    """Whether a folder was not removed before it was locked."""
    try:
        return os.path.samestat(os.fstat(handle), folder.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """Share a lock of a file or a folder with others who use it; None where there is none."""
    handle = None
    with suppress(FileNotFoundError):
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if handle is not None:
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield handle
    finally:
        if handle is not None:
            os.close(handle)


def remove_unless_used(entry: Path, store: Store, locked: str = _MANIFEST) -> bool:
    """Remove a folder of the store, unless somebody has it in use.

    Args:
        entry: the folder.
        store: whose it is.
        locked: what is locked while it is used, of `entry_in_use`; `.` of `folder_in_use`.
    """
    try:
        handle = os.open(entry / locked, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        store.remove(entry)  # damaged: nobody can use it
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        store.remove(entry)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
