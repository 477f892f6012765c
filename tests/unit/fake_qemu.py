# SPDX-License-Identifier: GPL-2.0-or-later
"""As much of a paused QEMU as the harness's firmware touches, behind the qtest protocol."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from fake_pci import BAR_SIZE, NOTHING_32, Function, Registers, memory_behind, ports_of

from harness.machine.qtest import Qtest
from harness.platform.address_map import MachineLayout
from harness.scenario.profile import Profile

ECAM = 0xB000_0000
NOTHING_64 = 0xFFFF_FFFF_FFFF_FFFF


class FakeQemu:
    """The machine of a profile, at reset."""

    def __init__(
        self, profile: Profile, layout: MachineLayout, files: Mapping[str, bytes] | None = None
    ) -> None:
        self._layout = layout
        self.roots: dict[int, dict[int, Function]] = {
            bridge.bus: ports_of(bridge.ports) for bridge in profile.host_bridges
        }
        self.bridge_registers = {bridge.bus: Registers() for bridge in profile.host_bridges}
        self.names = {bridge.name: bridge.bus for bridge in profile.host_bridges}
        self.ecam = False
        self.commands: list[str] = []
        self.dma_fails = False
        self._ram = bytearray(2 << 20)
        self._files = dict(files or {})
        self._address = 0

    def function(self, name: str) -> Function:
        """The PCI function of a port, device, or `PORT upstream`."""
        return next(one for one in self.functions() if one.name == name)

    def registers(self, name: str) -> Registers:
        """The component registers of a host bridge, device, or the switch below a port."""
        if name in self.names:
            return self.bridge_registers[self.names[name]]
        found = {one.name: one.registers for one in self.functions()}
        registers = found.get(name) or found.get(f"{name} upstream")
        assert registers is not None
        return registers

    def functions(self) -> Iterator[Function]:
        for slots in self.roots.values():
            for one in slots.values():
                yield from one.all_below()

    def config_spaces(self) -> dict[str, dict[int, int]]:
        """All of the configuration space, by name of the function."""
        return {one.name: dict(one.config) for one in self.functions()}

    def boot(self) -> None:
        """What the real firmware does later: bus numbers, BARs, memory windows and ECAM."""
        addresses = itertools.count(0xFE00_0000, BAR_SIZE)

        def set_up(slots: Mapping[int, Function], bus: int) -> int:
            last = bus
            for one in slots.values():
                one.config[0x04] |= 6
                if one.registers:
                    one.config[0x10] |= next(addresses)
                if one.bridge:
                    first = last + 1
                    last = set_up(one.below, first)
                    one.config[0x18] = bus | first << 8 | last << 16
                    one.config[0x20] = 0xFFF0_FE00
            return last

        for bus, slots in self.roots.items():
            set_up(slots, bus)
        self.ecam = True

    # The machine

    def config_function(self, bus: int, slot: int) -> Function | None:
        def find(slots: Mapping[int, Function]) -> Function | None:
            for one in slots.values():
                if one.forwards_bus(bus):
                    if one.config[0x18] >> 8 & 0xFF == bus:
                        return one.below.get(slot)
                    return find(one.below)
            return None

        if bus in self.roots:
            return self.roots[bus].get(slot)
        for slots in self.roots.values():
            if found := find(slots):
                return found
        return None

    def component_at(self, address: int) -> tuple[Registers, int] | None:
        for bridge in self._layout.bridges:
            if bridge.registers.start <= address <= bridge.registers.end:
                return self.bridge_registers[bridge.uid], address - bridge.registers.start

        def find(slots: Mapping[int, Function]) -> Iterator[tuple[Registers, int]]:
            for one in slots.values():
                if one.registers and one.answers(address):
                    yield one.registers, address & (BAR_SIZE - 1)
                elif one.forwards_memory(address):
                    yield from find(one.below)

        found = [one for slots in self.roots.values() for one in find(slots)]
        assert len(found) < 2, f"two functions answer at {address:#x}"
        return found[0] if found else None

    def word_at(self, address: int) -> tuple[Function, int] | None:
        """The device and its own address that a host physical address leads to."""
        for window in self._layout.windows:
            if window.range.start <= address <= window.range.end:
                offset = address - window.range.start
                bus = window.targets[offset // window.granularity % len(window.targets)]
                return memory_behind(self.bridge_registers[bus], self.roots[bus], address)
        return None

    # The qtest protocol

    def answer(self, line: str) -> str:
        """What QEMU answers to one command."""
        self.commands.append(line)
        word, *arguments = line.split()
        handler: Callable[..., str] | None = getattr(self, f"_do_{word}", None)
        if handler is None:
            return f"FAIL Unknown command '{word}'"
        return handler(*(int(one, 0) if word != "write" else one for one in arguments))

    def _do_outl(self, port: int, value: int) -> str:
        if port == 0xCF8:
            self._address = value
        elif port == 0xCFC:
            function = self._addressed()
            if function is not None:
                function.config_write(self._address & 0xFC, value)
        elif port == 0x518:
            self._transfer(int.from_bytes(value.to_bytes(4, "little"), "big"))
        return "OK"

    def _do_inl(self, port: int) -> str:
        assert port == 0xCFC
        function = self._addressed()
        return f"OK {_config(function, self._address & 0xFC):#06x}"

    def _addressed(self) -> Function | None:
        assert self._address >> 31 == 1
        assert self._address >> 8 & 7 == 0
        return self.config_function(self._address >> 16 & 0xFF, self._address >> 11 & 0x1F)

    def _do_readl(self, address: int) -> str:
        assert address % 4 == 0
        if ECAM <= address < ECAM + (256 << 20):
            return f"OK {self._ecam_read(address - ECAM):#018x}"
        found = self.component_at(address)
        return f"OK {found[0].read(found[1]) if found else NOTHING_32:#018x}"

    def _ecam_read(self, offset: int) -> int:
        bus, slot, at = offset >> 20, offset >> 15 & 0x1F, offset & 0xFFF
        if not self.ecam:
            return NOTHING_32
        if (bus, slot) == (0, 0):
            return 0x29C0_8086 if at == 0 else 0
        return _config(self.config_function(bus, slot), at)

    def _do_writel(self, address: int, value: int) -> str:
        found = self.component_at(address)
        if found:
            found[0].write(found[1], value)
        return "OK"

    def _do_readq(self, address: int) -> str:
        found = self.word_at(address)
        if found is None:
            return f"OK {NOTHING_64:#018x}"
        return f"OK {found[0].memory.get(found[1], 0):#018x}"

    def _do_writeq(self, address: int, value: int) -> str:
        found = self.word_at(address)
        if found and not found[0].broken:
            found[0].memory[found[1]] = value
        return "OK"

    def _do_read(self, address: int, size: int) -> str:
        return f"OK 0x{self._ram[address : address + size].hex()}"

    def _do_write(self, address: str, size: str, data: str) -> str:
        raw = bytes.fromhex(data.removeprefix("0x"))
        assert len(raw) == int(size, 0)
        self._ram[int(address, 0) : int(address, 0) + len(raw)] = raw
        return "OK"

    def _transfer(self, descriptor: int) -> None:
        control, size, target = struct.unpack_from(">IIQ", self._ram, descriptor)
        assert control & 0xFFFF == 0x0A  # select and read
        names = sorted(self._files)
        if control >> 16 == 0x19:
            content = struct.pack(">I", len(names)) + b"".join(
                struct.pack(">IHH56s", len(self._files[name]), 0x20 + at, 0, name.encode())
                for at, name in enumerate(names)
            )
        else:
            content = self._files[names[(control >> 16) - 0x20]]
        self._ram[target : target + size] = content[:size].ljust(size, b"\0")
        struct.pack_into(">I", self._ram, descriptor, 1 if self.dma_fails else 0)


def _config(function: Function | None, at: int) -> int:
    return NOTHING_32 if function is None else function.config.get(at, 0)


@contextmanager
def qtest_of(fake: FakeQemu) -> Iterator[Qtest]:
    """A qtest session with a fake QEMU, for the length of the block."""
    with served(fake.answer) as connection:
        yield Qtest(connection)


@contextmanager
def served(answer: Callable[[str], str]) -> Iterator[socket.socket]:
    """The near end of a connection at whose far end each line gets its answer."""
    near, far = socket.socketpair()

    def serve() -> None:
        with far, far.makefile("rwb") as stream:
            for line in stream:
                stream.write(f"{answer(line.decode().rstrip())}\n".encode())
                stream.flush()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        with near:
            yield near
    finally:
        thread.join(5)
