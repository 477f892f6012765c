# SPDX-License-Identifier: GPL-2.0-or-later
"""The store: folders named by a hash of their inputs, each built once."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from harness.core.deadline import Deadline
from harness.core.errors import HarnessError, UsageError
from harness.core.progress import Progress

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]*")
_BUSY = "tmp"
_ALIASES = "aliases"
_LOCK = "lock"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_POLL_SECONDS = 0.05
_BUILD_SECONDS = 4 * 3600.0


class Store:
    """Folders `ROOT/KIND/KEY` that never change once they exist.

    An entry is built in `ROOT/tmp` under a lock, and renamed into place. The next build removes the
    remains of a killed one. No entry is evicted automatically. `harness.core.files` verifies that
    an entry is still what was stored.

    Args:
        root: an absolute path; it is created with the first entry.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, kind: str, key: str) -> Path | None:
        """Return the entry's folder, or None when it does not exist. Costs one stat."""
        path = self._entry(kind, key)
        return path if path.is_dir() else None

    def build(
        self,
        kind: str,
        key: str,
        make: Callable[[Path], object],
        *,
        what: str = "",
        progress: Progress | None = None,
    ) -> Path:
        """Return the entry's folder; build it first when it does not exist.

        Args:
            kind: the sort of entry, such as `kernels`; part of the path.
            key: names all inputs of the entry, usually a hash; part of the path.
            make: fills the empty folder that it is given. It may build other entries, in an
                order that is the same everywhere, but not this one.
            what: what `make` does, as it reads after "another harness is".
            progress: reports a wait for another process that builds the same entry.

        Raises:
            UsageError: the store is full, or cannot be written; or the entry came with checksums,
                and differs from them.
            DeadlineExpiredError: another process has been building the entry for hours.
        """
        path = self._entry(kind, key)
        if path.is_dir():
            return path
        from harness.core.files import write_sums  # costs more than finding an entry

        what = what or f"making {kind}/{key}"
        with self._explained(), self._claimed(f"{kind}.{key}", what, progress) as folder:
            if path.is_dir():
                return path
            folder.mkdir()
            make(folder)
            write_sums(folder)
            path.parent.mkdir(exist_ok=True)
            folder.rename(path)
        return path

    def find_alias(self, kind: str, name: str) -> Path | None:
        """Return the entry of an alias, or None without one. Costs two system calls."""
        try:
            target = os.readlink(self._alias(kind, name))
        except OSError:
            return None
        return self.find(kind, os.path.basename(target))

    def set_alias(self, kind: str, name: str, key: str) -> None:
        """Let a name (any text) stand for an entry of the same kind; it replaces an older alias.

        Raises:
            UsageError: the store is full, or cannot be written.
        """
        alias = self._alias(kind, name)
        target = Path("..", "..", self._entry(kind, key).relative_to(self.root))
        with (
            self._explained(),
            self._claimed(f"{_ALIASES}.{kind}.{alias.name}", "setting its alias") as link,
        ):
            alias.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
            link.replace(alias)

    @contextmanager
    def lock(
        self, name: str, *, what: str, progress: Progress | None = None, wait: bool = True
    ) -> Iterator[None]:
        """Hold the store-wide lock `name`; `what` reads after "another harness is".

        Raises:
            UsageError: another process holds it, and `wait` is false.
        """
        with self._explained(), self._claimed(f"{_LOCK}.{name}", what, progress, wait):
            yield

    def folder(self, name: str) -> Path:
        """Return a folder below the root whose content may change; its users lock it themselves.

        Raises:
            UsageError: the store is full, or cannot be written.
        """
        path = self.root / _checked(name)
        with self._explained():
            path.mkdir(parents=True, exist_ok=True)
        return path

    def remove(self, path: Path) -> None:
        """Remove a folder of the store atomically. The caller makes sure that it is not in use.

        Raises:
            UsageError: the store cannot be written.
        """
        name = f"remove.{path.parent.name}.{path.name}"
        with self._explained(), self._claimed(name, "removing it") as away:
            path.rename(away)

    def require_space(self, size: int, what: str) -> None:
        """Refuse early to write what would not fit: some programs hang on a full disk.

        Args:
            size: in bytes.
            what: what is fetched, for the error message.

        Raises:
            UsageError: less space is free.
        """
        with self._explained():
            self.root.mkdir(parents=True, exist_ok=True)
            status = os.statvfs(self.root)
        free = status.f_bavail * status.f_frsize
        if free < size:
            raise self._full(
                f"fetching {what} takes {size / 1e6:.0f} MB, {free / 1e6:.0f} MB are free"
            )

    def _entry(self, kind: str, key: str) -> Path:
        return self.root / _checked(kind) / _checked(key)

    def _alias(self, kind: str, name: str) -> Path:
        quoted = quote(name, safe=":@+~")
        if len(quoted) > 150 or quoted.startswith("."):
            import hashlib

            quoted = "long-" + hashlib.sha256(name.encode()).hexdigest()
        return self.root / _ALIASES / _checked(kind) / quoted

    @contextmanager
    def _claimed(
        self, name: str, what: str, progress: Progress | None = None, wait: bool = True
    ) -> Iterator[Path]:
        """Lock a name in the temporary folder; yield a path there that does not exist yet.

        The path belongs to the lock's holder: a file there while the lock is free was left by a
        process that was killed.
        """
        work, locks = self.root / _BUSY / "work", self.root / _BUSY / "locks"
        work.mkdir(parents=True, exist_ok=True)
        locks.mkdir(exist_ok=True)
        _sweep(work, locks)
        path, lock = work / name, locks / name
        deadline = Deadline(
            _BUILD_SECONDS,
            f"another process that is {what}",
            hint=f"see which process has {lock} open, for example with fuser",
        )
        reported = False
        while (held := _try_lock(lock)) is None:
            if not wait:
                raise UsageError(f"another harness is {what}", hint=deadline.hint)
            if not reported and progress is not None:
                progress.note(f"another harness is {what}; waiting for it")
                reported = True
            time.sleep(min(_POLL_SECONDS, deadline.check()))
        try:
            _remove(path)
            yield path
        finally:
            _remove(path)
            _drop_lock(lock, held)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn an error about writing to the store into a UsageError with a hint."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise self._full(error.strerror) from error
            named = error.filename2 or error.filename
            ours = isinstance(named, str) and Path(named).is_relative_to(self.root)
            if not self.root.is_dir():
                raise UsageError(
                    f"cannot create the store: {error.strerror}",
                    where=str(self.root),
                    hint="set HARNESS_STORE to a folder that exists, or that you may create",
                ) from error
            if error.errno in _REFUSED and (ours or not os.access(self.root, os.W_OK)):
                raise UsageError(
                    f"cannot write to the store: {error.strerror}",
                    where=str(self.root),
                    hint="make it writable for you, or set HARNESS_STORE to another folder",
                ) from error
            raise
        except UsageError:
            raise
        except HarnessError as error:
            # The error message of a program that the builder ran.
            for code in _FULL:
                if os.strerror(code).lower() in error.message.lower():
                    raise self._full(os.strerror(code)) from error
            raise

    def _full(self, reason: str | None) -> UsageError:
        return UsageError(
            f"the store is full: {reason}",
            where=str(self.root),
            hint="free some space, delete the store to start over, or set HARNESS_STORE to a "
            "folder on another disk",
        )


def _checked(name: str) -> str:
    if _NAME.fullmatch(name) is None or name in (_BUSY, _ALIASES, _LOCK):
        raise ValueError(f"not a name for a store entry: {name!r}")
    return name


def _try_lock(path: Path) -> int | None:
    """Lock a file, created when missing; return its descriptor, or None when it is locked.

    The package filelock does not fit: lock files are deleted here, so a lock is valid only when
    the locked file is still the one at the path, and that check needs the descriptor.
    """
    import fcntl

    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)


def _drop_lock(path: Path, handle: int) -> None:
    # Unlink first: a process that has opened the file then finds that the path has another one.
    with suppress(OSError):
        path.unlink()
    os.close(handle)


def _sweep(work: Path, locks: Path) -> None:
    """Remove the files of killed processes from the temporary folder."""
    for lock in locks.iterdir():
        # In a shared store, leave the lock files of other users alone.
        with suppress(PermissionError):
            held = _try_lock(lock)
            if held is not None:
                _remove(work / lock.name)
                _drop_lock(lock, held)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        import shutil  # costs more than finding an entry

        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
