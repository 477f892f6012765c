# SPDX-License-Identifier: GPL-2.0-or-later
"""Check that the guest has the machine that the scenario requested."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from harness.contract.dmesg import Record
from harness.contract.observation import Observation
from harness.platform.address_map import MachineLayout
from harness.platform.firmware_state import FirmwareState
from harness.platform.memory_range import MemoryRange, merge_adjacent

_SOFT_RESERVED = re.compile(
    r"(?:user|BIOS-e820): \[mem 0x(?P<start>[0-9a-f]+)-0x(?P<end>[0-9a-f]+)\]\s+soft reserved"
)
_SRAT = re.compile(
    r"ACPI: SRAT: Node \d+ PXM (?P<node>\d+) \[mem 0x(?P<start>[0-9a-f]+)-0x(?P<end>[0-9a-f]+)\]"
    r"(?P<hotplug> hotplug)?"
)


def early_problems(
    records: Sequence[Record], state: FirmwareState, layout: MachineLayout
) -> tuple[str, ...]:
    """List differences between the firmware state and the kernel's early messages.

    Compares Soft Reserved ranges and the SRAT's memory entries, exactly. The kernel does not join
    adjacent Soft Reserved entries (Linux, arch/x86/kernel/e820.c, e820_type_mergeable()); a range
    that is partly RAM takes several `memmap=` parameters, and so several entries.
    """
    problems = []
    requested = sorted(one.range for one in state.soft_reserved)
    shown = sorted(
        MemoryRange(int(match["start"], 16), int(match["end"], 16))
        for match in _matches(_SOFT_RESERVED, records)
    )
    if requested != _joined_within(requested, shown):
        problems.append(
            f"requested Soft Reserved {_listed(requested)}, the kernel shows {_listed(shown)}"
        )
    entries = {(one.node, one.range, one.hotplug) for one in (*layout.memory, *state.srat)}
    found = {
        (
            int(match["node"]),
            MemoryRange(int(match["start"], 16), int(match["end"], 16)),
            bool(match["hotplug"]),
        )
        for match in _matches(_SRAT, records)
    }
    if entries != found:
        missing = ", ".join(f"{span} of node {node}" for node, span, _ in sorted(entries - found))
        extra = ", ".join(f"{span} of node {node}" for node, span, _ in sorted(found - entries))
        problems.append(
            f"SRAT entries missing: {missing or 'none'}; not requested: {extra or 'none'}"
        )
    return tuple(problems)


def _joined_within(ranges: Iterable[MemoryRange], parts: list[MemoryRange]) -> list[MemoryRange]:
    """`parts`, those joined that lie in one of `ranges`."""
    found = list(parts)
    for whole in ranges:
        inside = [one for one in found if whole.contains(one)]
        found = [one for one in found if one not in inside]
        found += merge_adjacent(inside)
    return sorted(found)


def window_problems(observation: Observation, state: FirmwareState) -> tuple[str, ...]:
    """List differences between the windows and /proc/iomem; none without cxl_acpi.

    An entry may be larger than its window, and the next one smaller; see `consistency`.
    """
    windows = [entry.range for entry in observation.iomem.named(r"CXL Window \d+")]
    if windows and (
        any(one.minus(windows) for one in state.windows)
        or not all(any(entry.overlaps(one) for one in state.windows) for entry in windows)
    ):
        return (f"requested windows at {_listed(state.windows)}, iomem shows {_listed(windows)}",)
    return ()


def absent_windows(observation: Observation, state: FirmwareState) -> tuple[str, ...]:
    """Report that no window exists although cxl_acpi, which creates them, is loaded.

    A kernel that breaks because of it has other findings; one that passes was not tested.
    """
    shown = observation.iomem.named(r"CXL Window \d+")
    if "cxl_acpi" in observation.modules and state.windows and not shown:
        return (f"requested windows at {_listed(state.windows)}, and cxl_acpi has found none",)
    return ()


def _matches(pattern: re.Pattern[str], records: Sequence[Record]) -> Iterable[re.Match[str]]:
    for record in records:
        match = pattern.search(record.text)
        if match is not None:
            yield match


def _listed(ranges: Iterable[MemoryRange]) -> str:
    return ", ".join(str(one) for one in sorted(ranges)) or "nothing"
