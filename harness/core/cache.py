# SPDX-License-Identifier: GPL-2.0-or-later
"""Things worth keeping: folders named by what went into them, built once, whoever asks first."""

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
    """Folders `ROOT/KIND/KEY` that never change once they are there.

    An entry is built in `ROOT/tmp` under a lock that its builder holds, and renamed into place.
    What a killed builder left there is removed by the next build. Nothing is evicted by itself.
    Who uses an entry asks `harness.core.files` whether it still is what was stored.

    Args:
        root: an absolute path; it is created when something is first kept.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, kind: str, key: str) -> Path | None:
        """The entry's folder, or None when it was not built yet. Costs one stat."""
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
        """The entry's folder, built first when it is not there.

        Args:
            kind: what sort of thing it is, such as `kernels`; part of the path.
            key: names everything that went into the entry, usually a hash; part of the path.
            make: fills the empty folder that it is given. It may build other entries, in an
                order that is the same everywhere, but not this one.
            what: what `make` does, as it reads after "another harness is".
            progress: hears of a wait for another process that builds the same entry.

        Raises:
            UsageError: the store is full, or cannot be written; or the entry was filled with hashes
                that say otherwise.
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
        """The entry that a name stands for, or None when there is none. Costs two calls."""
        try:
            target = os.readlink(self._alias(kind, name))
        except OSError:
            return None
        return self.find(kind, os.path.basename(target))

    def set_alias(self, kind: str, name: str, key: str) -> None:
        """Let a name (any text) stand for an entry of the same kind, instead of any before.

        Raises:
            UsageError: the store is full, or cannot be written.
        """
        alias = self._alias(kind, name)
        target = Path("..", "..", self._entry(kind, key).relative_to(self.root))
        with (
            self._explained(),
            self._claimed(f"{_ALIASES}.{kind}.{alias.name}", "naming it") as link,
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
            UsageError: another process holds it, and this one is not to wait.
        """
        with self._explained(), self._claimed(f"{_LOCK}.{name}", what, progress, wait):
            yield

    def folder(self, name: str) -> Path:
        """A folder below the root that is kept and may change; its users lock it themselves.

        Raises:
            UsageError: the store is full, or cannot be written.
        """
        path = self.root / _checked(name)
        with self._explained():
            path.mkdir(parents=True, exist_ok=True)
        return path

    def remove(self, path: Path) -> None:
        """Remove a folder of the store, at once for everybody who looks.

        Whether somebody still uses it is for the caller to know.

        Raises:
            UsageError: the store cannot be written.
        """
        name = f"remove.{path.parent.name}.{path.name}"
        with self._explained(), self._claimed(name, "removing it") as away:
            path.rename(away)

    def require_space(self, size: int, what: str) -> None:
        """Refuse early what would not fit: some programs hang on a full disk.

        Args:
            size: how much is about to be written, in bytes.
            what: what is fetched.

        Raises:
            UsageError: less is free.
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

        The path belongs to the lock's holder: what exists there when the lock is free was left by
        a process that died.
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
        told = False
        while (held := _try_lock(lock)) is None:
            if not wait:
                raise UsageError(f"another harness is {what}", hint=deadline.hint)
            if not told and progress is not None:
                progress.note(f"another harness is {what}; waiting for it")
                told = True
            time.sleep(min(_POLL_SECONDS, deadline.check()))
        try:
            _remove(path)
            yield path
        finally:
            _remove(path)
            _drop_lock(lock, held)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what to do when the store cannot take what is written to it."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise self._full(error.strerror) from error
            named = error.filename2 or error.filename
            ours = isinstance(named, str) and Path(named).is_relative_to(self.root)
            if not self.root.is_dir():
                raise UsageError(
                    f"the store cannot be made: {error.strerror}",
                    where=str(self.root),
                    hint="set HARNESS_STORE to a folder that is there, or that you may make",
                ) from error
            if error.errno in _REFUSED and (ours or not os.access(self.root, os.W_OK)):
                raise UsageError(
                    f"the store cannot be written: {error.strerror}",
                    where=str(self.root),
                    hint="make it writable for you, or set HARNESS_STORE to a folder that is",
                ) from error
            raise
        except UsageError:
            raise
        except HarnessError as error:
            # A program that the builder ran says it in its own words.
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
    """Take a lock file, created when missing: its descriptor, or None when another holds it.

    flock and not the filelock package: lock files are deleted here, so a lock counts only when
    the locked file is still the one at the path, and that needs the descriptor.
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
    # Unlink first: who opened the file before then finds that it is no longer the one at the path.
    with suppress(OSError):
        path.unlink()
    os.close(handle)


def _sweep(work: Path, locks: Path) -> None:
    """Remove what dead processes left in the temporary folder."""
    for lock in locks.iterdir():
        # Another user's lock file in a shared store is not ours to judge.
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
