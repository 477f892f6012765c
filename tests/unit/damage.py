# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways in which a file is damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def flip(path: Path) -> None:
    """Change a bit in the middle; the size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    """Empty the file, as some file systems do after a power failure."""
    os.truncate(path, 0)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def remove(path: Path) -> None:
    path.unlink()


DAMAGE: tuple[Callable[[Path], None], ...] = (flip, empty, cut, lengthen, remove)
