# SPDX-License-Identifier: GPL-2.0-or-later
"""What lies where in one run: the rows of its address-space picture, and a scale to draw them."""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.contract.observation import Observation
from harness.contract.observed_owners import KMEM
from harness.contract.result_record import OwnedRecord, OwnershipRecord, RunRecord
from harness.platform.memory_range import MIB, MemoryRange

Kind = Literal["reserved", "window", "decoder", "region", "dax", "ram", "owner"]

# memmap=SIZE%START[-TYPE]+0xefffffff, as the harness writes it.
_SOFT_RESERVED = re.compile(
    r"\bmemmap=(?P<size>0x[0-9a-f]+)%(?P<start>0x[0-9a-f]+)(?:-\d+)?\+0xefffffff\b"
)
_WINDOW = re.compile(r"CXL Window \d+")
_GAP_WIDTH = 34.0
_LEAST_WIDTH = 92.0
_MOST_WIDTH = 260.0


@dataclass(frozen=True)
class Box:
    """A thing with a range.

    Attributes:
        range: where it lies.
        label: its name.
        more: a second word on it, such as the use of an owned range.
        owner: for owners, who; else empty.
        wrong: whether it should not be so: somebody else should own the range or use it
            otherwise, or no dax device should be there.
    """

    range: MemoryRange
    label: str
    more: str = ""
    owner: str = ""
    wrong: bool = False


@dataclass(frozen=True)
class Lane:
    """Things of one kind; they do not overlap each other."""

    title: str
    kind: Kind
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class AddressSpace:
    """What should be (`expected`) and what was found (`observed`), each from the outside in."""

    expected: tuple[Lane, ...]
    observed: tuple[Lane, ...]

    def boxes(self) -> tuple[Box, ...]:
        """Everything, lane by lane."""
        return tuple(box for lane in (*self.expected, *self.observed) for box in lane.boxes)


def address_space(
    record: RunRecord,
    observation: Observation | None,
    state: Mapping[str, Any],
    kernel: Mapping[str, Any],
    decoders: Iterable[Mapping[str, Any]],
) -> AddressSpace:
    """The rows of a run's picture.

    Args:
        record: its result.
        observation: what was read from the guest, if anything was.
        state: `firmware_state.json` of the evidence; empty where it is missing.
        kernel: `kernel.json` of the evidence, for the command line.
        decoders: `firmware.json` of the evidence.
    """
    expected = [
        *_lanes("Soft Reserved (firmware)", "reserved", _reserved(record, state, kernel)),
        *_lanes("CXL windows", "window", _windows(observation, state)),
        *_lanes("HDM decoders committed", "decoder", _decoders(decoders)),
        *_lanes("expected owner", "owner", _expected(record)),
    ]
    observed = [*_lanes("observed owner", "owner", _observed(record.owners))]
    for number, step in enumerate(record.steps, 1):
        if step.outcome == "broke":
            observed += _lanes(f"owner after step {number}", "owner", _observed(step.owners))
    if observation is not None:
        regions = [Box(one.range, one.name) for one in observation.regions if one.range]
        strange = [
            MemoryRange.parse(one.range) for one in record.findings if one.rule == "4" and one.range
        ]
        devices = [
            Box(
                span,
                one.name,
                one.driver or "no driver",
                wrong=any(part.overlaps(span) for part in strange),
            )
            for one in observation.dax
            for span in one.ranges
        ]
        ram = [Box(one.range, KMEM) for one in observation.iomem.walk() if one.name == KMEM]
        observed += [
            *_lanes("CXL regions", "region", regions),
            *_lanes("dax devices", "dax", devices),
            *_lanes("System RAM (kmem)", "ram", ram),
        ]
    return AddressSpace(tuple(expected), tuple(observed))


def _reserved(
    record: RunRecord, state: Mapping[str, Any], kernel: Mapping[str, Any]
) -> Iterable[Box]:
    names = {MemoryRange.parse(one.range): one.name for one in record.owners}
    found = [
        (_stated(one["range"]), str(one["name"]))
        for one in _dicts(state.get("soft_reserved"))
        if "range" in one and "name" in one
    ]
    if not found:
        line = str(kernel.get("command_line", ""))
        spans = [
            MemoryRange.of_size(int(match["start"], 16), int(match["size"], 16))
            for match in _SOFT_RESERVED.finditer(line)
            if int(match["size"], 16)
        ]
        found = [(span, names.get(span, "Soft Reserved")) for span in spans]
    return [Box(span, name) for span, name in found if span is not None]


