# SPDX-License-Identifier: GPL-2.0-or-later
"""PCI functions, CXL component registers and HDM decoders, as far as firmware touches them.

Written from the specifications, not from the code that is tested with it: PCI 3.0, 6.1; PCI bridge
1.2, 3.2; CXL 3.1, 8.2.4.20.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from harness.scenario.profile import Port

NOTHING_32 = 0xFFFF_FFFF
BAR_SIZE = 0x10000
HDM = 0x1000 + 0x240
COMMIT, COMMITTED = 1 << 9, 1 << 10
WAYS = {0: 1, 1: 2, 2: 4, 3: 8, 4: 16, 8: 3, 9: 6, 10: 12}


class Registers:
    """A component register block with four HDM decoders."""

    def __init__(self) -> None:
        self.values: dict[int, int] = {}
        self.commits = True
        self.header = 0x0301_0001
        self.capabilities = (0x1000_0002, 0x2000_0004, (HDM - 0x1000) << 20 | 1 << 16 | 5)

    def read(self, at: int) -> int:
        if at == 0x1000:
            return self.header
        if 0x1004 <= at < 0x1004 + 4 * len(self.capabilities):
            return self.capabilities[(at - 0x1004) // 4]
        return self.values.get(at, 0)

    def write(self, at: int, value: int) -> None:
        index, register = divmod(at - HDM - 0x10, 0x20)
        if 0 <= index < 4:
            control = self.control(index)
            if control & COMMITTED and register != 0x10:
                return  # a committed decoder's registers are read-only
            if register == 0x10:
                value &= ~COMMITTED
                if value & COMMIT and (self.commits or control & COMMITTED):
                    value |= COMMITTED
        self.values[at] = value

    def control(self, index: int) -> int:
        return self.values.get(HDM + 0x10 + 0x20 * index + 0x10, 0)

    def decoders(self) -> Iterator[Decoder]:
        """The committed decoders of a block whose decoding is enabled."""
        if not self.values.get(HDM + 4, 0) & 2:
            return
        for index in range(4):
            at = HDM + 0x10 + 0x20 * index
            low = [self.values.get(at + offset, 0) for offset in range(0, 0x1C, 4)]
            if low[4] & COMMITTED:
                yield Decoder(
                    start=low[0] | low[1] << 32,
                    size=low[2] | low[3] << 32,
                    ways=WAYS[low[4] >> 4 & 0xF],
                    granularity=256 << (low[4] & 0xF),
                    targets=(low[5] | low[6] << 32).to_bytes(8, "little"),
                )


@dataclass(frozen=True)
class Decoder:
    """A committed decoder, as its registers say."""

    start: int
    size: int
    ways: int
    granularity: int
    targets: bytes

    def contains(self, address: int) -> bool:
        return self.start <= address < self.start + self.size

    def way(self, address: int) -> int:
        return (address - self.start) // self.granularity % self.ways


@dataclass(eq=False)
class Function:
    """A PCI function.

    Attributes:
        name: as in the profile; `NAME upstream` for the upstream port of the switch in a port.
        bridge: whether it is a bridge.
        number: port number.
        below: by slot, what its secondary bus has.
        registers: behind BAR0, when it has any.
        memory: the 64-bit words of a type-3 device, by device physical address.
        broken: whether its memory forgets what is written.
    """

    name: str
    bridge: bool
    number: int = 0
    below: dict[int, Function] = field(default_factory=dict)
    registers: Registers | None = None
    memory: dict[int, int] = field(default_factory=dict)
    broken: bool = False
    config: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Status 0xf010: a capability list, and error bits that a write of ones clears.
        self.config = {
            0x00: 0x7075_8086 if self.bridge else 0x0D93_8086,
            0x04: 0xF010_0000,
            0x0C: 0x0081_0000 if self.bridge else 0x0000_0000,
            0x10: 0x0000_0004 if self.registers else 0,
            0x14: 0,
            0x34: 0x0000_0040,
            0x40: 0x0000_4805,
            0x48: 0x0142_0010 if self.bridge else 0x0002_0010,
            0x54: self.number << 24 | 0x0041_0D41,
        }
        if self.bridge:
            self.config |= {0x18: 0, 0x20: 0}

    def config_write(self, at: int, value: int) -> None:
        old = self.config.get(at, 0)
        if at == 0x04:
            old &= ~(value & 0xF900_0000)
            self.config[at] = old & 0xFFFF_0000 | value & 0x0547
        elif at in (0x10, 0x14) and self.registers:
            mask = ~(BAR_SIZE - 1) if at == 0x10 else ~0
            self.config[at] = value & mask & NOTHING_32 | old & 0xF
        elif at == 0x18 and self.bridge:
            self.config[at] = value & 0x00FF_FFFF
        elif at == 0x20 and self.bridge:
            self.config[at] = value & 0xFFF0_FFF0

    def forwards_bus(self, bus: int) -> bool:
        numbers = self.config.get(0x18, 0)
        return self.bridge and 0 < numbers >> 8 & 0xFF <= bus <= numbers >> 16 & 0xFF

    def forwards_memory(self, address: int) -> bool:
        window = self.config.get(0x20, 0)
        base, limit = (window & 0xFFF0) << 16, window & 0xFFF0_0000 | 0xF_FFFF
        return self.bridge and bool(self.config[0x04] & 2) and base <= address <= limit

    def answers(self, address: int) -> bool:
        base = self.config[0x10] & ~0xF | self.config.get(0x14, 0) << 32
        return bool(self.config[0x04] & 2) and base <= address < base + BAR_SIZE

    def all_below(self) -> Iterator[Function]:
        yield self
        for one in self.below.values():
            yield from one.all_below()


def ports_of(ports: Sequence[Port], switch: bool = False) -> dict[int, Function]:
    """Functions of ports by slot. Slots are not port numbers, and another device is there too."""
    slots = {30: Function("something else", bridge=False)} if not switch else {}
    for number, port in enumerate(ports):
        below: dict[int, Function] = {}
        if port.device is not None:
            below[0] = Function(port.device.name, bridge=False, registers=Registers())
        if port.switch is not None:
            below[0] = Function(
                f"{port.name} upstream",
                bridge=True,
                below=ports_of(port.switch.ports, switch=True),
                registers=Registers(),
            )
        slots[20 - 2 * number] = Function(port.name, bridge=True, number=number, below=below)
    return slots


def memory_behind(
    registers: Registers, slots: Mapping[int, Function], address: int
) -> tuple[Function, int] | None:
    for decoder in registers.decoders():
        if decoder.contains(address):
            number = decoder.targets[decoder.way(address)]
            ports = [one for one in slots.values() if one.bridge and one.number == number]
            below = ports[0].below.get(0) if ports else None
            if below is None or below.registers is None:
                return None
            if below.bridge:
                return memory_behind(below.registers, below.below, address)
            return _device_address(below, below.registers, address)
    return None


def _device_address(
    device: Function, registers: Registers, address: int
) -> tuple[Function, int] | None:
    base = 0
    for decoder in registers.decoders():
        if decoder.contains(address):
            offset = address - decoder.start
            step = decoder.granularity * decoder.ways
            return device, base + offset // step * decoder.granularity + (
                offset % decoder.granularity
            )
        base += decoder.size // decoder.ways
    return None
