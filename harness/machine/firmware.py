# SPDX-License-Identifier: GPL-2.0-or-later
"""Commit HDM decoders over qtest, as firmware does, while the machine is paused at reset.

PCI bus numbers, bridge windows and BARs are set up along one path at a time, as far as its
component registers need them, and restored, so that the real firmware finds the machine as after
reset, with committed decoders.

Source: CXL 3.1, 8.2.4 (component registers) and 8.2.4.20 (HDM decoders); PCI 3.0, 6.1 and PCI
bridge 1.2, 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from harness.core.errors import MachineLostError
from harness.machine.qtest import Qtest
from harness.platform.acpi_tables import encode_ways
from harness.platform.address_map import MachineLayout
from harness.platform.firmware_state import PlacedDecoder
from harness.platform.hdm_decoders import Component, DecoderSetting
from harness.platform.memory_range import MemoryRange

_SEE_FIRMWARE = (
    "the written values are in firmware.json in the evidence; is this QEMU version untested? see "
    "harness doctor"
)
# 16 MiB of 32-bit PCI memory, unused before the firmware runs.
_MMIO = 0xE000_0000
_MMIO_LIMIT = 0xE0FF_FFFF

# SeaBIOS's address of the PCI Express configuration space of a q35, and the ID of its host bridge.
ECAM = 0xB000_0000
_HOST_BRIDGE_ID = 0x29C0_8086

_COMMAND = 0x04
_HEADER_TYPE = 0x0C
_BAR0 = 0x10
_BUS_NUMBERS = 0x18
_MEMORY_WINDOW = 0x20
_CAPABILITIES = 0x34
_PCI_EXPRESS = 0x10
_LINK_CAPABILITIES = 0x0C
# As many as fit into the configuration space: a longer list is circular.
_MOST_CAPABILITIES = 48

_CACHE_MEM = 0x1000
_HDM_CAPABILITY = 5
_GLOBAL_CONTROL = 0x04
_GLOBAL_ENABLE = 1 << 1
_FIRST_DECODER = 0x10
_DECODER_STRIDE = 0x20
_LOCK = 1 << 8  # on commit
_COMMIT = 1 << 9
_COMMITTED = 1 << 10
_HOST_ONLY = 1 << 12


def commit_decoders(
    qtest: Qtest, layout: MachineLayout, settings: Sequence[DecoderSetting]
) -> None:
    """Program and commit decoders, and enable their components' decoding.

    Raises:
        MachineLostError: a component is missing, or a decoder did not commit.
    """
    for component in dict.fromkeys(one.component for one in settings):
        with ExitStack() as stack:
            if component.kind == "host_bridge":
                registers = layout.registers_of(component.bus).start
            else:
                registers = stack.enter_context(_component_registers(qtest, component))
            _commit_all(qtest, registers, component, settings)


def check_committed(
    qtest: Qtest, layout: MachineLayout, settings: Sequence[DecoderSetting]
) -> tuple[str, ...]:
    """The decoders that differ from what the firmware committed, also while the guest runs.

    It only reads, by the memory-mapped configuration space, so that the guest's own accesses are
    not disturbed. Drivers are allowed to change decoders.
    """
    if settings and qtest.read32(ECAM) != _HOST_BRIDGE_ID:
        return (f"no PCI configuration space at {ECAM:#x}",)
    problems = []
    for setting in settings:
        component = setting.component
        try:
            registers = _registers_after_boot(qtest, layout, component)
            at = _find_hdm(qtest, registers, component) + _decoder_offset(setting)
        except MachineLostError as error:
            problems.append(error.message)
            continue
        values = tuple(qtest.read32(at + offset) for offset in range(0, 0x10, 4))
        control = qtest.read32(at + 0x10)
        if values != _range_registers(setting) or not control & _COMMITTED:
            problems.append(
                f"decoder {setting.index} of {component.name} is no longer committed over "
                f"{setting.range}"
            )
    return tuple(problems)


def commit_again(qtest: Qtest, layout: MachineLayout, settings: Sequence[DecoderSetting]) -> None:
    """Commit decoders like `commit_decoders`, where PCI buses and BARs are already set up.

    Raises:
        MachineLostError: a component is missing, or a decoder did not commit.
    """
    for component in dict.fromkeys(one.component for one in settings):
        registers = _registers_after_boot(qtest, layout, component)
        _commit_all(qtest, registers, component, settings)


def prove_paths(qtest: Qtest, decoders: Sequence[PlacedDecoder]) -> None:
    """Write through the windows and read back, see `unanswered`.

    Raises:
        MachineLostError: a decoder does not reach its memory.
    """
    failures = unanswered(qtest, [(decoder, decoder.range) for decoder in decoders])
    for decoder, why in zip(decoders, failures, strict=True):
        if why:
            raise MachineLostError(
                f"decoder {decoder.name} does not reach its memory: {why}", hint=_SEE_FIRMWARE
            )


def unanswered(qtest: Qtest, parts: Sequence[tuple[PlacedDecoder, MemoryRange]]) -> tuple[str, ...]:
    """Write through the windows into parts of decoders' ranges, read back, and restore.

    Every way is written, at both ends and in between. All is written before anything is read, to
    find two addresses of the same memory as well. The guest must be stopped.

    Returns:
        For each part the first wrong value; empty for memory that answers.
    """
    places = [
        (part, address)
        for part, (decoder, span) in enumerate(parts)
        for address in _probed(decoder, span)
    ]
    before = [qtest.read64(address) for _, address in places]
    for _, address in places:
        qtest.write64(address, _pattern(address))
    after = [qtest.read64(address) for _, address in places]
    for (_, address), value in zip(places, before, strict=True):
        qtest.write64(address, value)
    wrong: dict[int, str] = {}
    for (part, address), value in zip(places, after, strict=True):
        wrote = _pattern(address)
        if value != wrote:
            wrong.setdefault(part, f"wrote {wrote:#x} to {address:#x} and read {value:#x}")
    return tuple(wrong.get(part, "") for part in range(len(parts)))


def _probed(decoder: PlacedDecoder, span: MemoryRange) -> tuple[int, ...]:
    """Addresses of every way, at both ends of a part of a decoder's range, and in between."""
    grain = decoder.granularity
    found = []
    for way in range(len(decoder.devices)):
        found += [span.start + way * grain, span.end + 1 - (way + 1) * grain]
    # Two of these are the same for an endpoint that decodes the way from other address bits.
    found += [span.start + (1 << bit) for bit in range(8, 21)]
    return tuple(dict.fromkeys(one for one in found if span.start <= one < span.end - 6))


