# SPDX-License-Identifier: GPL-2.0-or-later
"""Save a booted machine into a file in memory, and restore it any number of times.

QEMU migrates neither the configuration space nor the registers of CXL host bridges, ports and
devices, nor the devices' memory. The configuration space is read before saving and written back;
decoders are committed again; then all registers are compared, and a machine that differs from the
saved one is refused. The devices' memory must be unused, as it is before CXL drivers are loaded.

Source: QEMU, docs/devel/migration and qapi/pci.json (query-pci); PCI Express 5.0, 7.5.3.11 (slot
status).
"""

from __future__ import annotations

import re
import struct
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.core.deadline import Deadline
from harness.core.errors import InconclusiveError
from harness.machine.firmware import ECAM, commit_again, prove_paths
from harness.machine.qemu import Qemu
from harness.machine.qtest import Qtest
from harness.platform.address_map import MachineLayout
from harness.platform.firmware_state import PlacedDecoder
from harness.platform.hdm_decoders import DecoderSetting
from harness.platform.memory_range import MemoryRange
from harness.scenario.profile import Profile

_SECONDS = 60.0
_POLL_SECONDS = 0.003
_UNLIMITED = 1 << 40
_REPORTED = 6

CONFIG_SIZE = 4096

# CXL 3.1, 8.2.3: a component register block behind its CXL.cache_mem registers is implementation
# specific.
_COMPONENT_BLOCK = 0x1_0000
_DEFINED = 0x2000

_COMMAND = 0x04
_CAPABILITIES = 0x34
_PCI_EXPRESS = 0x10
_SLOT_STATUS = 0x1A

# HMP `info ramblock`; memory that is not migrated has no name.
_RAM_BLOCK = re.compile(
    r"^\s*(?P<name>\S*)\s+\d+ [KMG]iB\s+0x[0-9a-f]+\s+0x(?P<used>[0-9a-f]+)\s+0x[0-9a-f]+", re.M
)


class RestoreError(InconclusiveError):
    """A machine could not be saved or restored exactly: its guest must be booted instead."""


