# SPDX-License-Identifier: GPL-2.0-or-later
"""Inclusive ranges of physical addresses, and sizes as users write them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

_SIZE = re.compile(r"(?P<number>\d+)(?P<unit>[KMGT]?)", re.ASCII)
_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}


@dataclass(frozen=True, order=True)
class MemoryRange:
    """Physical addresses `[start, end]`, both inclusive, as `/proc/iomem` prints them.

    Raises:
        ValueError: end lies before start, or start is negative.
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        if self.start < 0 or self.end < self.start:
            raise ValueError(f"not a range: {self.start:#x}-{self.end:#x}")

    @classmethod
    def of_size(cls, start: int, size: int) -> MemoryRange:
        """The range of `size` bytes (> 0) from `start`."""
        return cls(start, start + size - 1)

    @classmethod
    def parse(cls, text: str) -> MemoryRange:
        """Read `START-END` in hexadecimal, with or without 0x, both inclusive.

        Raises:
            ValueError: the text is not such a range.
        """
        start, dash, end = text.partition("-")
        if not dash:
            raise ValueError(f"not a range: {text!r}")
        return cls(int(start, 16), int(end, 16))

    @property
    def size(self) -> int:
        """Bytes in the range, at least 1."""
        return self.end - self.start + 1

    def contains(self, other: MemoryRange) -> bool:
        """True if every byte of `other` lies in this range."""
        return self.start <= other.start and other.end <= self.end

    def overlaps(self, other: MemoryRange) -> bool:
        """True if the two share at least one byte."""
        return self.start <= other.end and other.start <= self.end

    def intersection(self, other: MemoryRange) -> MemoryRange | None:
        """Return the bytes in both, or None without any."""
        if not self.overlaps(other):
            return None
        return MemoryRange(max(self.start, other.start), min(self.end, other.end))

    def minus(self, others: Iterable[MemoryRange]) -> tuple[MemoryRange, ...]:
        """Return the parts of this range outside of all `others`, in ascending order."""
        left: list[MemoryRange] = []
        at = self.start
        for other in sorted(others):
            if other.end < at:
                continue
            if other.start > self.end:
                break
            if other.start > at:
                left.append(MemoryRange(at, other.start - 1))
            at = other.end + 1
        if at <= self.end:
            left.append(MemoryRange(at, self.end))
        return tuple(left)

    def __str__(self) -> str:
        return f"{self.start:08x}-{self.end:08x}"


# msgspec writes any dataclass as an object. A range is written as its text, by the hooks of
# `json_values`, which msgspec calls for types that it does not know.
delattr(MemoryRange, "__dataclass_fields__")


def merge_adjacent(ranges: Iterable[MemoryRange]) -> tuple[MemoryRange, ...]:
    """Return the same bytes in as few ranges as possible, ascending."""
    merged: list[MemoryRange] = []
    for span in sorted(ranges):
        if merged and span.start <= merged[-1].end + 1:
            merged[-1] = MemoryRange(merged[-1].start, max(merged[-1].end, span.end))
        else:
            merged.append(span)
    return tuple(merged)


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `512M`, `2G` or `8192`; units are powers of 1024.

    Raises:
        ValueError: the text is not a size, or is zero.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or int(match["number"]) == 0:
        raise ValueError(f"{text!r} is not a size: write a number and K, M, G or T, such as 512M")
    return int(match["number"]) * _UNITS[match["unit"]]


def format_size(size: int) -> str:
    """Write `size` bytes with the largest exact unit, such as `512M`."""
    for unit in "TGMK":
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)
