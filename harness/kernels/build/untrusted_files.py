# SPDX-License-Identifier: GPL-2.0-or-later
"""Read files from a folder that an untrusted build can write, without following symlinks."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from harness.core.errors import UnbuildableError

_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC
# Errors of open(2) for a link, for a link or a file in the place of a folder, and for a socket.
_NO_FILE = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO)
_HINT = (
    "a build of the kernel leaves no such file: the source or the series may be an attempt to read "
    "or change your files"
)


class UntrustedFolder:
    """A folder that an untrusted build can write to: no symlink in it is followed.

    A symlink in it can point to any file of the user's. Reading through it would make that file
    part of a kernel in the store, and writing through it would change that file.

    Args:
        path: the folder; links above it and to it are followed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading.

        Args:
            name: its path in the folder.

        Raises:
            FileNotFoundError: the file does not exist.
            UnbuildableError: it is no regular file, or not in the folder.
        """
        folder = self._parent_of(name)
        try:
            # Opening a pipe must not block.
            handle = os.open(Path(name).name, os.O_RDONLY | os.O_NONBLOCK | _FLAGS, dir_fd=folder)
        except OSError as error:
            raise self._explained(error, name) from None
        finally:
            os.close(folder)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise self._refused(name)
        return os.fdopen(handle, "rb")

    def read_text(self, name: str) -> str:
        """Return the text of a file; raises as `open` does."""
        with self.open(name) as stream:
            return stream.read().decode(errors="replace")

    def copy(self, name: str, to: Path) -> None:
        """Copy the content of a file; raises as `open` does."""
        with self.open(name) as stream, to.open("wb") as copy:
            shutil.copyfileobj(stream, copy, 1 << 20)

    def write_text(self, name: str, text: str) -> None:
        """Write a new file, in the place of an old file or link.

        Raises:
            UnbuildableError: there is a folder of this name, or the path leaves the folder.
        """
        folder = self._parent_of(name)
        last = Path(name).name
        try:
            try:
                os.unlink(last, dir_fd=folder)
            except FileNotFoundError:
                pass
            except IsADirectoryError:
                raise self._refused(name) from None
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS
            handle = os.open(last, flags, 0o666, dir_fd=folder)
        finally:
            os.close(folder)
        with os.fdopen(handle, "w") as stream:
            stream.write(text)

    def _parent_of(self, name: str) -> int:
        """Open the parent folder of a file."""
        parts = PurePosixPath(name).parts
        if not parts or PurePosixPath(name).is_absolute() or ".." in parts:
            raise self._refused(name)
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in parts[:-1]:
            try:
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | _FLAGS, dir_fd=folder)
            except OSError as error:
                raise self._explained(error, name) from None
            finally:
                os.close(folder)
            folder = below
        return folder

    def _explained(self, error: OSError, name: str) -> Exception:
        return self._refused(name) if error.errno in _NO_FILE else error

    def _refused(self, name: str) -> UnbuildableError:
        return UnbuildableError(
            f"{name} is not a regular file in its folder",
            where=str(self.path),
            hint=_HINT,
        )
