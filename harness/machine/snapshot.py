# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted machine, saved into a file in memory, and restored from it any number of times.

QEMU migrates neither the configuration space nor the registers of CXL host bridges, ports and
devices, nor the devices' memory. What the firmware and the PCI core have set up in configuration
space is read before saving and written back; decoders are committed again; then everything that
can be read is compared, and a machine that differs from the saved one is refused. The devices'
memory must be unused: nothing in a guest reaches it before CXL drivers are loaded.

Source: QEMU, docs/devel/migration; PCI Express 5.0, 7.5.3.11 (slot status).
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

# CXL 3.1, 8.2.3: of a component register block, what lies behind the CXL.cache_mem registers is
# left to the implementation.
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
    """A machine could not be saved or restored as it was: its guest must be booted instead."""


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


@dataclass(frozen=True)
class SavedMachine:
    """What a machine was when it was saved.

    Attributes:
        file: descriptor of the file with what QEMU saved.
        config: the configuration space of each PCI function, a bridge before what lies below.
        registers: memory-mapped CXL registers: whose, where, and what they were.
    """

    file: int
    config: tuple[tuple[PciFunction, bytes], ...]
    registers: tuple[tuple[str, MemoryRange, bytes], ...]


def save_machine(
    machine: Qemu, profile: Profile, layout: MachineLayout, file: int, seconds: float = _SECONDS
) -> SavedMachine:
    """Stop a machine and save it. It cannot go on afterwards.

    Args:
        machine: a running machine without any CXL driver loaded; its QEMU has inherited `file`.
        profile: its hardware.
        layout: where things are in it.
        file: descriptor of an open, empty file.
        seconds: how long QEMU may take.

    Raises:
        RestoreError: QEMU could not save it, or has memory that it would not save.
        MachineLostError: QEMU ended or does not answer.
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
    """Make a machine what the saved one was. It is left paused.

    Args:
        machine: the same machine in a QEMU that was started to wait for its state, and that has
            inherited the saved machine's file.
        saved: what was saved.
        layout: where things are in it.
        settings: the decoders to commit again.
        decoders: the same as paths from windows to devices, to be proved.
        seconds: how long QEMU may take.

    Returns:
        what QEMU itself had not restored and was written back, one line a register.

    Raises:
        RestoreError: something that can be read differs from what was saved.
        MachineLostError: QEMU ended, as it does when it cannot load what was saved.
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
            "the restored machine is not what was saved: "
            + "; ".join(differences[:_REPORTED])
            + (f"; and {more} more" if more > 0 else ""),
            hint="this QEMU does not restore CXL machines as the harness knows it: --start cold",
        )
    return tuple(written)


def _by_pages(machine: Qemu) -> None:
    """Keep each page of memory at a place of its own in the file: empty ones then cost nothing."""
    capability = {"capability": "mapped-ram", "state": True}
    machine.command("migrate-set-capabilities", capabilities=[capability])


def _await_migration(machine: Qemu, what: str, seconds: float) -> None:
    deadline = Deadline(
        seconds, f"QEMU to {what}", hint="is the disk very slow? --start cold does without"
    )
    while True:
        # Nothing at all before the migration has begun.
        answer = machine.command("query-migrate")
        status = answer.get("status")
        if status == "completed":
            return
        if status in ("failed", "cancelled"):
            why = answer.get("error-desc", status)
            raise RestoreError(
                f"QEMU could not {what}: {why}",
                hint="see qemu.log in the evidence; --start cold does without",
            )
        time.sleep(min(_POLL_SECONDS, deadline.check()))


def _check_memory(machine: Qemu, profile: Profile) -> None:
    """Refuse a machine with memory that is not migrated and is not that of its CXL devices."""
    text = machine.command("human-monitor-command", **{"command-line": "info ramblock"})
    blocks = [(match["name"], int(match["used"], 16)) for match in _RAM_BLOCK.finditer(text)]
    unnamed = Counter(size for name, size in blocks if not name)
    devices = Counter(int(device.size) for device in profile.devices())
    if not blocks or unnamed - devices:
        what = ", ".join(f"{size:#x} bytes" for size in sorted(unnamed - devices))
        raise RestoreError(
            f"QEMU would not save all of its memory: {what or 'it lists none'}",
            hint="is this QEMU newer than any the harness knows? --start cold does without",
        )


def _read_config(qtest: Qtest, function: PciFunction) -> bytes:
    return qtest.read_memory(function.config, CONFIG_SIZE)


def _write_back(qtest: Qtest, function: PciFunction, before: bytes) -> tuple[str, ...]:
    """Write what differs; the command register last, so that nothing decodes half set up.

    Without bus mastering, the function cannot send an interrupt for what is written either.
    """
    if not function.cxl:
        return ()  # QEMU restores it, or the comparison says that it does not
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
    """Clear what writing the slot control register has raised in slot status: command completed.

    A 16-bit write, because one that touches slot control is the next command.
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
    """Where the PCI Express capability of a configuration space begins, 0 for nowhere."""
    at = config[_CAPABILITIES] & 0xFC
    seen: set[int] = set()
    while at and at not in seen:
        if config[at] == _PCI_EXPRESS:
            return at
        seen.add(at)
        at = config[at + 1] & 0xFC
    return 0


def _differences(qtest: Qtest, saved: SavedMachine) -> list[str]:
    found = []
    for function, before in saved.config:
        now = _read_config(qtest, function)
        found += [
            f"configuration space of {function} at {offset:#05x} was {_word(before, offset):08x} "
            f"and is {_word(now, offset):08x}"
            for offset in _differing(before, now)
        ]
    for whose, span, before in saved.registers:
        now = qtest.read_registers(span.start, span.size)
        found += [
            f"{whose} at {offset:#05x} was {_word(before, offset):08x} "
            f"and is {_word(now, offset):08x}"
            for offset in _differing(before, now)
        ]
    return found


def _differing(before: bytes, now: bytes) -> list[int]:
    """The offsets of the 32-bit words that differ."""
    if before == now:
        return []
    return [at for at in range(0, len(before), 4) if before[at : at + 4] != now[at : at + 4]]


def _word(data: bytes, offset: int) -> int:
    value: int = struct.unpack_from("<I", data, offset)[0]
    return value


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
