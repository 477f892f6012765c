# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/iomem with its differences from what a run should have left marked, line by line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.contract.iomem import IomemEntry
from harness.contract.observation import Observation
from harness.contract.observed_owners import KMEM
from harness.contract.result import OwnedRange, RunResult
from harness.platform.memory_range import MemoryRange
from harness.scenario.owner import Ownership

Mark = Literal["same", "wrong", "missing"]

_DAX = re.compile(r"dax\d+\.\d+")
_REGION = re.compile(r"region\d+")


@dataclass(frozen=True)
class MarkedLine:
    """A line of /proc/iomem, or one that should be there.

    Attributes:
        mark: `same` where nothing is wrong, `wrong` for a line that should be another, `missing`
            for a line that is not there.
        depth: how deep it is nested, 0 for the outermost.
        text: range and name, as the kernel prints them.
        note: what is wrong with it.
        near: whether it touches a range that the scenario is about.
    """

    mark: Mark
    depth: int
    text: str
    note: str = ""
    near: bool = False


@dataclass(frozen=True)
class _Place:
    """A misowned part of a range."""

    range: MemoryRange
    name: str
    expected: Ownership
    found: Ownership


def marked_iomem(
    record: RunResult, observation: Observation, interesting: Sequence[MemoryRange]
) -> tuple[MarkedLine, ...]:
    """The whole tree, with what is wrong or missing in misowned ranges and under strangers.

    Args:
        record: the result.
        observation: what was read from the guest.
        interesting: ranges that the scenario is about, beside those that have owners.
    """
    places = [place for owned in record.owners for place in _misowned(owned)]
    strangers = [one.range for one in record.findings if one.rule == "4" and one.range]
    near = [*interesting, *(one.range for one in record.owners), *strangers]
    lines: list[MarkedLine] = []
    pending = sorted(places, key=lambda one: one.range)
    for root in observation.iomem.roots:
        while pending and pending[0].range.end < root.range.start:
            lines += _missing(pending.pop(0), 0, observation)
        _walk(root, 0, pending, strangers, observation, near, lines)
    for place in pending:
        lines += _missing(place, 0, observation)
    return tuple(lines)


def _walk(
    entry: IomemEntry,
    depth: int,
    pending: list[_Place],
    strangers: Sequence[MemoryRange],
    observation: Observation,
    near: Sequence[MemoryRange],
    lines: list[MarkedLine],
) -> None:
    parents = {device.name: device.parent for device in observation.dax}
    note = _complaint(entry, pending, strangers, parents)
    close = any(one.overlaps(entry.range) for one in near) and not _is_hardware(entry)
    text = f"{entry.range} : {entry.name}"
    lines.append(MarkedLine("wrong" if note else "same", depth, text, note, close or bool(note)))
    # What is missing would be below the innermost entry that contains it whole and is no device.
    mine = [
        place
        for place in pending
        if not _of_device(entry)
        and entry.range.contains(place.range)
        and not any(
            child.range.contains(place.range) and not _of_device(child) for child in entry.children
        )
    ]
    for child in entry.children:
        _walk(child, depth + 1, pending, strangers, observation, near, lines)
    for place in mine:
        lines += _missing(place, depth + 1, observation)
        pending.remove(place)
    for place in [one for one in pending if not depth and one.range.overlaps(entry.range)]:
        # It reaches out of every entry: what is missing comes behind the last that it touches.
        if place.range.end <= entry.range.end:
            lines += _missing(place, 0, observation)
            pending.remove(place)


def _is_hardware(entry: IomemEntry) -> bool:
    return entry.name.startswith(("PCI ", "Kernel "))


def _misowned(owned: OwnedRange) -> Iterable[_Place]:
    for piece in owned.wrong_pieces():
        yield _Place(piece.range, owned.name, owned.expected, piece.ownership)


def _complaint(
    entry: IomemEntry,
    places: Iterable[_Place],
    strangers: Iterable[MemoryRange],
    parents: dict[str, str],
) -> str:
    """What is wrong with a line that is there, or nothing."""
    is_dax, is_region = _DAX.fullmatch(entry.name), _REGION.fullmatch(entry.name)
    if is_dax and any(one.overlaps(entry.range) for one in strangers):
        return "covers what is not Soft Reserved"
    touched = [one for one in places if one.range.overlaps(entry.range)]
    if not touched:
        return ""
    if entry.name == "Soft Reserved":
        left = [one for one in touched if one.found.owner == "nobody"]
        return f"nobody owns {left[0].range} of {left[0].name}" if left else ""
    place = touched[0]
    expected = place.expected
    parent = parents.get(entry.name, "")
    if is_dax and parent and parent != expected.owner:
        return f"of {parent}; {place.name} should belong to {expected}"
    if is_region and expected.owner != "dax_cxl":
        return f"a region where {place.name} should belong to {expected}"
    if entry.name == KMEM and expected.use != "system_ram":
        return f"{place.name} should not be System RAM"
    return ""


def _of_device(entry: IomemEntry) -> bool:
    return bool(_DAX.fullmatch(entry.name)) or entry.name == KMEM


def _missing(place: _Place, depth: int, observation: Observation) -> Iterable[MarkedLine]:
    """The lines that the expected owner would have made for a part of a range."""
    inside = list(observation.iomem.within(place.range).walk())
    note = f"{place.name}: expected {place.expected}, found {place.found}"
    wanted: list[str] = []
    if place.expected.owner == "dax_cxl" and not any(_REGION.fullmatch(one.name) for one in inside):
        wanted.append("regionN")
    # A device of another driver is marked where it stands.
    if place.expected.owner in ("dax_cxl", "dax_hmem") and not any(
        _DAX.fullmatch(one.name) for one in inside
    ):
        wanted.append("daxN.N")
    if place.expected.use == "system_ram" and not any(one.name == KMEM for one in inside):
        wanted.append(KMEM)
    for number, name in enumerate(wanted):
        yield MarkedLine(
            "missing", depth + number, f"{place.range} : {name}", "" if number else note, True
        )
