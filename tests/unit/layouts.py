# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine's layout made up from its profile, as QEMU's q35 would lay it out: no QEMU needed."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from harness.platform.acpi_tables import FixedWindow, HostBridgeBlock, MemoryAffinity
from harness.platform.address_map import MachineLayout
from harness.platform.firmware_state import FirmwareState, place_firmware
from harness.platform.memory_range import GIB, MIB, MemoryRange
from harness.scenario.profile import Profile
from harness.scenario.scenario_files import Case

GRAIN = 256 * MIB
# A q35 has at most this much RAM below 4 GiB, and keeps these 384 KiB for the VGA hole.
_LOW_LIMIT = 2816 * MIB
_LOW_WHEN_SPLIT = 2 * GIB
_VGA_HOLE = MemoryRange(0xA0000, 0xFFFFF)
_REGISTER_BLOCK = 0x10000
# The HyperTransport hole below 1 TiB: for an AMD CPU, a q35 has nothing from 4 GiB to its end
# once anything would reach it. QEMU, hw/i386/pc.c, pc_max_used_gpa.
_AMD_HOLE = 0xFD_0000_0000
_ABOVE_AMD_HOLE = 1024 * GIB


def layout_of(profile: Profile) -> MachineLayout:
    """RAM from the profile's nodes, then hotplug room, register blocks and windows."""
    layout = _laid_out(profile, 4 * GIB)
    if any(window.range.end >= _AMD_HOLE for window in layout.windows):
        return _laid_out(profile, _ABOVE_AMD_HOLE)
    return layout


def _laid_out(profile: Profile, high: int) -> MachineLayout:
    memory = [*_ram(profile, high)]
    top = max(high, memory[-1].range.end + 1)
    if profile.maxmem is not None:
        # QEMU adds 1 GiB a slot, so that every DIMM can be aligned.
        room = MemoryRange.of_size(top, profile.maxmem - profile.memory + profile.slots * GIB)
        memory.append(MemoryAffinity(room, len(profile.nodes) - 1, hotplug=True))
        top = room.end + 1
    bridges = tuple(
        HostBridgeBlock(
            bridge.bus, MemoryRange.of_size(top + number * _REGISTER_BLOCK, _REGISTER_BLOCK)
        )
        for number, bridge in enumerate(profile.host_bridges)
    )
    windows = []
    told = []
    bus = {bridge.name: bridge.bus for bridge in profile.host_bridges}
    start = -(-top // GRAIN) * GRAIN + GRAIN
    for window in profile.windows:
        span = MemoryRange.of_size(start, window.size)
        targets = tuple(bus[name] for name in window.targets)
        windows.append(FixedWindow(span, targets, window.granularity))
        if not window.hidden:
            told.append(windows[-1])
        start = span.end + 1
    return MachineLayout(
        bridges=bridges,
        windows=tuple(windows),
        memory=tuple(memory),
        srat=srat_table(memory),
        cedt=cedt_table(bridges, told) if profile.differs_from_cedt() else None,
    )


def state_of(case: Case) -> FirmwareState:
    """The firmware state of a scenario on the made-up layout of its profile."""
    return place_firmware(case.document, case.profile, layout_of(case.profile))


def srat_table(entries: Iterable[MemoryAffinity], flags: int = 0) -> bytes:
    """An SRAT with these memory entries (ACPI 6.5, 5.2.16.2), each with `flags` added."""
    body = bytes(12)
    for one in entries:
        kind = 1 | (2 if one.hotplug else 0) | flags
        body += struct.pack("<BBI2xQQ4xI8x", 1, 40, one.node, one.range.start, one.range.size, kind)
    return table("SRAT", body)


def cedt_table(bridges: Iterable[HostBridgeBlock], windows: Iterable[FixedWindow]) -> bytes:
    """A CEDT with these host bridges and windows (CXL 3.1, 9.18.1)."""
    body = b""
    for bridge in bridges:
        span = bridge.registers
        body += struct.pack("<BxHII4xQQ", 0, 32, bridge.uid, 1, span.start, span.size)
    for window in windows:
        body += window_structure(
            window.range.start,
            window.range.size,
            {1: 0, 2: 1, 4: 2, 8: 3, 16: 4, 3: 8, 6: 9, 12: 10}[len(window.targets)],
            {256 << code: code for code in range(7)}[window.granularity],
            window.targets,
        )
    return table("CEDT", body)


def window_structure(
    start: int, size: int, ways_code: int, grain_code: int, targets: Sequence[int]
) -> bytes:
    """A CFMWS with these fields, valid or not."""
    head = struct.pack(
        "<BxHIQQBBHIHH",
        *(1, 36 + 4 * len(targets), 0, start, size, ways_code, 0, 0, grain_code, 0xF, 0),
    )
    return head + b"".join(struct.pack("<I", target) for target in targets)


def table(signature: str, body: bytes, revision: int = 1) -> bytes:
    """An ACPI table with a header and a right checksum."""
    whole = bytearray(
        struct.pack(
            "<4sIBB6s8sI4sI",
            *(signature.encode(), 36 + len(body), 1, 0, b"BOCHS ", b"BXPC    "),
            *(revision, b"BXPC", 1),
        )
        + body
    )
    whole[9] = -sum(whole) & 0xFF
    return bytes(whole)


def _ram(profile: Profile, high: int) -> Iterable[MemoryAffinity]:
    """The nodes one after another from address 0, around the VGA hole and the 4 GiB hole."""
    low = profile.memory if profile.memory < _LOW_LIMIT else _LOW_WHEN_SPLIT
    holes = (_VGA_HOLE, MemoryRange(low, high - 1))
    at = 0
    for number, node in enumerate(profile.nodes):
        left = int(node.memory)
        while left:
            if at == low:
                at = high
            # The VGA hole lies in the RAM that QEMU counts; the 4 GiB hole does not.
            span = MemoryRange.of_size(at, min(left, low - at if at < low else left))
            left -= span.size
            at = span.end + 1
            for part in span.minus(holes):
                yield MemoryAffinity(part, number, hotplug=False)
