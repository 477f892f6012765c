# SPDX-License-Identifier: GPL-2.0-or-later
"""Read kernels from the store and lock its entries. Fast to import: every run does."""

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
from harness.core.files import SUMS, DamagedEntryError, is_damaged, require_whole, verify
from harness.core.kernel import Kernel
from harness.core.progress import Progress

if TYPE_CHECKING:
    from harness.debian.apt import Package

# Change it when the content of an entry changes: old entries are then no longer found.
KIND = "kernels"
_IMAGE, _MODULES, _CONFIG, _MANIFEST = "vmlinuz", "modules", "config", "manifest.json"
_PACKAGE_FIELDS = ("name", "version", "suite", "sha256")
DECODERS = ("decode_stacktrace.sh", "decodecode")
"""The scripts of a kernel that decode its traces; the first calls the second."""


def write_manifest(folder: Path, *, spec: str, release: str, packages: Iterable[Package]) -> None:
    """Write the origin of a kernel into its entry."""
    listed = [{name: getattr(package, name) for name in _PACKAGE_FIELDS} for package in packages]
    content = {"spec": spec, "release": release, "packages": listed}
    (folder / _MANIFEST).write_text(json.dumps(content, indent=1) + "\n")


def read_stored(spec: str, entry: Path) -> Kernel:
    """Return the kernel in a store entry. Its modules are not verified.

    Raises:
        DamagedEntryError: the image, the configuration or the manifest is not what was stored.
        UsageError: the manifest cannot be parsed.
    """
    require_whole(entry, (_IMAGE, _CONFIG, _MANIFEST))
    manifest = entry / _MANIFEST
    try:
        release = json.loads(manifest.read_text())["release"]
        with suppress(OSError):  # a read-only store has no times of use
            os.utime(manifest)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"the stored kernel is damaged: {error}",
            where=str(entry),
            hint="delete this folder, and the kernel is fetched or built again",
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
    """Verify the modules of a kernel of the store.

    Raises:
        DamagedEntryError: a module has changed, or is missing.
    """
    entry = kernel.image.parent
    if entry.parent == store.root / KIND:
        require_whole(entry, (_MODULES,))


def verify_entries(store: Store) -> tuple[DamagedEntryError, ...]:
    """Read all entries of the store, and return the damage.

    Raises:
        UsageError: an entry cannot be read.
    """
    damage = []
    for sums in sorted(store.root.glob(f"*/*/{SUMS}")):
        try:
            verify(sums.parent)
        except DamagedEntryError as error:
            if sums.parent.is_dir():  # otherwise another process has removed it
                damage.append(error)
    return tuple(damage)


def discard_damaged(error: DamagedEntryError, store: Store, progress: Progress) -> None:
    """Remove a damaged entry of any kind, so that it is made again, and report it.

    Raises:
        UsageError: a run uses the entry, or the store cannot be written.
    """
    entry = error.entry
    name = f"{entry.parent.name}/{entry.name[:12]}"
    with store.lock(f"{entry.parent.name}.{entry.name}", what=f"making {name} again"):
        if not entry.is_dir() or not is_damaged(entry):
            return  # another harness has made it again
        progress.note(f"{name} is {error.message}; it is made again")
        if not remove_unless_used(entry, store):
            raise UsageError(
                f"{error.message}; and a run uses it",
                where=str(entry),
                hint="wait until that run has ended, and start again; check the disk",
            )


def found_symbols(folder: Path) -> Path | None:
    """Return the vmlinux in a folder, if there is one."""
    path = folder / "vmlinux"
    return path if path.is_file() else None


def found_scripts(*folders: Path) -> Path | None:
    """Return the first folder `scripts` in these folders that can decode traces."""
    places = (folder / "scripts" for folder in folders)
    return next((place for place in places if (place / DECODERS[0]).is_file()), None)


@contextmanager
def kernel_in_use(kernel: Kernel) -> Iterator[None]:
    """Keep a kernel of the store from being removed; a kernel of the user's is not locked.

    Raises:
        UsageError: it was removed before the lock was taken.
    """
    with entry_in_use(kernel.image.parent):
        if not kernel.image.exists():
            raise UsageError(
                f"the kernel {kernel.spec} was removed from the store",
                where=str(kernel.image.parent),
                hint="start again: the kernel is then fetched or built again",
            )
        yield


@contextmanager
def entry_in_use(entry: Path) -> Iterator[None]:
    """Keep an entry with a manifest from being removed; one without a manifest is not locked."""
    with _locked(entry / _MANIFEST):
        yield


@contextmanager
def folder_in_use(folder: Path) -> Iterator[None]:
    """Create a folder of the store whose content changes, and keep it from being removed."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder) as handle:
            if handle is not None and _is_there(folder, handle):
                os.utime(folder)
                yield
                return


def _is_there(folder: Path, handle: int) -> bool:
    """Return whether a folder is still the one that was locked."""
    try:
        return os.path.samestat(os.fstat(handle), folder.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """Hold a shared lock of a file or folder; yield None if it does not exist."""
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
    """Remove a folder of the store, unless it is in use.

    Args:
        entry: the folder.
        locked: the file that its users lock: the manifest (`entry_in_use`), or `.`
            (`folder_in_use`).

    Returns:
        True if the folder was removed.
    """
    try:
        handle = os.open(entry / locked, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        store.remove(entry)  # damaged: no run can use it
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        store.remove(entry)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
