# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted machine as `harness.machine.snapshot` sees it: PCI functions, registers, migration.

Written from the specifications: PCI 3.0, 6.1; PCI bridge 1.2, 3.2; PCI Express 5.0, 7.5.3.11.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field
from typing import Any, cast

from layouts import layout_of
from machines import one_window

from harness.machine.qemu import Qemu
from harness.platform.address_map import MachineLayout

ECAM = 0xB000_0000
PROFILE = one_window()
LAYOUT: MachineLayout = layout_of(PROFILE)
BRIDGE_REGISTERS = LAYOUT.bridges[0].registers.start

SLOT_CONTROL, SLOT_STATUS = 0x58, 0x5A
COMMAND_COMPLETED = 0x10
PRESENT = 0x40

RAM_BLOCKS = """\
              Block Name    PSize              Offset               Used              Total
                            4 KiB  0x0000000040000000 0x0000000080000000 0x0000000080000000
               node0_ram    4 KiB  0x0000000000000000 0x0000000040000000 0x0000000040000000
                 pc.bios    4 KiB  0x00000000c0000000 0x0000000000040000 0x0000000000040000
"""


@dataclass
class FakeFunction:
    """A PCI function with a writable configuration space, but for identity and slot status."""

    name: str
    bus: int
    slot: int
    bar: int = 0
    bar_size: int = 0x1000
    below: str = ""
    config: bytearray = field(default_factory=lambda: bytearray(4096))
    registers: bytearray = field(init=False)

    def __post_init__(self) -> None:
        struct.pack_into("<I", self.config, 0, 0x1234_8086)
        self.config[0x34] = 0x40
        self.config[0x40:0x42] = bytes((0x05, 0x00))
        self.registers = bytearray(self.bar_size)
        if self.below:
            # A PCI Express capability, with a slot that has a device in it.
            self.config[0x41] = 0x40
            self.config[0x40] = 0x10
            struct.pack_into("<H", self.config, SLOT_STATUS, PRESENT)

    def write(self, at: int, data: bytes) -> None:
        for offset, byte in enumerate(data, at):
            if offset < 4:
                continue
            if self.below and offset in (SLOT_STATUS, SLOT_STATUS + 1):
                self.config[offset] &= ~(byte & COMMAND_COMPLETED)
                continue
            self.config[offset] = byte
        if self.below and at <= SLOT_CONTROL < at + len(data):
            self.config[SLOT_STATUS] |= COMMAND_COMPLETED


class FakeBooted:
    """One host bridge, root port and type-3 device, and a network card that has nothing to do
    with them; as they come out of reset."""

    def __init__(self, *migration: dict[str, str]) -> None:
        self.functions = {
            one.name: one
            for one in (
                FakeFunction("hb0", 0, 1),
                FakeFunction("", 0, 2),
                FakeFunction("rp0", 0x35, 0, below="mem0"),
                FakeFunction("mem0", 0x36, 0),
            )
        }
        self.bridge_registers = bytearray(LAYOUT.bridges[0].registers.size)
        self.ram_blocks = RAM_BLOCKS
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.writes: list[tuple[str, int, int]] = []
        self._migration = deque(migration or ({}, {"status": "active"}, {"status": "completed"}))

    @property
    def machine(self) -> Qemu:
        return cast(Qemu, self)

    @property
    def qtest(self) -> FakeBooted:
        return self

    def boot(self) -> None:
        """What firmware and the PCI core set up."""
        for name, bar in (("rp0", 0xFE60_0000), ("mem0", 0xFE40_0000)):
            one = self.functions[name]
            one.bar = bar
            struct.pack_into("<I", one.config, 0x10, bar | 4)
            struct.pack_into("<I", one.config, 0x04, 0x0010_0106)
            one.registers[0x20:0x24] = b"\1\2\3\4"
        struct.pack_into("<I", self.functions["rp0"].config, 0x18, 0x0036_3635)
        struct.pack_into("<H", self.functions["rp0"].config, SLOT_CONTROL, 0x03F1)
        for name in ("hb0", ""):
            struct.pack_into("<I", self.functions[name].config, 0x04, 0x00A0_0103)
        self.bridge_registers[0x1234:0x1236] = b"\5\6"

    def restored(self) -> FakeBooted:
        """Another, with what QEMU migrates, and with registers that firmware has committed."""
        other = FakeBooted()
        other.functions[""].config[:] = self.functions[""].config
        other.bridge_registers[:] = self.bridge_registers
        for name, one in self.functions.items():
            other.functions[name].registers[:] = one.registers
        return other

    # QMP

    def command(self, name: str, **arguments: Any) -> Any:
        self.commands.append((name, arguments))
        if name == "query-pci":
            return [
                {"bus": 0, "devices": [self._described("hb0"), self._described("")]},
                {"bus": 0x35, "devices": [self._described("rp0")]},
            ]
        if name == "human-monitor-command":
            assert arguments == {"command-line": "info ramblock"}
            return self.ram_blocks
        if name == "query-migrate":
            return self._migration.popleft() if len(self._migration) > 1 else self._migration[0]
        return {}

    def _described(self, name: str) -> dict[str, Any]:
        one = self.functions[name]
        regions = [
            {"bar": 0, "type": "memory", "address": one.bar or -1, "size": one.bar_size},
            {"bar": 2, "type": "io", "address": 0xC000, "size": 32},
        ]
        found = {
            "bus": one.bus, "slot": one.slot, "function": 0, "qdev_id": name, "regions": regions
        }  # fmt: skip
        if one.below:
            found["pci_bridge"] = {"bus": {}, "devices": [self._described(one.below)]}
        return found

    # qtest

    def read_memory(self, address: int, size: int) -> bytes:
        found = self._function_at(address)
        if found:
            one, at = found
            return bytes(one.config[at : at + size])
        # As QEMU answers to reads of 64 bits in registers of 32.
        return bytes(size)

    def read_registers(self, address: int, size: int) -> bytes:
        start = BRIDGE_REGISTERS
        if start <= address < start + len(self.bridge_registers):
            return bytes(self.bridge_registers[address - start :][:size])
        for one in self.functions.values():
            bar = int.from_bytes(one.config[0x10:0x14], "little") & ~0xF
            if bar and bar <= address < bar + one.bar_size and one.config[4] & 2:
                return bytes(one.registers[address - bar :][:size])
        return b"\xff" * size

    def write16(self, address: int, value: int) -> None:
        self._write(address, value.to_bytes(2, "little"))

    def write32(self, address: int, value: int) -> None:
        self._write(address, value.to_bytes(4, "little"))

    def _write(self, address: int, data: bytes) -> None:
        found = self._function_at(address)
        assert found, f"nothing at {address:#x}"
        one, at = found
        self.writes.append((one.name, at, len(data)))
        one.write(at, data)

    def _function_at(self, address: int) -> tuple[FakeFunction, int] | None:
        if not ECAM <= address < ECAM + (256 << 20):
            return None
        bus, slot = address - ECAM >> 20, address >> 15 & 0x1F
        if bus == 0x36 and self.functions["rp0"].config[0x19] != bus:
            return None
        for one in self.functions.values():
            if (one.bus, one.slot) == (bus, slot):
                return one, address & 0xFFF
        return None
