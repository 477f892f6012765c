# SPDX-License-Identifier: GPL-2.0-or-later
"""The observed owner of each byte of a range: from sysfs, with which /proc/iomem must agree."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from harness.contract.iomem import Iomem
from harness.contract.observation import DaxDevice, Observation
from harness.contract.result import Finding, Piece
from harness.platform.memory_range import MemoryRange, format_size
from harness.scenario.scenario import OwnerName, Use

KMEM = "System RAM (kmem)"
_Disagreement = tuple[str, str, str, MemoryRange]
"""Kind, subject and text of a finding, and its range."""
_NOT_ENTERED = re.compile(r"construct_region (region\d+) cannot insert resource")


def pieces_of(span: MemoryRange, observation: Observation) -> tuple[Piece, ...]:
    """The parts of a range by observed owner, ascending, covering it whole.

    A dax device owns what its mappings cover once a driver holds it, or while no dax driver is
    there that could. A device that the loaded kmem driver failed to take owns nothing: its memory
    is unusable. Memory that kmem holds is System RAM only where /proc/iomem has it so.
    """
    pieces: list[Piece] = []
    borders = [r for device in observation.dax for r in device.ranges]
    ram = [entry.range for entry in observation.iomem.named(r"System RAM.*")]
    for part in _cut(span, [*borders, *ram, *observation.offline]):
        piece = _piece(part, observation)
        if pieces and _alike(pieces[-1], piece):
            last = pieces.pop()
            piece = replace(last, range=MemoryRange(last.range.start, piece.range.end))
        pieces.append(piece)
    return tuple(pieces)


def double_claims(
    span: MemoryRange, observation: Observation
) -> tuple[tuple[MemoryRange, str], ...]:
    """The parts of a range that several dax devices cover, or one and other RAM; with names."""
    found = []
    ram = [one for one in observation.iomem.named(r"System RAM.*") if one.name != KMEM]
    borders = [r for device in observation.dax for r in device.ranges]
    for part in _cut(span, [*borders, *(one.range for one in ram)]):
        names = [_describe(device) for device in _covering(part, observation.dax)]
        if names:
            names += [one.name for one in ram if one.range.contains(part)]
        if len(names) > 1:
            found.append((part, " and ".join(names)))
    return tuple(found)


def disagreements(observation: Observation) -> tuple[Finding, ...]:
    """Differences between /proc/iomem and sysfs about dax devices and regions."""
    about = (_about_entries, _about_devices, _about_regions, _about_kmem)
    return tuple(
        Finding(
            *("consistency", text, span, observation.iomem.within(span).lines()),
            kind=kind,
            subject=subject,
        )
        for find in about
        for kind, subject, text, span in find(observation)
    )


def _about_entries(observation: Observation) -> Iterator[_Disagreement]:
    """Entries of /proc/iomem that are named after a dax device."""
    known = {device.name: device for device in observation.dax}
    for entry in observation.iomem.named(r"dax\d+\.\d+"):
        name, device = entry.name, known.get(entry.name)
        if device is None:
            text = f"iomem has {name}, but no such device exists in sysfs"
            yield "device_missing", name, text, entry.range
        elif device.driver is None:
            text = f"iomem has {name}, but in sysfs that device has no driver"
            yield "device_without_driver", name, text, entry.range
        elif not any(one.contains(entry.range) for one in device.ranges):
            text = f"iomem has {name} at another place than its mappings in sysfs"
            yield "device_elsewhere", name, text, entry.range


def _about_devices(observation: Observation) -> Iterator[_Disagreement]:
    """Dax devices with a driver and their entries in /proc/iomem."""
    for device in observation.dax:
        if device.driver is None:
            continue
        name, holds = device.name, f"{device.driver} holds {device.name}"
        for one in device.ranges:
            entries = [e for e in observation.iomem.named(device.name) if one.overlaps(e.range)]
            if not entries:
                yield "device_not_in_iomem", name, f"{holds}, but iomem does not show it", one
            elif device.driver != "kmem":
                if one.minus(e.range for e in entries):
                    text = f"{holds}, but iomem has only a part of it"
                    yield "device_partly_in_iomem", name, text, one
            elif not any(below.name == KMEM for e in entries for below in e.walk()):
                yield "kmem_without_ram", name, f"{holds}, but iomem has no {KMEM} in it", one


def _about_regions(observation: Observation) -> Iterator[_Disagreement]:
    """Regions about which iomem, sysfs and dax devices differ: a kernel can leave one behind.

    A region that the kernel reports as not inserted into iomem is no disagreement (Linux,
    drivers/cxl/core/region.c, __construct_region).
    """
    left_out = {
        match[1]
        for record in observation.dmesg
        if (match := _NOT_ENTERED.search(record.text)) is not None
    }
    regions = {(one.name, one.range) for one in observation.regions if one.range is not None}
    shown = {(entry.name, entry.range) for entry in observation.iomem.named(r"region\d+")}
    for name, span in sorted(shown - regions):
        yield "region_missing", name, f"iomem has {name}, but sysfs has no such region there", span
    for name, span in sorted(regions - shown):
        if name not in left_out:
            yield "region_not_in_iomem", name, f"sysfs has {name}, but iomem does not show it", span
    for device in observation.dax:
        if device.parent == "dax_cxl":
            committed = [
                one.range
                for one in observation.regions
                if one.committed and one.range and one.name in device.path.split("/")
            ]
            for span in device.ranges:
                if not any(one.contains(span) for one in committed):
                    text = f"{device.name} is of a region that is not committed over it"
                    yield "region_uncommitted", device.name, text, span


def _about_kmem(observation: Observation) -> Iterator[_Disagreement]:
    for entry in observation.iomem.named(r"System RAM \(kmem\)"):
        holders = [d for d in _covering(entry.range, observation.dax) if d.driver == "kmem"]
        if not holders:
            text = f"iomem has {KMEM} without a dax device of kmem"
            yield "ram_without_device", "", text, entry.range


def online(iomem: Iomem, spans: Iterable[MemoryRange]) -> bool:
    """Return whether kmem holds all of these ranges, by iomem alone."""
    held = [entry.range for entry in iomem.named(r"System RAM \(kmem\)")]
    return not any(span.minus(held) for span in spans)


def _cut(span: MemoryRange, by: Iterable[MemoryRange]) -> tuple[MemoryRange, ...]:
    """`span` cut at every border of `by`, ascending."""
    starts = {span.start}
    for one in by:
        starts.update(at for at in (one.start, one.end + 1) if span.start < at <= span.end)
    borders = [*sorted(starts), span.end + 1]
    return tuple(MemoryRange(a, b - 1) for a, b in itertools.pairwise(borders))


def _covering(part: MemoryRange, devices: Sequence[DaxDevice]) -> list[DaxDevice]:
    return [d for d in devices if any(one.contains(part) for one in d.ranges)]


def _piece(part: MemoryRange, observation: Observation) -> Piece:
    covering = _covering(part, observation.dax)
    for device in covering:
        owner = owner_of(device)
        if owner != "nobody" and (device.driver or "kmem" not in observation.dax_drivers):
            use = _use(device, part, observation)
            lost = device.driver == "kmem" and use == "none"
            via = _describe(device) + (_not_taken(device, part, observation) if lost else "")
            return Piece(part, owner, use, via, device.target_node)
    if any(e.range.contains(part) for e in observation.iomem.named("System RAM")):
        return Piece(part, "firmware_ram", "none", "iomem: System RAM")
    chain = " > ".join(entry.name for entry in observation.iomem.chain(part.start))
    if covering:
        names = ", ".join(
            _describe(d) + ("" if d.driver else " without a driver") for d in covering
        )
        return Piece(part, "nobody", "none", f"{names}; iomem: {chain or 'nothing'}")
    return Piece(part, "nobody", "none", f"iomem: {chain or 'nothing'}")


def owner_of(device: DaxDevice) -> OwnerName:
    """The owner of what a dax device covers, by its parent."""
    if device.parent == "dax_cxl":
        return "dax_cxl"
    return "dax_hmem" if device.parent == "dax_hmem" else "nobody"


def _use(device: DaxDevice, part: MemoryRange, observation: Observation) -> Use:
    if device.driver == "kmem":
        if part.minus(entry.range for entry in observation.iomem.named(re.escape(KMEM))):
            return "none"
        if not part.minus(observation.offline):
            return "offline"
    uses: dict[str | None, Literal["system_ram", "devdax"]] = {
        "kmem": "system_ram",
        "device_dax": "devdax",
    }
    return uses.get(device.driver, "none")


def _not_taken(device: DaxDevice, part: MemoryRange, observation: Observation) -> str:
    """Explain, by alignment if possible, why kmem did not take a part of its device's memory."""
    block = observation.block_size
    whole = next(one for one in device.ranges if one.contains(part))
    first, end = -(-whole.start // block) * block, (whole.end + 1) // block * block
    if part.end < first or part.start >= end:
        return f", which takes whole memory blocks of {format_size(block)} only"
    return f", which did not take it: iomem has no {KMEM} there"


def _describe(device: DaxDevice) -> str:
    above = device.path.split("/")
    made = [part for part in above if part.startswith(("region", "hmem."))]
    return " > ".join([*made, device.name, *([device.driver] if device.driver else [])])


def _alike(one: Piece, other: Piece) -> bool:
    return (one.owner, one.use, one.via) == (other.owner, other.use, other.via)
