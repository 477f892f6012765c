# SPDX-License-Identifier: GPL-2.0-or-later
"""Properties of layouts by which a known issue names the layouts that it breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from harness.platform.firmware_state import FirmwareState, NamedRange
from harness.platform.memory_range import GIB, MIB, MemoryRange, merge_adjacent
from harness.scenario.owner import Ownership

Owners = Mapping[str, Ownership]
Trouble = Literal[
    "covered_in_part",
    "crossed_by_region",
    "dax_cxl",
    "dax_hmem_in_window",
    "failed_region",
    "interleave_above_16k",
    "locked_region",
    "no_node",
    "range_beyond_srat",
    "region_larger",
    "srat_entry_beyond_range",
    "start_without_node",
    "unlocked_region",
    "within_memory_block",
]


def troubled(trouble: Trouble, state: FirmwareState, owners: Owners) -> tuple[MemoryRange, ...]:
    """The addresses at which a layout has a property; empty where it has not.

    Args:
        trouble: the property:
            `covered_in_part`: a region or a window lies over a part of a Soft Reserved range, so
            that no one resource can be the whole range. What else lies in such a region belongs to
            it. A region counts that Linux gives up: it stays in iomem (drivers/cxl/core/region.c,
            __construct_region);
            `crossed_by_region`: a region, also one that Linux gives up, begins or ends in a range
            and reaches beyond it;
            `dax_cxl`: dax_cxl should own it;
            `dax_hmem_in_window`: a range that overlaps a window and should be dax_hmem's;
            `failed_region`: a region that Linux cannot assemble, as its decoders disagree;
            `interleave_above_16k`: a region over several host bridges whose number times its
            granularity exceeds 16 KiB;
            `locked_region`, `unlocked_region`: should be dax_cxl's, with decoders locked or not;
            `no_node`: a range that no entry of the SRAT describes;
            `range_beyond_srat`: a range that entries of the SRAT, at which Linux looks, lie in but
            do not fill;
            `region_larger`: a region that should be dax_cxl's contains a range and is larger;
            `srat_entry_beyond_range`: an entry of the SRAT, at which Linux looks, overlaps a range
            and reaches beyond it;
            `start_without_node`: a range that begins outside the SRAT's entries and the windows;
            `within_memory_block`: a part of a range or region that is no whole memory block: of
            128 MiB, or with 64 GiB of RAM up to 2 GiB (arch/x86/mm/init_64.c,
            probe_memory_block_size()).
        state: what the firmware leaves.
        owners: the expected owners, by name.
    """
    return merge_adjacent(_FINDERS[trouble](state, owners))


def _covered_in_part(state: FirmwareState, _owners: Owners) -> Iterable[MemoryRange]:
    regions = _decoded(state)
    cut = [
        one
        for one in (unit for reserved in state.kernel_ranges() for unit in _units(reserved, state))
        if any(_overlaps_part(other, one) for other in (*regions, *state.windows))
    ]
    return [*cut, *_drawn_in(regions, cut)]


def _crossed(state: FirmwareState, _owners: Owners) -> Iterable[MemoryRange]:
    regions = _decoded(state)
    crossed = [
        one.range
        for one in state.kernel_ranges()
        if any(
            _overlaps_part(region, one.range) and _overlaps_part(one.range, region)
            for region in regions
        )
    ]
    return [*crossed, *_drawn_in(regions, crossed)]


def _owned_by_cxl(state: FirmwareState, owners: Owners) -> Iterable[MemoryRange]:
    return [
        one.range
        for one in state.judged_ranges()
        if one.name in owners and owners[one.name].owner == "dax_cxl"
    ]


def _hmem_in_window(state: FirmwareState, owners: Owners) -> Iterable[MemoryRange]:
    return [
        one.range
        for one in state.kernel_ranges()
        if owners[one.name].owner == "dax_hmem"
        and any(unit.overlaps(w) for unit in _units(one, state) for w in state.windows)
    ]


def _failed_region(state: FirmwareState, _owners: Owners) -> Iterable[MemoryRange]:
    return [one.range for one in state.decoders if not one.hidden and one.ports_range != one.range]


def _interleave_above_16k(state: FirmwareState, _owners: Owners) -> Iterable[MemoryRange]:
    return [
        one.range
        for one in state.decoders
        if one.window_ways > 1 and one.window_ways * one.granularity > 16384
    ]


def _no_node(state: FirmwareState, _owners: Owners) -> Iterable[MemoryRange]:
    described = [*state.ram, *state.hotplug_room, *(one.range for one in state.srat)]
    return [one.range for one in state.soft_reserved if one.range.minus(described) == (one.range,)]


def _start_without_node(state: FirmwareState, _owners: Owners) -> Iterable[MemoryRange]:
    added = [one.range for one in state.srat]
    described = [*state.ram, *state.hotplug_room, *added, *state.windows]
    return [
        one.range
        for one in state.kernel_ranges()
        if not any(known.start <= one.range.start <= known.end for known in described)
    ]


def _range_beyond_srat(state: FirmwareState, _owners: Owners) -> Iterable[MemoryRange]:
    return [
        one.range
        for one in state.kernel_ranges()
        if any(one.range != e and one.range.contains(e) for e in state.dividing)
    ]


def _srat_entry_beyond(state: FirmwareState, _owners: Owners) -> Iterable[MemoryRange]:
    return [
        both
        for one in state.kernel_ranges()
        for entry in state.dividing
        if entry.overlaps(one.range) and not one.range.contains(entry)
        for both in (one.range, entry)
    ]


def _region_larger(state: FirmwareState, owners: Owners) -> Iterable[MemoryRange]:
    owned = list(_owned_by_cxl(state, owners))
    return [
        region.range
        for region in state.regions()
        if any(region.range.contains(one) and region.range != one for one in owned)
    ]


def _within_block(state: FirmwareState, owners: Owners) -> Iterable[MemoryRange]:
    large = sum(one.size for one in state.ram) >= 64 * GIB - MIB
    block = 2 * GIB if large else 128 * MIB
    regions = [one.range for one in state.regions()]
    for one in state.judged_ranges():
        if one.name not in owners or owners[one.name].use != "system_ram":
            continue
        by_cxl = owners[one.name].owner == "dax_cxl"
        containing = [region for region in regions if by_cxl and region.contains(one.range)]
        device = containing[0] if containing else one.range
        first, end = -(-device.start // block) * block, (device.end + 1) // block * block
        yield from device.minus([MemoryRange(first, end - 1)] if first < end else [])


def _with_lock(locked: bool) -> Callable[[FirmwareState, Owners], Iterable[MemoryRange]]:
    def find(state: FirmwareState, owners: Owners) -> Iterable[MemoryRange]:
        decoders = [one.range for one in state.decoders if one.locked is locked]
        return [
            one
            for one in _owned_by_cxl(state, owners)
            if any(decoder.contains(one) for decoder in decoders)
        ]

    return find


_FINDERS: Mapping[Trouble, Callable[[FirmwareState, Owners], Iterable[MemoryRange]]] = {
    "covered_in_part": _covered_in_part,
    "crossed_by_region": _crossed,
    "dax_cxl": _owned_by_cxl,
    "dax_hmem_in_window": _hmem_in_window,
    "failed_region": _failed_region,
    "interleave_above_16k": _interleave_above_16k,
    "locked_region": _with_lock(True),
    "no_node": _no_node,
    "range_beyond_srat": _range_beyond_srat,
    "region_larger": _region_larger,
    "srat_entry_beyond_range": _srat_entry_beyond,
    "start_without_node": _start_without_node,
    "unlocked_region": _with_lock(False),
    "within_memory_block": _within_block,
}


def _decoded(state: FirmwareState) -> list[MemoryRange]:
    """What Linux makes regions of, also of those that it gives up."""
    return [one.range for one in state.decoders if not one.hidden]


def _units(reserved: NamedRange, state: FirmwareState) -> tuple[MemoryRange, ...]:
    """The ranges that dax_hmem registers for a Soft Reserved range.

    Entries of the SRAT that overlap it come first, and keep the range itself out
    (drivers/acpi/numa/hmat.c; drivers/dax/hmem/device.c).
    """
    return tuple(one for one in state.dividing if one.overlaps(reserved.range)) or (reserved.range,)


def _drawn_in(regions: list[MemoryRange], cut: list[MemoryRange]) -> list[MemoryRange]:
    return [one for one in regions if any(one.overlaps(other) for other in cut)]


def _overlaps_part(other: MemoryRange, one: MemoryRange) -> bool:
    return other.overlaps(one) and not other.contains(one)
