# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/iomem with the lines marked that are wrong or missing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.contract.iomem import IomemEntry
from harness.contract.observation import Observation
from harness.contract.observed_owners import KMEM
from harness.contract.result import Piece, RunResult
from harness.platform.memory_range import MemoryRange
from harness.scenario.owner import Ownership

Mark = Literal["same", "wrong", "missing"]

_DAX = re.compile(r"dax\d+\.\d+")
_REGION = re.compile(r"region\d+")


@dataclass(frozen=True)
class MarkedLine:
    """A line of /proc/iomem, or one that should be there.

    Attributes:
        mark: `missing` for a line that the kernel did not print.
        depth: nesting, 0 for the outermost.
        text: range and name, as the kernel prints them.
        note: the reason for the mark.
        near: whether it touches a range that the scenario is about.
    """

    mark: Mark
    depth: int
    text: str
    note: str = ""
    near: bool = False


@dataclass(frozen=True)
class _Misowned:
    """A part of a range that has another owner, use or node than expected.

    Attributes:
        parent: the entry below which its missing lines belong, None for the outermost level.
    """

    name: str
    expected: Ownership
    piece: Piece
    parent: IomemEntry | None

    @property
    def range(self) -> MemoryRange:
        return self.piece.range


@dataclass(frozen=True)
class _Marks:
    """The data that decides how each line is marked.

    Attributes:
        observation: the guest.
        misowned: in ascending order.
        unexpected: ranges of dax devices on memory that is not Soft Reserved.
        near: ranges that the scenario is about.
    """

    observation: Observation
    misowned: tuple[_Misowned, ...]
    unexpected: tuple[MemoryRange, ...]
    near: tuple[MemoryRange, ...]

    def lines(self, entry: IomemEntry, depth: int) -> Iterator[MarkedLine]:
        """The lines of an entry and of everything below it."""
        note = self._note(entry)
        hardware = entry.name.startswith(("PCI ", "Kernel "))
        close = not hardware and any(one.overlaps(entry.range) for one in self.near)
        text = f"{entry.range} : {entry.name}"
        yield MarkedLine("wrong" if note else "same", depth, text, note, close or bool(note))
        for child in entry.children:
            yield from self.lines(child, depth + 1)
        for place in self.misowned:
            if place.parent is entry:
                yield from self.missing(place, depth + 1)

    def _note(self, entry: IomemEntry) -> str:
        """The reason why a line should not be there, or nothing."""
        is_dax = _DAX.fullmatch(entry.name)
        if is_dax and any(one.overlaps(entry.range) for one in self.unexpected):
            return "covers what is not Soft Reserved"
        touched = [place for place in self.misowned if place.range.overlaps(entry.range)]
        if not touched:
            return ""
        if entry.name == "Soft Reserved":
            left = [place for place in touched if place.piece.owner == "nobody"]
            return f"{left[0].range} of {left[0].name} has no owner" if left else ""
        name, expected = touched[0].name, touched[0].expected
        parent = next((one.parent for one in self.observation.dax if one.name == entry.name), "")
        if is_dax and parent and parent != expected.owner:
            return f"of {parent}; {name} should belong to {expected}"
        if _REGION.fullmatch(entry.name) and expected.owner != "dax_cxl":
            return f"a region where {name} should belong to {expected}"
        if entry.name == KMEM and expected.use != "system_ram":
            return f"{name} should not be System RAM"
        return ""

    def missing(self, place: _Misowned, depth: int) -> Iterator[MarkedLine]:
        """The lines that the expected owner would have made for a part of a range."""
        inside = [entry.name for entry in self.observation.iomem.within(place.range).walk()]
        expected = place.expected
        names: list[str] = []
        if expected.owner == "dax_cxl" and not any(map(_REGION.fullmatch, inside)):
            names.append("regionN")
        # A device of another driver is marked at its own line.
        if expected.owner in ("dax_cxl", "dax_hmem") and not any(map(_DAX.fullmatch, inside)):
            names.append("daxN.N")
        if expected.use == "system_ram" and KMEM not in inside:
            names.append(KMEM)
        note = f"{place.name}: expected {expected}, found {place.piece.ownership}"
        for number, name in enumerate(names):
            text = f"{place.range} : {name}"
            yield MarkedLine("missing", depth + number, text, "" if number else note, True)


def marked_iomem(
    record: RunResult, observation: Observation, interesting: Sequence[MemoryRange]
) -> tuple[MarkedLine, ...]:
    """Mark lines in misowned ranges, and of dax devices where none may be, as wrong or missing.

    Args:
        record: the result.
        observation: the guest.
        interesting: ranges of the scenario other than those that have owners.
    """
    misowned = [
        _Misowned(owned.name, owned.expected, piece, _parent(piece.range, observation))
        for owned in record.owners
        for piece in owned.wrong_pieces()
    ]
    unexpected = tuple(one.range for one in record.findings if one.rule == "4" and one.range)
    marks = _Marks(
        observation,
        tuple(sorted(misowned, key=lambda place: place.range)),
        unexpected,
        (*interesting, *(one.range for one in record.owners), *unexpected),
    )
    lines: list[MarkedLine] = []
    outside = [place for place in marks.misowned if place.parent is None]
    for root in observation.iomem.roots:
        while outside and outside[0].range.end < root.range.start:
            lines += marks.missing(outside.pop(0), 0)
        lines += marks.lines(root, 0)
    for place in outside:
        lines += marks.missing(place, 0)
    return tuple(lines)


def _parent(span: MemoryRange, observation: Observation) -> IomemEntry | None:
    """The innermost entry that contains a range and is not of a device."""
    containing = [
        entry
        for entry in observation.iomem.walk()
        if entry.range.contains(span) and not _of_device(entry)
    ]
    return containing[-1] if containing else None


def _of_device(entry: IomemEntry) -> bool:
    return bool(_DAX.fullmatch(entry.name)) or entry.name == KMEM
