# SPDX-License-Identifier: GPL-2.0-or-later
"""The tree of /proc/iomem."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from harness.platform.memory_range import MemoryRange

_LINE = re.compile(
    r"(?P<indent> *)(?P<start>[0-9a-f]{1,16})-(?P<end>[0-9a-f]{1,16}) : (?P<name>.*)"
)
_INDENT = 2
# Levels up to which the kernel indents: 5, or 8 since 6.19 (kernel/resource.c, MAX_IORES_LEVEL).
_LEVELS_INDENTED = 5
# Far more than any machine has.
_MOST_LEVELS = 100


class IomemError(ValueError):
    """The text is not a whole /proc/iomem that a privileged reader got."""


@dataclass(frozen=True)
class IomemEntry:
    """One resource with those that it contains, in ascending order."""

    range: MemoryRange
    name: str
    children: tuple[IomemEntry, ...] = ()

    def walk(self) -> Iterator[IomemEntry]:
        """This entry and everything below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True)
class Iomem:
    """All of /proc/iomem."""

    roots: tuple[IomemEntry, ...]

    def walk(self) -> Iterator[IomemEntry]:
        """Every entry, parents before children, ascending."""
        for root in self.roots:
            yield from root.walk()

    def named(self, pattern: str) -> tuple[IomemEntry, ...]:
        """The entries whose whole name matches a regular expression."""
        expression = re.compile(pattern)
        return tuple(entry for entry in self.walk() if expression.fullmatch(entry.name))

    def chain(self, address: int) -> tuple[IomemEntry, ...]:
        """The entries that contain an address, outermost first."""
        found: list[IomemEntry] = []
        level = self.roots
        while True:
            inside = [e for e in level if e.range.start <= address <= e.range.end]
            if not inside:
                return tuple(found)
            found.append(inside[0])
            level = inside[0].children

    def within(self, span: MemoryRange) -> Iomem:
        """Only the entries that share an address with `span`."""
        return Iomem(tuple(_pruned(root, span) for root in self.roots if root.range.overlaps(span)))

    def lines(self) -> tuple[str, ...]:
        """The tree as the kernel prints it, without its limit of depth."""
        return tuple(
            f"{'  ' * depth}{entry.range} : {entry.name}"
            for root in self.roots
            for depth, entry in _with_depth(root, 0)
        )


@dataclass
class _Open:
    range: MemoryRange
    name: str
    indent: int
    children: list[IomemEntry] = field(default_factory=list)

    def closed(self) -> IomemEntry:
        return IomemEntry(self.range, self.name, tuple(self.children))


def parse_iomem(text: str) -> Iomem:
    """Read the text of /proc/iomem.

    The kernel's indentation stops growing at a depth that depends on its version, so entries nest
    by indentation first, and by containment among those of equal indentation.

    Raises:
        IomemError: the text is empty, cut off, out of order, or from an unprivileged reader, who
            sees only zeros.
    """
    if not text.strip():
        raise IomemError("empty")
    if not text.endswith("\n"):
        raise IomemError("cut off in its last line")
    roots: list[IomemEntry] = []
    stack: list[_Open] = []
    privileged = False
    for number, line in enumerate(text[:-1].split("\n"), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise IomemError(f"line {number} is not a resource: {line[:80]!r}")
        start, end = int(match["start"], 16), int(match["end"], 16)
        if end < start:
            raise IomemError(f"line {number} ends before it starts: {line[:80]!r}")
        privileged = privileged or end > 0
        entry = _Open(MemoryRange(start, end), match["name"], len(match["indent"]))
        _make_room(stack, entry, roots, number)
        stack.append(entry)
    if not privileged:
        raise IomemError("all addresses are zero: read by a user without CAP_SYS_ADMIN")
    while stack:
        _close(stack, roots)
    return Iomem(tuple(roots))


def _make_room(stack: list[_Open], entry: _Open, roots: list[IomemEntry], number: int) -> None:
    while stack:
        top = stack[-1]
        if entry.indent > top.indent:
            if entry.indent != top.indent + _INDENT or not top.range.contains(entry.range):
                raise IomemError(f"line {number} is not inside the line above it")
            return
        if entry.indent == top.indent and top.range.overlaps(entry.range):
            # Siblings never overlap: this one is deeper than the kernel indents.
            if entry.indent < _LEVELS_INDENTED * _INDENT or not top.range.contains(entry.range):
                raise IomemError(f"line {number} overlaps its neighbour")
            if len(stack) >= _MOST_LEVELS:
                raise IomemError(f"line {number} is {len(stack)} levels deep")
            return
        if entry.range.start < top.range.start:
            raise IomemError(f"line {number} is out of order")
        _close(stack, roots)
    if entry.indent:
        raise IomemError(f"line {number} is indented below nothing")


def _close(stack: list[_Open], roots: list[IomemEntry]) -> None:
    done = stack.pop()
    (stack[-1].children if stack else roots).append(done.closed())


def _pruned(entry: IomemEntry, span: MemoryRange) -> IomemEntry:
    return IomemEntry(
        entry.range,
        entry.name,
        tuple(_pruned(child, span) for child in entry.children if child.range.overlaps(span)),
    )


def _with_depth(entry: IomemEntry, depth: int) -> Iterator[tuple[int, IomemEntry]]:
    yield depth, entry
    for child in entry.children:
        yield from _with_depth(child, depth + 1)
