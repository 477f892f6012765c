# SPDX-License-Identifier: GPL-2.0-or-later
"""The PCI functions of a running machine and the registers behind them, asked of QEMU.

Source: QEMU, qapi/pci.json (query-pci).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.machine.firmware import ECAM
from harness.machine.qemu import Qemu
from harness.platform.address_map import MachineLayout
from harness.platform.memory_range import MemoryRange
from harness.scenario.profile import Profile

CONFIG_SIZE = 4096

# CXL 3.1, 8.2.3: of a component register block, what lies behind the CXL.cache_mem registers is
# left to the implementation.
_COMPONENT_BLOCK = 0x1_0000
_DEFINED = 0x2000


@dataclass(frozen=True)
class PciFunction:
    """A PCI function in a machine whose bus numbers have been given out.

    Attributes:
        bus: its bus number, 0-255.
        slot: its device number, 0-31.
        number: its function number, 0-7.
        name: what the command line calls it, or nothing.
        cxl: whether it belongs to a CXL host bridge: the bridge itself, or what lies below it.
        bars: its mapped memory BARs, by number.
    """

    bus: int
    slot: int
    number: int
    name: str
    cxl: bool
    bars: tuple[tuple[int, MemoryRange], ...]

    @property
    def config(self) -> int:
        """The physical address of its configuration space, which has CONFIG_SIZE bytes."""
        return ECAM + (self.bus << 20 | self.slot << 15 | self.number << 12)

    def __str__(self) -> str:
        address = f"{self.bus:02x}:{self.slot:02x}.{self.number}"
        return f"{address} ({self.name})" if self.name else address


def pci_functions(machine: Qemu, profile: Profile) -> tuple[PciFunction, ...]:
    """Every PCI function that QEMU has, a bridge before what lies below it.

    Raises:
        MachineLostError: QEMU does not answer.
    """
    return read_functions(machine.command("query-pci"), profile)


def read_functions(buses: Sequence[Mapping[str, Any]], profile: Profile) -> tuple[PciFunction, ...]:
    """The functions in what query-pci returned."""
    bridges = {bridge.name for bridge in profile.host_bridges}
    roots = {bridge.bus for bridge in profile.host_bridges}

    def walk(devices: Sequence[Mapping[str, Any]], below: bool) -> Iterator[PciFunction]:
        for one in devices:
            name = one.get("qdev_id", "")
            yield PciFunction(
                bus=one["bus"],
                slot=one["slot"],
                number=one["function"],
                name=name,
                cxl=below or name in bridges,
                bars=tuple(_memory_bars(one["regions"])),
            )
            yield from walk(one.get("pci_bridge", {}).get("devices", ()), below)

    # The root bus first: it has the bridges themselves.
    return tuple(
        function
        for root in sorted(buses, key=lambda one: int(one["bus"]))
        for function in walk(root["devices"], root["bus"] in roots)
    )


def register_blocks(
    functions: Sequence[PciFunction], layout: MachineLayout
) -> tuple[tuple[str, MemoryRange], ...]:
    """The memory-mapped registers of everything CXL: where, and whose."""
    bridges = [
        (f"component registers of the host bridge {bridge.uid:#x}", bridge.registers)
        for bridge in layout.bridges
    ]
    bars = [
        (f"BAR {number} of {function}", span)
        for function in functions
        if function.cxl
        for number, span in function.bars
    ]
    return tuple((whose, _defined_part(span)) for whose, span in (*bridges, *bars))


def _defined_part(block: MemoryRange) -> MemoryRange:
    return MemoryRange.of_size(block.start, _DEFINED) if block.size == _COMPONENT_BLOCK else block


def _memory_bars(regions: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, MemoryRange]]:
    for region in regions:
        # An unmapped BAR has the address -1.
        if region["type"] == "memory" and 0 < region["address"] < 1 << 63:
            yield region["bar"], MemoryRange.of_size(region["address"], region["size"])
