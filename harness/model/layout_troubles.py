# SPDX-License-Identifier: GPL-2.0-or-later
"""What is special about a layout, so that a known issue can say which layouts it breaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from harness.model.acpi_tables import MemoryAffinity
from harness.model.memory_range import MemoryRange, merge_adjacent
from harness.model.placement import FirmwareState

Trouble = Literal["covered_in_part", "srat_entry_differs"]


def troubled(
    trouble: Trouble, state: FirmwareState, described: Sequence[MemoryAffinity]
) -> tuple[MemoryRange, ...]:
    """Where a layout has a trouble, with all that is drawn into it; empty where it has none.

    `covered_in_part`: a region or a window lies over a part of a Soft Reserved range, so that no
    one resource can be the whole range. What else lies in such a region belongs to it. A region
    counts that Linux gives up: it stays in iomem (drivers/cxl/core/region.c, __construct_region).

    `srat_entry_differs`: an entry of the SRAT, which the kernel looks at, overlaps a Soft Reserved
    range and is another.

    Args:
        trouble: which.
        state: what the firmware leaves.
        described: the SRAT's memory entries, if the kernel makes ranges of them: where there is a
            HMAT (Linux, drivers/acpi/numa/hmat.c).
    """
    reserved = [one.range for one in state.soft_reserved]
    if trouble == "covered_in_part":
        regions = [one.range for one in state.decoders if not one.hidden]
        others = [*regions, *state.windows]
        cut = [one for one in reserved if any(_cuts(other, one) for other in others)]
        drawn = [one for one in regions if any(one.overlaps(other) for other in cut)]
        return merge_adjacent([*cut, *drawn])
    entries = [one.range for one in described]
    pairs = [
        (one, entry)
        for one in reserved
        for entry in entries
        if one.overlaps(entry) and one != entry
    ]
    return merge_adjacent(one for pair in pairs for one in pair)


def _cuts(other: MemoryRange, one: MemoryRange) -> bool:
    return other.overlaps(one) and not other.contains(one)
