# SPDX-License-Identifier: GPL-2.0-or-later
"""Write archives in the "newc" cpio format, which the kernel unpacks as its initramfs.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from typing import IO


class CpioWriter:
    """Writes one archive. The same calls give the same bytes: owners and times are zero."""

    def __init__(self, output: IO[bytes]) -> None:
        self._output = output
        self._inode = 0
        self._folders: set[str] = set()

    def add_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file, and missing folders above it."""
        self._add_parents(path)
        self._entry(path, stat.S_IFREG | mode, data)

    def add_link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add_parents(path)
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def add_folder(self, path: str, mode: int = 0o755) -> None:
        """Add a folder unless it was added before."""
        path = path.strip("/")
        if path and path not in self._folders:
            self._add_parents(path)
            self._folders.add(path)
            self._entry(path, stat.S_IFDIR | mode, b"")

    def add_device(self, path: str, major: int, minor: int) -> None:
        """Add a character device."""
        self._add_parents(path)
        self._entry(path, stat.S_IFCHR | 0o600, b"", (major, minor))

    def close(self) -> None:
        """Write the trailer, and pad the archive so that another can follow."""
        self._entry("TRAILER!!!", 0, b"")
        self._output.write(bytes(-self._output.tell() % 512))

    def _add_parents(self, path: str) -> None:
        parent = path.strip("/").rpartition("/")[0]
        if parent:
            self.add_folder(parent)

    def _entry(self, path: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        name = path.strip("/").encode() + b"\0"
        self._inode += 1
        fields = (
            *(self._inode, mode, 0, 0, 1, 0, len(data)),
            *(0, 0, *device, len(name), 0),
        )
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        self._output.write(head + bytes(-len(head) % 4))
        self._output.write(data + bytes(-len(data) % 4))