def _windows(observation: Observation | None, state: Mapping[str, Any]) -> Iterable[Box]:
    stated = [_stated(one) for one in _dicts(state.get("windows"))]
    if stated:
        return [Box(span, f"Window {n}") for n, span in enumerate(stated) if span is not None]
    if observation is None:
        return []
    entries = (one for one in observation.iomem.walk() if _WINDOW.fullmatch(one.name))
    return [Box(one.range, one.name.removeprefix("CXL ")) for one in entries]


def _decoders(decoders: Iterable[Mapping[str, Any]]) -> Iterable[Box]:
    """One box for each range, with the devices that decode it."""
    by_range: dict[MemoryRange, list[str]] = {}
    for one in decoders:
        span = _stated(one.get("range"))
        component = one.get("component")
        if span is None or not isinstance(component, dict):
            continue
        names = by_range.setdefault(span, [])
        if component.get("kind") == "endpoint":
            names.append(str(component.get("name")))
    return [Box(span, " + ".join(dict.fromkeys(names))) for span, names in by_range.items()]


def _expected(record: RunRecord) -> Iterable[Box]:
    return [
        Box(
            MemoryRange.parse(one.range), one.expected.owner, _use(one.expected), one.expected.owner
        )
        for one in record.owners
    ]


def _observed(owners: Iterable[OwnedRecord]) -> Iterable[Box]:
    return [
        Box(
            MemoryRange.parse(piece.range),
            piece.owner,
            _use(piece.ownership),
            piece.owner,
            one.is_wrong(piece),
        )
        for one in owners
        for piece in one.observed
    ]


def _use(ownership: OwnershipRecord) -> str:
    return "" if ownership.use == "none" else ownership.use


def _dicts(raw: object) -> list[dict[str, Any]]:
    return [one for one in raw if isinstance(one, dict)] if isinstance(raw, list) else []


def _stated(raw: object) -> MemoryRange | None:
    """A range as `asdict` writes it, None for anything else."""
    if not isinstance(raw, dict):
        return None
    try:
        return MemoryRange(int(raw["start"]), int(raw["end"]))
    except (KeyError, TypeError, ValueError):
        return None


def _lanes(title: str, kind: Kind, boxes: Iterable[Box]) -> list[Lane]:
    """As many lanes as it takes for none of the boxes to overlap another of its lane."""
    rows: list[list[Box]] = []
    for box in sorted(boxes, key=lambda one: (one.range.start, -one.range.end)):
        for row in rows:
            if row[-1].range.end < box.range.start:
                row.append(box)
                break
        else:
            rows.append([box])
    return [Lane(title if not n else "", kind, tuple(row)) for n, row in enumerate(rows)]


@dataclass(frozen=True)
class Segment:
    """Neighbouring addresses that are drawn to one scale.

    Attributes:
        range: which addresses.
        x: where it begins, in pixels.
        width: pixels.
        gap: whether nothing lies there, so that it is drawn short.
    """

    range: MemoryRange
    x: float
    width: float
    gap: bool


class Scale:
    """From addresses to pixels: in order and without overlap, but large ranges are drawn shorter.

    Between two neighbouring edges of anything, the scale is linear; a stretch where nothing lies
    is a short gap.

    Args:
        ranges: everything that is drawn, at least one range.
        least: the least width of the whole in pixels, more than 0.
    """

    def __init__(self, ranges: Sequence[MemoryRange], least: float = 1.0) -> None:
        edges = sorted({edge for one in ranges for edge in (one.start, one.end + 1)})
        spans = [MemoryRange(start, after - 1) for start, after in itertools.pairwise(edges)]
        empty = [not any(one.overlaps(span) for one in ranges) for span in spans]
        filled = sum(_width(span.size) for span, gap in zip(spans, empty, strict=True) if not gap)
        stretch = max((least - _GAP_WIDTH * sum(empty)) / filled, 1.0)
        segments: list[Segment] = []
        x = 0.0
        for span, gap in zip(spans, empty, strict=True):
            width = _GAP_WIDTH if gap else _width(span.size) * stretch
            segments.append(Segment(span, x, width, gap))
            x += width
        self.segments = tuple(segments)
        self.width = x
        self._starts = [one.range.start for one in segments]

    def at(self, address: int) -> float:
        """Pixels from the left, for an address within what is drawn or the one after its end."""
        segment = self.segments[max(bisect.bisect_right(self._starts, address) - 1, 0)]
        share = (address - segment.range.start) / segment.range.size
        return segment.x + segment.width * share

    def span(self, one: MemoryRange) -> tuple[float, float]:
        """Where a range begins, and how wide it is."""
        left = self.at(one.start)
        return left, self.at(one.end + 1) - left


def _width(size: int) -> float:
    doublings = math.log2(max(size / (256 * MIB), 1))
    return min(_LEAST_WIDTH + 22.0 * doublings, _MOST_WIDTH)
