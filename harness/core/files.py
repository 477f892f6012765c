# SPDX-License-Identifier: GPL-2.0-or-later
"""Hashes of what the store has, made when it is stored and looked at when it is used.

An entry has a file SHA256SUMS, as `sha256sum --check` reads it. A file that was found whole is not
read again while nothing has touched it: a change of its size, times or inode, a boot of this
machine, or a day ends that. The hash of what a run uses, 30 MB, takes 28 ms at 1 GB/s.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from harness.core.errors import UsageError

SUMS = "SHA256SUMS"
_SEEN = ".verified.json"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_DAY = 86400.0
# Reading a small file costs no more than asking whether it has to be read.
_SMALL = 64 * 1024
_TICK = 2.0
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO, errno.EUCLEAN)
_HEX = 64

Digests = dict[str, str]
Result = TypeVar("Result")


class DamagedEntryError(UsageError):
    """What the store has is not what was stored; `where` is the entry's folder."""

    @property
    def entry(self) -> Path:
        """The folder."""
        return Path(self.where or "")


def write_sums(entry: Path) -> None:
    """Write the hashes of all files of an entry that nobody else sees yet.

    Where it came with hashes, from another machine, it is held against these.

    Raises:
        DamagedEntryError: it is not what they say.
    """
    if (entry / SUMS).exists():
        require_whole(entry, sorted({*_read_sums(entry), *_files(entry)}))
    elif text := _listed(entry):
        (entry / SUMS).write_text(text)


def _adopt(entry: Path) -> None:
    """Write the hashes of an entry that others may be looking at: whole or not at all.

    An unnamed file is not left behind by a process that is killed.
    """
    if text := _listed(entry):
        handle = os.open(entry, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        with open(handle, "w") as file:
            file.write(text)
            file.flush()
            with suppress(FileExistsError):
                # With a folder's descriptor, link() follows the link of /proc, see open(2).
                os.link(f"/proc/self/fd/{handle}", entry / SUMS, src_dir_fd=handle)


def _listed(entry: Path) -> str:
    return "".join(f"{_digest(entry / name)}  {name}\n" for name in _files(entry))


def require_whole(entry: Path, names: Iterable[str]) -> None:
    """Refuse an entry in which one of these files is not as it was stored.

    An entry without hashes, which an older harness made, gets them now.

    Args:
        entry: its folder.
        names: files, or folders for all that was stored in them.

    Raises:
        DamagedEntryError: a file is missing, or has another content.
        UsageError: a file cannot be read, which says nothing about it.
    """
    with _explained(entry):
        _require_whole(entry, names)


def _require_whole(entry: Path, names: Iterable[str]) -> None:
    seen = _Seen(entry)
    doubtful = [name for name in names if not seen.whole(name)]
    if not doubtful:
        return
    if not (entry / SUMS).exists():
        with suppress(OSError):  # a store that is only read keeps no hashes
            _adopt(entry)
    for name, digest in _stored(entry, doubtful):
        path = entry / name
        try:
            before = path.stat()
            found = _digest(path)
        except OSError as error:
            if error.errno not in _DAMAGE:
                raise
            raise _damaged(entry, f"{name}: {error.strerror}") from None
        if found != digest:
            raise _damaged(entry, f"{name}, of {before.st_size} bytes, is not what was stored")
        seen.add(name, before)
    seen.keep()


def made_again(get: Callable[[], Result], discard: Callable[[DamagedEntryError], object]) -> Result:
    """What a function gets, damaged entries of the store discarded first, each once.

    Args:
        get: finds or makes it, and requires it to be whole.
        discard: has the entry removed, so that it is made again.

    Raises:
        DamagedEntryError: an entry that has just been made again is damaged too.
    """
    discarded: set[Path] = set()
    while True:
        try:
            return get()
        except DamagedEntryError as error:
            if error.entry in discarded:
                raise
            discarded.add(error.entry)
            discard(error)


def is_damaged(entry: Path) -> bool:
    """Whether any file of an entry is not as it was stored; all are read.

    Raises:
        UsageError: a file cannot be read, which says nothing about it.
    """
    with _explained(entry):
        try:
            digests = _read_sums(entry)
            return _files(entry) != sorted(digests) or any(
                _digest(entry / name) != digest for name, digest in digests.items()
            )
        except DamagedEntryError:
            return True
        except OSError as error:
            if error.errno not in _DAMAGE:
                raise
            return True


@contextmanager
def _explained(entry: Path) -> Iterator[None]:
    """For what is wrong with this process, such as too many open files."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot be read: {error.strerror}",
            where=str(error.filename or entry),
            hint="see which limit or permission of this machine is in the way, then start again",
        ) from None


def _stored(entry: Path, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Files with the hashes that they had."""
    digests = _read_sums(entry) if (entry / SUMS).exists() else {}
    for name in names:
        below = [one for one in digests if one == name or one.startswith(f"{name}/")]
        path = entry / name
        if not below and not path.is_dir():
            if not path.exists():
                raise _damaged(entry, f"{name} is missing")
            if digests:  # a store that is only read may have entries without
                raise _damaged(entry, f"{name} is not in its {SUMS}")
        yield from ((one, digests[one]) for one in below)


def _read_sums(entry: Path) -> Digests:
    try:
        text = (entry / SUMS).read_text()
    except (FileNotFoundError, ValueError) as error:
        raise _damaged(entry, f"{SUMS}: {error}") from None
    *lines, last = text.split("\n")
    if not lines or last or any(line[_HEX : _HEX + 2] != "  " for line in lines):
        raise _damaged(entry, f"{SUMS} is not a list of hashes")
    return {line[_HEX + 2 :]: line[:_HEX] for line in lines}


def _files(entry: Path) -> list[str]:
    """The regular files of an entry, by path below it; not what links lead to."""
    found = []
    for folder, _, names in os.walk(entry):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink() and not _ours(path, entry):
                found.append(path.relative_to(entry).as_posix())
    return sorted(found)


def _ours(path: Path, entry: Path) -> bool:
    return path.parent == entry and path.name in (SUMS, _SEEN)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Seen:
    """Which files of an entry were found whole, and have not been touched since."""

    def __init__(self, entry: Path) -> None:
        self._entry = entry
        self._now = time.time()
        self._boot = _BOOT.read_text().strip()
        self._files: dict[str, list[float]] = {}
        self._changed = False
        with suppress(OSError, ValueError, TypeError, KeyError):
            known = json.loads((entry / _SEEN).read_text())
            if known["boot"] == self._boot:
                self._files = dict(known["files"])

    def whole(self, name: str) -> bool:
        try:
            *stamp, when = self._files[name]
            return stamp == _stamp((self._entry / name).stat()) and 0 <= self._now - when < _DAY
        except (OSError, KeyError, TypeError, ValueError):
            return False

    def add(self, name: str, status: os.stat_result) -> None:
        # Another change in the same tick of the file system's clock would not be seen.
        if status.st_size >= _SMALL and abs(self._now - status.st_ctime) > _TICK:
            self._files[name] = [*_stamp(status), self._now]
            self._changed = True

    def keep(self) -> None:
        if not self._changed:
            return
        # One that is cut off is no JSON. In a store that is only read, every use reads the files.
        with suppress(OSError):
            (self._entry / _SEEN).write_text(json.dumps({"boot": self._boot, "files": self._files}))


def _stamp(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _damaged(entry: Path, problem: str) -> DamagedEntryError:
    return DamagedEntryError(
        f"damaged in the store: {problem}",
        where=str(entry),
        hint="delete this folder, and it is made again; is the disk sound?",
    )