@dataclass(frozen=True)
class PciFunction:
    """A PCI function in a machine whose bus numbers have been given out.

    Attributes:
        bus: its bus number, 0-255.
        slot: its device number, 0-31.
        number: its function number, 0-7.
        name: its ID on the command line, or empty.
        cxl: whether it is a CXL host bridge, or below one.
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
        """The physical address of its configuration space of CONFIG_SIZE bytes."""
        return ECAM + (self.bus << 20 | self.slot << 15 | self.number << 12)

    def __str__(self) -> str:
        address = f"{self.bus:02x}:{self.slot:02x}.{self.number}"
        return f"{address} ({self.name})" if self.name else address


@dataclass(frozen=True)
class SavedMachine:
    """A machine as it was saved.

    Attributes:
        file: descriptor of the file with QEMU's data.
        config: the configuration space of each PCI function, a bridge before those below it.
        registers: memory-mapped CXL registers: their owner, range and content.
    """

    file: int
    config: tuple[tuple[PciFunction, bytes], ...]
    registers: tuple[tuple[str, MemoryRange, bytes], ...]


def save_machine(
    machine: Qemu, profile: Profile, layout: MachineLayout, file: int, seconds: float = _SECONDS
) -> SavedMachine:
    """Stop a machine and save it. It cannot be continued afterwards.

    Args:
        machine: a running machine without CXL drivers; its QEMU has inherited `file`.
        profile: its hardware.
        layout: its address map.
        file: descriptor of an open, empty file.
        seconds: how long QEMU may take.

    Raises:
        RestoreError: QEMU could not save it, or has memory that it does not save.
        MachineLostError: QEMU ended or does not respond.
        DeadlineExpiredError: it took too long.
    """
    machine.command("stop")
    _check_memory(machine, profile)
    functions = pci_functions(machine, profile)
    config = tuple((one, _read_config(machine.qtest, one)) for one in functions)
    registers = tuple(
        (whose, span, machine.qtest.read_registers(span.start, span.size))
        for whose, span in register_blocks(functions, layout)
    )
    _by_pages(machine)
    machine.command("migrate-set-parameters", **{"max-bandwidth": _UNLIMITED})
    machine.command("migrate", uri=f"file:/dev/fd/{file}")
    _await_migration(machine, "save the machine", seconds)
    return SavedMachine(file, config, registers)


def restore_machine(
    machine: Qemu,
    saved: SavedMachine,
    layout: MachineLayout,
    settings: Sequence[DecoderSetting],
    decoders: Sequence[PlacedDecoder],
    seconds: float = _SECONDS,
) -> tuple[str, ...]:
    """Restore a saved machine, paused.

    Args:
        machine: a QEMU that waits for the state, and has inherited the saved machine's file.
        saved: the saved machine.
        layout: its address map.
        settings: the decoders to commit again.
        decoders: the same as paths from windows to devices, to be tested.
        seconds: how long QEMU may take.

    Returns:
        the registers that QEMU had not restored, which were written back, one per line.

    Raises:
        RestoreError: a register differs from the saved one.
        MachineLostError: QEMU ended, as it does when the saved data is damaged.
        DeadlineExpiredError: it took too long.
    """
    _by_pages(machine)
    machine.command("migrate-incoming", uri=f"file:/dev/fd/{saved.file}")
    _await_migration(machine, "load the saved machine", seconds)
    qtest = machine.qtest
    written = [
        line for function, config in saved.config for line in _write_back(qtest, function, config)
    ]
    commit_again(qtest, layout, settings)
    prove_paths(qtest, decoders)
    differences = _differences(qtest, saved)
    if differences:
        more = len(differences) - _REPORTED
        raise RestoreError(
            "the restored machine differs from the saved one: "
            + "; ".join(differences[:_REPORTED])
            + (f"; and {more} more" if more > 0 else ""),
            hint="this QEMU version does not restore CXL machines exactly: use --start cold",
        )
    return tuple(written)


def _by_pages(machine: Qemu) -> None:
    """Store each page of memory at its own offset of the file, with holes for empty pages."""
    capability = {"capability": "mapped-ram", "state": True}
    machine.command("migrate-set-capabilities", capabilities=[capability])


def _await_migration(machine: Qemu, what: str, seconds: float) -> None:
    deadline = Deadline(
        seconds, f"QEMU to {what}", hint="is the host overloaded? or use --start cold"
    )
    while True:
        # Empty before the migration has begun.
        answer = machine.command("query-migrate")
        status = answer.get("status")
        if status == "completed":
            return
        if status in ("failed", "cancelled"):
            why = answer.get("error-desc", status)
            raise RestoreError(
                f"QEMU could not {what}: {why}",
                hint="see qemu.log in the evidence; or use --start cold",
            )
        time.sleep(min(_POLL_SECONDS, deadline.check()))


def _check_memory(machine: Qemu, profile: Profile) -> None:
    """Refuse a machine with unmigrated memory other than that of its CXL devices."""
    text = machine.command("human-monitor-command", **{"command-line": "info ramblock"})
    blocks = [(match["name"], int(match["used"], 16)) for match in _RAM_BLOCK.finditer(text)]
    unnamed = Counter(size for name, size in blocks if not name)
    devices = Counter(int(device.size) for device in profile.devices())
    if not blocks or unnamed - devices:
        what = ", ".join(f"{size:#x} bytes" for size in sorted(unnamed - devices))
        raise RestoreError(
            f"QEMU does not save all of its memory: {what or 'it lists none'}",
            hint="is this QEMU version untested? use --start cold",
        )


def _read_config(qtest: Qtest, function: PciFunction) -> bytes:
    return qtest.read_memory(function.config, CONFIG_SIZE)


def _write_back(qtest: Qtest, function: PciFunction, before: bytes) -> tuple[str, ...]:
    """Write the registers that differ, the command register last.

    Until then the function decodes nothing, and cannot send interrupts for these writes.
    """
    if not function.cxl:
        return ()  # QEMU restores it, or the comparison reports it
    now = _read_config(qtest, function)
    places = _differing(before, now)
    for offset in sorted(places, key=lambda at: (at == _COMMAND, at)):
        qtest.write32(function.config + offset, _word(before, offset))
    _forget_slot_command(qtest, function, before)
    return tuple(
        f"{function} {offset:#05x}: {_word(now, offset):08x} -> {_word(before, offset):08x}"
        for offset in places
    )


def _forget_slot_command(qtest: Qtest, function: PciFunction, before: bytes) -> None:
    """Clear "command completed" in slot status, which writing slot control has set.

    With a 16-bit write, since a write to slot control is the next command.
    """
    at = _express_capability(before)
    if not at:
        return
    place = function.config + at + _SLOT_STATUS
    raised = int.from_bytes(qtest.read_memory(place, 2), "little")
    raised &= ~int.from_bytes(before[at + _SLOT_STATUS : at + _SLOT_STATUS + 2], "little")
    if raised:
        qtest.write16(place, raised)


def _express_capability(config: bytes) -> int:
    """The offset of the PCI Express capability in a configuration space, 0 for none."""
    at = config[_CAPABILITIES] & 0xFC
    seen: set[int] = set()
    while at and at not in seen:
        if config[at] == _PCI_EXPRESS:
            return at
        seen.add(at)
        at = config[at + 1] & 0xFC
    return 0


def _differences(qtest: Qtest, saved: SavedMachine) -> list[str]:
    differences = []
    for function, before in saved.config:
        now = _read_config(qtest, function)
        differences += [
            f"configuration space of {function} at {offset:#05x} was {_word(before, offset):08x} "
            f"and is {_word(now, offset):08x}"
            for offset in _differing(before, now)
        ]
    for whose, span, before in saved.registers:
        now = qtest.read_registers(span.start, span.size)
        differences += [
            f"{whose} at {offset:#05x} was {_word(before, offset):08x} "
            f"and is {_word(now, offset):08x}"
            for offset in _differing(before, now)
        ]
    return differences


def _differing(before: bytes, now: bytes) -> list[int]:
    """The offsets of the 32-bit words that differ."""
    if before == now:
        return []
    return [at for at in range(0, len(before), 4) if before[at : at + 4] != now[at : at + 4]]


def _word(data: bytes, offset: int) -> int:
    value: int = struct.unpack_from("<I", data, offset)[0]
    return value


def pci_functions(machine: Qemu, profile: Profile) -> tuple[PciFunction, ...]:
    """All PCI functions of QEMU, a bridge before those below it.

    Raises:
        MachineLostError: QEMU does not respond.
    """
    return read_functions(machine.command("query-pci"), profile)


def read_functions(buses: Sequence[Mapping[str, Any]], profile: Profile) -> tuple[PciFunction, ...]:
    """The functions in the result of query-pci."""
    bridges = {bridge.name for bridge in profile.host_bridges}
    roots = {bridge.bus for bridge in profile.host_bridges}

    def walk(devices: Sequence[Mapping[str, Any]], below: bool) -> Iterator[PciFunction]:
        for device in devices:
            name = device.get("qdev_id", "")
            yield PciFunction(
                bus=device["bus"],
                slot=device["slot"],
                number=device["function"],
                name=name,
                cxl=below or name in bridges,
                bars=tuple(_memory_bars(device["regions"])),
            )
            yield from walk(device.get("pci_bridge", {}).get("devices", ()), below)

    # The root bus first: it contains the host bridges.
    return tuple(
        function
        for root in sorted(buses, key=lambda bus: int(bus["bus"]))
        for function in walk(root["devices"], root["bus"] in roots)
    )


def register_blocks(
    functions: Sequence[PciFunction], layout: MachineLayout
) -> tuple[tuple[str, MemoryRange], ...]:
    """The memory-mapped registers of all CXL functions: owner and range."""
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