def _pattern(address: int) -> int:
    return address ^ 0x9D5A_A5C3_3C96_69F0


@contextmanager
def _component_registers(qtest: Qtest, component: Component) -> Iterator[int]:
    """Map a switch's or endpoint's component registers; yields their address."""
    with ExitStack() as stack:
        bus = component.bus
        for depth, number in enumerate(component.ports):
            if depth:
                # The upstream port of the switch, the only device on its bus.
                stack.enter_context(_open_bridge(qtest, bus, 0, component))
                bus += 1
            slot = _find_port(qtest.config_read, bus, number, component)
            stack.enter_context(_open_bridge(qtest, bus, slot, component))
            bus += 1
        stack.enter_context(_kept(qtest, bus, 0, (_COMMAND, _BAR0, _BAR0 + 4)))
        if qtest.config_read(bus, 0, 0, 0) & 0xFFFF == 0xFFFF:
            raise _missing(component, f"no PCI device on its bus {bus:#x}")
        qtest.config_write(bus, 0, 0, _BAR0, _MMIO)
        qtest.config_write(bus, 0, 0, _BAR0 + 4, 0)
        qtest.config_write(bus, 0, 0, _COMMAND, 0x6)
        yield _MMIO


@contextmanager
def _open_bridge(qtest: Qtest, bus: int, slot: int, component: Component) -> Iterator[None]:
    below = bus + 1
    last = component.bus + 2 * len(component.ports)
    with _kept(qtest, bus, slot, (_COMMAND, _BUS_NUMBERS, _MEMORY_WINDOW)):
        qtest.config_write(bus, slot, 0, _BUS_NUMBERS, bus | below << 8 | last << 16)
        window = _MMIO >> 16 | (_MMIO_LIMIT & 0xFFF0_0000)
        qtest.config_write(bus, slot, 0, _MEMORY_WINDOW, window)
        qtest.config_write(bus, slot, 0, _COMMAND, 0x6)
        yield


@contextmanager
def _kept(qtest: Qtest, bus: int, slot: int, offsets: Sequence[int]) -> Iterator[None]:
    """Restore these registers at the end, in reverse order."""
    before = [(offset, qtest.config_read(bus, slot, 0, offset)) for offset in offsets]
    yield
    for offset, value in reversed(before):
        if offset == _COMMAND:
            value &= 0xFFFF  # the upper half is the status register: writing ones clears bits
        qtest.config_write(bus, slot, 0, offset, value)


