# SPDX-License-Identifier: GPL-2.0-or-later
"""The ranges of one run as lanes of a picture, and a scale to draw them."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.contract.observation import Observation
from harness.contract.observed_owners import KMEM
from harness.contract.result import OwnedRange, RunResult
from harness.platform.hdm_decoders import DecoderSetting
from harness.platform.memory_range import MIB, MemoryRange
from harness.runs.result_files import StoredRun
from harness.scenario.owner import Ownership

Kind = Literal["reserved", "window", "decoder", "region", "dax", "ram", "owner"]

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
        owner: for owned ranges; else empty.
        wrong: whether another owner or use, or no dax device, was expected.
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
    """The lanes of a picture: `expected` above the axis and `observed` below."""

    expected: tuple[Lane, ...]
    observed: tuple[Lane, ...]

    def boxes(self) -> tuple[Box, ...]:
        """Everything, lane by lane."""
        return tuple(box for lane in (*self.expected, *self.observed) for box in lane.boxes)


def address_space(run: StoredRun) -> AddressSpace:
    """Arrange the ranges of a run and of its evidence in lanes."""
    record, state = run.record, run.state
    expected = _lanes("expected owner", "owner", _expected(record))
    if state is not None:
        reserved = [Box(one.range, one.name) for one in state.soft_reserved]
        windows = [Box(span, f"Window {number}") for number, span in enumerate(state.windows)]
        expected = [
            *_lanes("Soft Reserved (firmware)", "reserved", reserved),
            *_lanes("CXL windows", "window", windows),
            *_lanes("HDM decoders committed", "decoder", _decoders(run.decoders)),
            *expected,
        ]
    observed = _lanes("observed owner", "owner", _observed(record.owners))
    for number, step in enumerate(record.steps, 1):
        if step.outcome == "broke":
            observed += _lanes(f"owner after step {number}", "owner", _observed(step.owners))
    if run.observation is not None:
        observed += _found(run.observation, record)
    return AddressSpace(tuple(expected), tuple(observed))


def _found(observation: Observation, record: RunResult) -> list[Lane]:
    """The regions, dax devices and System RAM of the guest."""
    stray = [finding.range for finding in record.findings if finding.rule == "4" and finding.range]
    regions = [Box(one.range, one.name) for one in observation.regions if one.range]
    devices = [
        Box(
            span,
            device.name,
            device.driver or "no driver",
            wrong=any(part.overlaps(span) for part in stray),
        )
        for device in observation.dax
        for span in device.ranges
    ]
    ram = [Box(entry.range, KMEM) for entry in observation.iomem.walk() if entry.name == KMEM]
    return [
        *_lanes("CXL regions", "region", regions),
        *_lanes("dax devices", "dax", devices),
        *_lanes("System RAM (kmem)", "ram", ram),
    ]


def _decoders(decoders: Iterable[DecoderSetting]) -> Iterable[Box]:
    """One box for each range, with the devices that decode it."""
    by_range: dict[MemoryRange, list[str]] = {}
    for decoder in decoders:
        names = by_range.setdefault(decoder.range, [])
        if decoder.component.kind == "endpoint":
            names.append(decoder.component.name)
    return [Box(span, " + ".join(dict.fromkeys(names))) for span, names in by_range.items()]


def _expected(record: RunResult) -> Iterable[Box]:
    return [
        Box(one.range, one.expected.owner, _use(one.expected), one.expected.owner)
        for one in record.owners
    ]


def _observed(owners: Iterable[OwnedRange]) -> Iterable[Box]:
    return [
        Box(piece.range, piece.owner, _use(piece.ownership), piece.owner, one.is_wrong(piece))
        for one in owners
        for piece in one.observed
    ]


def _use(ownership: Ownership) -> str:
    return "" if ownership.use == "none" else ownership.use


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
