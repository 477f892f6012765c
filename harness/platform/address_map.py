# SPDX-License-Identifier: GPL-2.0-or-later
"""Where QEMU put things: asked of QEMU for each profile, never computed."""

from __future__ import annotations

from dataclasses import dataclass

from harness.platform.acpi_tables import FixedWindow, HostBridgeBlock, MemoryAffinity
from harness.platform.memory_range import MemoryRange


@dataclass(frozen=True)
class MachineLayout:
    """The addresses of one machine, as its own ACPI tables give them.

    Attributes:
        bridges: component register blocks of the host bridges.
        windows: CXL windows, in profile order; those that Linux is told of, as it is told.
        memory: RAM and hotplug room by node.
        srat: the SRAT's bytes, to build an override from.
        cedt: the CEDT that Linux must be given in place of QEMU's, or None.
    """

    bridges: tuple[HostBridgeBlock, ...]
    windows: tuple[FixedWindow, ...]
    memory: tuple[MemoryAffinity, ...]
    srat: bytes
    cedt: bytes | None = None

    def ram(self) -> tuple[MemoryRange, ...]:
        """The ranges of RAM that is there at boot."""
        return tuple(one.range for one in self.memory if not one.hotplug)

    def ram_of(self, node: int) -> tuple[MemoryRange, ...]:
        """The RAM of one node; the node at the 4 GiB hole has several ranges."""
        return tuple(one.range for one in self.memory if one.node == node and not one.hotplug)

    def hotplug_room(self) -> tuple[MemoryRange, ...]:
        """The ranges that the SRAT keeps for memory hotplug (`maxmem`)."""
        return tuple(one.range for one in self.memory if one.hotplug)

    def registers_of(self, uid: int) -> MemoryRange:
        """The register block of the host bridge with this `_UID`.

        Raises:
            KeyError: the CEDT has no such host bridge.
        """
        for bridge in self.bridges:
            if bridge.uid == uid:
                return bridge.registers
        raise KeyError(uid)
