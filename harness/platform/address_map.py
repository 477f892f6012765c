# SPDX-License-Identifier: GPL-2.0-or-later
"""The addresses of a machine: read from QEMU for each profile, never computed."""

from __future__ import annotations

from dataclasses import dataclass

from harness.platform.acpi_tables import FixedWindow, HostBridgeBlock, MemoryAffinity
from harness.platform.memory_range import MemoryRange


@dataclass(frozen=True)
class MachineLayout:
    """The addresses of one machine, as its own ACPI tables describe them.

    Attributes:
        bridges: component register blocks of the host bridges.
        windows: CXL windows, in profile order; each as the CEDT that Linux gets describes it.
        memory: RAM and memory hotplug areas by node.
        srat: the bytes of the SRAT, for an override.
        cedt: the CEDT that Linux must get in place of QEMU's, or None.
    """

    bridges: tuple[HostBridgeBlock, ...]
    windows: tuple[FixedWindow, ...]
    memory: tuple[MemoryAffinity, ...]
    srat: bytes
    cedt: bytes | None = None

    def ram(self) -> tuple[MemoryRange, ...]:
        """The ranges of RAM at boot."""
        return tuple(entry.range for entry in self.memory if not entry.hotplug)

    def ram_of(self, node: int) -> tuple[MemoryRange, ...]:
        """The RAM of one node; a node across the 4 GiB hole has several ranges."""
        return tuple(
            entry.range for entry in self.memory if entry.node == node and not entry.hotplug
        )

    def hotplug_room(self) -> tuple[MemoryRange, ...]:
        """The ranges that the SRAT reserves for memory hotplug (`maxmem`)."""
        return tuple(entry.range for entry in self.memory if entry.hotplug)

    def registers_of(self, uid: int) -> MemoryRange:
        """The register block of the host bridge with this `_UID`.

        Raises:
            KeyError: the CEDT has no such host bridge.
        """
        for bridge in self.bridges:
            if bridge.uid == uid:
                return bridge.registers
        raise KeyError(uid)
