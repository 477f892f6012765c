# SPDX-License-Identifier: GPL-2.0-or-later
"""Read and write files safely, and verify the entries of the store.

An entry of the store has a file SHA256SUMS, as `sha256sum --check` reads it. A file is verified
when it is first used after a boot of the host. Later uses compare its size, times and inode with
those it had then.
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
_VERIFIED = ".verified.json"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
# Smaller files are always read: that costs no more than the comparison.
_SMALL = 64 * 1024
# A second change within the same tick of the file system's clock leaves the times as they are.
_TICK = 2.0
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO, errno.EUCLEAN)
_HEX = 64

Result = TypeVar("Result")


class DamagedEntryError(UsageError):
    """An entry of the store is not what was stored; `where` is its folder."""

    @property
    def entry(self) -> Path:
        """The folder."""
        return Path(self.where or "")


def read_text(path: Path, *, what: str = "the file", hint: str = "check its permissions") -> str:
    """Return the text of a file that the user named.

    Args:
        path: the file.
        what: the file, for the error message.
        hint: what the user can do when it cannot be read.

    Raises:
        UsageError: the file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError("not UTF-8 text", where=str(path), hint="save it as UTF-8") from None
    except OSError as error:
        text = f"cannot read {what}: {error.strerror}"
        raise UsageError(text, where=str(path), hint=hint) from None


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file: readers see the old content or the new one, never a part.

    Raises:
        OSError: the file cannot be written; the old one is left as it was.
    """
    part = path.with_name(f"{path.name}.{os.urandom(4).hex()}")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(entry: Path) -> None:
    """Write the checksums of all files of a new entry, which no other process uses yet.

    An entry that another host has sent with its checksums is compared with them instead.

    Raises:
        DamagedEntryError: the entry differs from its checksums.
    """
    if (entry / SUMS).exists():
        verify(entry)
    elif files := _files(entry):
        (entry / SUMS).write_text("".join(f"{sha256(entry / name)}  {name}\n" for name in files))


def require_whole(entry: Path, names: Iterable[str]) -> None:
    """Compare files of an entry with its checksums.

    Args:
        entry: the entry's folder.
        names: files, and folders for all files in them.

    Raises:
        DamagedEntryError: a file is missing or has changed.
        UsageError: a file cannot be read for a reason that is not damage.
    """
    with _explained(entry):
        _compare(entry, names, _read_verified(entry))


def verify(entry: Path) -> None:
    """Read all files of an entry and compare them with its checksums.

    Raises:
        DamagedEntryError: a file is missing, has changed, or was added.
        UsageError: a file cannot be read for a reason that is not damage.
    """
    with _explained(entry):
        with suppress(OSError):  # so that the next use finds damage too
            (entry / _VERIFIED).unlink()
        _compare(entry, sorted({*_read_sums(entry), *_files(entry)}), {})


def is_damaged(entry: Path) -> bool:
    """Return whether `verify` finds damage."""
    try:
        verify(entry)
    except DamagedEntryError:
        return True
    return False


def made_again(get: Callable[[], Result], discard: Callable[[DamagedEntryError], object]) -> Result:
    """Return the result of `get`; discard each damaged entry that it meets once, and try again.

    Args:
        get: finds or makes something, and requires entries of the store to be whole.
        discard: removes the entry, so that it is made again.

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


def _compare(entry: Path, names: Iterable[str], known: dict[str, object]) -> None:
    """Compare files with their checksums, except those whose seal is known; record new seals."""
    digests, verified = _read_sums(entry), dict(known)
    for name in names:
        listed = [file for file in digests if file == name or file.startswith(f"{name}/")]
        if not listed and not (entry / name).is_dir():
            raise _damaged(entry, f"{name} is not in its {SUMS}")
        for file in listed:
            if seal := _verify_file(entry, file, digests[file], known.get(file)):
                verified[file] = seal
    if verified != known:
        with suppress(OSError):  # a read-only store: every use reads the files
            write_atomic(entry / _VERIFIED, json.dumps(verified))


def _verify_file(entry: Path, name: str, digest: str, known: object) -> list[object] | None:
    """Compare a file with its checksum, unless its seal is the known one.

    Returns:
        The seal of the file; None where it does not tell whether the file changes.
    """
    path = entry / name
    try:
        status = path.stat()
        times = [status.st_mtime_ns, status.st_ctime_ns]
        seal = [_BOOT.read_text().strip(), status.st_size, *times, status.st_ino]
        if seal == known:
            return seal
        if sha256(path) != digest:
            raise _damaged(entry, f"{name}, of {status.st_size} bytes, is not what was stored")
    except OSError as error:
        if error.errno in _DAMAGE:
            raise _damaged(entry, f"{name}: {error.strerror}") from None
        raise
    settled = time.time() - status.st_ctime > _TICK
    return seal if settled and status.st_size >= _SMALL else None


def _read_sums(entry: Path) -> dict[str, str]:
    try:
        text = (entry / SUMS).read_text()
    except FileNotFoundError:
        if _files(entry):
            raise _damaged(entry, f"{SUMS} is missing") from None
        return {}
    except ValueError as error:
        raise _damaged(entry, f"{SUMS}: {error}") from None
    *lines, last = text.split("\n")
    if not lines or last or any(line[_HEX : _HEX + 2] != "  " for line in lines):
        raise _damaged(entry, f"{SUMS} is not a list of checksums")
    return {line[_HEX + 2 :]: line[:_HEX] for line in lines}


def _read_verified(entry: Path) -> dict[str, object]:
    """Return the seals of the files that were verified; none where the record cannot be used."""
    with suppress(OSError, ValueError):
        known = json.loads((entry / _VERIFIED).read_text())
        return known if isinstance(known, dict) else {}
    return {}


def _files(entry: Path) -> list[str]:
    """Return the regular files of an entry as paths below it; links are not followed."""
    found = []
    for folder, _, names in os.walk(entry):
        for name in names:
            path = Path(folder, name)
            relative = path.relative_to(entry).as_posix()
            if path.is_file() and not path.is_symlink() and not relative.startswith(_VERIFIED):
                found.append(relative)
    return sorted(name for name in found if name != SUMS)


@contextmanager
def _explained(entry: Path) -> Iterator[None]:
    """Turn an error of this process, such as too many open files, into a UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot be read: {error.strerror}",
            where=str(error.filename or entry),
            hint="see which limit or permission of this host prevents it, then start again",
        ) from None


def _damaged(entry: Path, problem: str) -> DamagedEntryError:
    return DamagedEntryError(
        f"damaged in the store: {problem}",
        where=str(entry),
        hint="delete this folder, and it is made again; check the disk",
    )