def _find_port(
    read: Callable[[int, int, int, int], int], bus: int, number: int, component: Component
) -> int:
    """The PCI slot of the port with this port number (PCI Express link capabilities, 31:24)."""
    for slot in range(32):
        if read(bus, slot, 0, 0) & 0xFFFF == 0xFFFF:
            continue
        if read(bus, slot, 0, _HEADER_TYPE) >> 16 & 0x7F != 1:
            continue
        at = read(bus, slot, 0, _CAPABILITIES) & 0xFC
        for _ in range(_MOST_CAPABILITIES):
            if not at:
                break
            head = read(bus, slot, 0, at)
            if head & 0xFF == _PCI_EXPRESS:
                link = read(bus, slot, 0, at + _LINK_CAPABILITIES)
                if link >> 24 == number:
                    return slot
                break
            at = head >> 8 & 0xFC
    raise _missing(component, f"no port number {number} on bus {bus:#x}")


def _find_hdm(qtest: Qtest, registers: int, component: Component) -> int:
    head = qtest.read32(registers + _CACHE_MEM)
    if head & 0xFFFF != 1:
        raise _missing(component, f"no CXL capability header at {registers + _CACHE_MEM:#x}")
    for entry in range(1, (head >> 24) + 1):
        capability = qtest.read32(registers + _CACHE_MEM + 4 * entry)
        if capability & 0xFFFF == _HDM_CAPABILITY:
            return registers + _CACHE_MEM + (capability >> 20)
    raise _missing(component, "no HDM decoder capability")


def _registers_after_boot(qtest: Qtest, layout: MachineLayout, component: Component) -> int:
    """The address of component registers, by the real firmware's bus numbers and BARs."""

    def read(bus: int, slot: int, function: int, offset: int) -> int:
        return qtest.read32(ECAM + (bus << 20 | slot << 15 | function << 12 | offset))

    if component.kind == "host_bridge":
        return layout.registers_of(component.bus).start
    bus = component.bus
    for depth, number in enumerate(component.ports):
        if depth:
            bus = read(bus, 0, 0, _BUS_NUMBERS) >> 8 & 0xFF
        slot = _find_port(read, bus, number, component)
        bus = read(bus, slot, 0, _BUS_NUMBERS) >> 8 & 0xFF
    return read(bus, 0, 0, _BAR0) & ~0xF | read(bus, 0, 0, _BAR0 + 4) << 32


def _commit_all(
    qtest: Qtest, registers: int, component: Component, settings: Sequence[DecoderSetting]
) -> None:
    hdm = _find_hdm(qtest, registers, component)
    for setting in settings:
        if setting.component == component:
            _commit(qtest, hdm, setting)
    qtest.write32(hdm + _GLOBAL_CONTROL, _GLOBAL_ENABLE)


def _commit(qtest: Qtest, hdm: int, setting: DecoderSetting) -> None:
    at = hdm + _decoder_offset(setting)
    for offset, value in zip(range(0, 0x10, 4), _range_registers(setting), strict=True):
        qtest.write32(at + offset, value)
    targets = sum(port << 8 * place for place, port in enumerate(setting.targets))
    qtest.write32(at + 0x14, targets & 0xFFFF_FFFF)
    qtest.write32(at + 0x18, targets >> 32)
    control = (setting.granularity.bit_length() - 9) | encode_ways(setting.ways) << 4 | _HOST_ONLY
    if setting.locked:
        control |= _LOCK
    qtest.write32(at + 0x10, control)
    qtest.write32(at + 0x10, control | _COMMIT)
    if not qtest.read32(at + 0x10) & _COMMITTED:
        raise MachineLostError(
            f"decoder {setting.index} of {setting.component.name} did not commit {setting.range}",
            hint=_SEE_FIRMWARE,
        )


def _decoder_offset(setting: DecoderSetting) -> int:
    return _FIRST_DECODER + _DECODER_STRIDE * setting.index


def _range_registers(setting: DecoderSetting) -> tuple[int, int, int, int]:
    start, size = setting.range.start, setting.range.size
    return (start & 0xF000_0000, start >> 32, size & 0xF000_0000, size >> 32)


def _missing(component: Component, what: str) -> MachineLostError:
    return MachineLostError(
        f"QEMU does not have {component.kind} {component.name} at the expected place: {what}",
        hint="is this QEMU version untested? see harness doctor",
    )
