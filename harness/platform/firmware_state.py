# SPDX-License-Identifier: GPL-2.0-or-later
"""The firmware state of a scenario at the addresses of its machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from harness.platform.acpi_tables import MemoryAffinity
from harness.platform.address_map import MachineLayout
from harness.platform.memory_range import MemoryRange, format_size
from harness.platform.target_node import NodeRange, node_ranges
from harness.scenario.profile import Profile
from harness.scenario.scenario import Decoder, Position, Scenario, SratEntry, decoder_name
from harness.scenario.yaml_document import Document

_PAGE = 4096
# Linux, lib/cmdline.c, memparse().
_NUMBER = r"(?:0x[0-9a-f]{1,16}|[0-9]{1,20})[kmgtpe]?"
_RAM_PARAMETER = re.compile(f"(?P<size>{_NUMBER})@(?P<start>{_NUMBER})", re.IGNORECASE)
_UNITS = "kmgtpe"


@dataclass(frozen=True)
class NamedRange:
    """A range with its name in the scenario."""

    name: str
    range: MemoryRange


@dataclass(frozen=True)
class PlacedDecoder:
    """Decoders to commit for one range.

    Attributes:
        devices: type-3 devices in interleave order.
        granularity: bytes of one interleave step.
        window_ways: host bridges that this part of the window interleaves over.
        hidden: its host bridge or its window is missing from the CEDT that Linux gets.
        ports_range: decoded by the host bridge and the switches above the devices; Linux
            assembles a region only if it equals `range`.
        locked: locked by the firmware: Linux then leaves them committed.
        paths: for each device, its host bridge and the numbers of the ports down to it.
    """

    name: str
    range: MemoryRange
    window: int
    devices: tuple[str, ...]
    granularity: int
    window_ways: int
    hidden: bool
    ports_range: MemoryRange
    locked: bool = False
    paths: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class FirmwareState:
    """The state that the firmware leaves, at real addresses.

    Attributes:
        soft_reserved: Soft Reserved ranges, in the scenario's order.
        decoders: committed decoders, in the scenario's order.
        windows: the CXL windows in the CEDT that Linux gets.
        ram: RAM at boot.
        hotplug_room: ranges that the SRAT reserves for memory hotplug.
        srat: entries added to the SRAT.
        dividing: memory entries of the SRAT that divide Soft Reserved ranges: all of them on a
            machine with a HMAT, none on one without (Linux, drivers/acpi/numa/hmat.c, hmat_init).
        firmware_ram: ranges outside the machine's RAM that the kernel gets as ordinary RAM, by
            `memmap=SIZE@START` in `kernel.cmdline`.
        nodes: ranges that have a NUMA node, with windows that no entry of the SRAT describes.
    """

    soft_reserved: tuple[NamedRange, ...]
    decoders: tuple[PlacedDecoder, ...]
    windows: tuple[MemoryRange, ...]
    ram: tuple[MemoryRange, ...]
    hotplug_room: tuple[MemoryRange, ...]
    srat: tuple[MemoryAffinity, ...]
    dividing: tuple[MemoryRange, ...] = ()
    firmware_ram: tuple[MemoryRange, ...] = ()
    nodes: tuple[NodeRange, ...] = ()

    def kernel_ranges(self) -> tuple[NamedRange, ...]:
        """Soft Reserved ranges as the kernel divides them, each to be owned as a whole.

        Where SRAT entries tile a range, each entry is a range of its own, named `sr0[0]`,
        `sr0[1]` and so on. An entry that reaches out of the range, or a part that no entry
        describes, leaves it whole.
        """
        found = []
        for reserved in self.soft_reserved:
            parts = sorted({e for e in self.dividing if reserved.range.contains(e)})
            if len(parts) < 2 or reserved.range.minus(parts):
                found.append(reserved)
                continue
            found += [NamedRange(f"{reserved.name}[{n}]", part) for n, part in enumerate(parts)]
        return tuple(found)

    def judged_ranges(self) -> tuple[NamedRange, ...]:
        """`kernel_ranges`, then decoders: everything that can have an expected owner."""
        decoders = (NamedRange(decoder.name, decoder.range) for decoder in self.decoders)
        return (*self.kernel_ranges(), *decoders)

    def named_ranges(self) -> tuple[NamedRange, ...]:
        """Soft Reserved ranges, then decoders, each by its name in the scenario."""
        decoders = (NamedRange(decoder.name, decoder.range) for decoder in self.decoders)
        return (*self.soft_reserved, *decoders)

    def regions(self) -> tuple[NamedRange, ...]:
        """The regions that Linux can assemble from these decoders.

        Source: Linux, drivers/cxl/core/region.c, match_auto_decoder: every decoder above the
        endpoints must have the region's range.
        """
        return tuple(
            NamedRange(decoder.name, decoder.range)
            for decoder in self.decoders
            if not decoder.hidden and decoder.ports_range == decoder.range
        )


def place_firmware(
    document: Document[Scenario], profile: Profile, layout: MachineLayout
) -> FirmwareState:
    """Resolve the positions of a checked scenario against the addresses of a machine.

    Raises:
        UsageError: a position does not fit the machine; names file, line and field.
    """
    firmware = document.value.firmware
    windows = tuple(window.range for window in layout.windows)
    visible = tuple(
        span for span, window in zip(windows, profile.windows, strict=True) if not window.hidden
    )
    decoders = tuple(
        _place_decoder(document.value, index, decoder, profile, layout)
        for index, decoder in enumerate(firmware.decoders)
    )
    reserved = tuple(
        NamedRange(name, _place(document, f"firmware.soft_reserved.{name}", position, layout))
        for name, position in firmware.soft_reserved.items()
    )
    srat = tuple(
        MemoryAffinity(_part_of_window(windows[entry.window], entry), entry.node, entry.hotplug)
        for entry in firmware.acpi.srat
    )
    state = FirmwareState(
        soft_reserved=reserved,
        decoders=decoders,
        windows=visible,
        ram=layout.ram(),
        hotplug_room=layout.hotplug_room(),
        srat=srat,
        dividing=tuple(entry.range for entry in (*layout.memory, *srat)) if profile.hmat else (),
        firmware_ram=given_as_ram(document.value.kernel.cmdline),
        nodes=node_ranges(layout.srat, srat, visible),
    )
    _check_reserved(document, state, windows)
    return state


def given_as_ram(cmdline: Sequence[str]) -> tuple[MemoryRange, ...]:
    """The ranges of `memmap=SIZE@START` parameters (Linux, arch/x86/kernel/e820.c)."""
    found = []
    for argument in cmdline:
        for word in argument.removeprefix("memmap=").split(","):
            match = _RAM_PARAMETER.fullmatch(word) if argument.startswith("memmap=") else None
            if match is not None and (size := _memparse(match["size"])):
                found.append(MemoryRange.of_size(_memparse(match["start"]), size))
    return tuple(found)


def _memparse(text: str) -> int:
    digits = text.lower()
    is_hex = digits.startswith("0x")
    # In a hexadecimal number, e is a digit.
    unit = digits[-1] if digits[-1] in (_UNITS[:-1] if is_hex else _UNITS) else ""
    number = int(digits.removesuffix(unit), 16 if is_hex else 10)
    return number << 10 * (_UNITS.index(unit) + 1 if unit else 0)


def _place_decoder(
    scenario: Scenario, index: int, decoder: Decoder, profile: Profile, layout: MachineLayout
) -> PlacedDecoder:
    window = layout.windows[decoder.window]
    part = profile.windows[decoder.window].part_at(decoder.offset, decoder.size)
    assert part is not None, "check_scenario refuses the others"
    start = window.range.start + decoder.offset
    ports_above = [profile.path_to(device) for device in decoder.devices]
    return PlacedDecoder(
        name=decoder_name(scenario, index),
        range=MemoryRange.of_size(start, decoder.size),
        window=decoder.window,
        devices=decoder.devices,
        granularity=decoder.granularity or window.granularity,
        window_ways=len(part.targets),
        hidden=profile.windows[decoder.window].hidden or ports_above[0][0].hidden,
        ports_range=MemoryRange.of_size(start, decoder.ports_size or decoder.size),
        locked=decoder.locked,
        paths=tuple(
            (bridge.name, *(str(number) for number, _ in ports)) for bridge, ports in ports_above
        ),
    )


def _part_of_window(window: MemoryRange, part: Position | SratEntry) -> MemoryRange:
    start = window.start + part.offset
    return MemoryRange(start, start + part.size - 1 if part.size else window.end)


def _place(
    document: Document[Scenario], at: str, position: Position, layout: MachineLayout
) -> MemoryRange:
    if position.window is not None:
        first = layout.windows[position.window].range
        if position.last_window is not None:
            last = layout.windows[position.last_window].range
            return MemoryRange(first.start + position.offset, last.end)
        return _part_of_window(first, position)
    if position.node is not None:
        ranges = layout.ram_of(position.node)
        if len(ranges) != 1:
            raise document.error(
                f"{at}.node",
                f"node {position.node} has {len(ranges)} ranges of RAM",
                hint="only a node above 4 GiB is one range; or give start and end",
            )
        return ranges[0]
    assert position.start is not None and position.end is not None, (
        "check_scenario refuses the others"
    )
    return MemoryRange(position.start, position.end)


def _check_reserved(
    document: Document[Scenario], state: FirmwareState, windows: tuple[MemoryRange, ...]
) -> None:
    backed = [*state.ram, *(d.range for d in state.decoders)]
    for given in state.firmware_ram:
        for hole in given.minus(backed):
            raise document.error(
                "kernel.cmdline",
                f"memmap= makes {hole} RAM, but there is no memory behind it",
                hint="commit a decoder over it (firmware.decoders)",
            )
    for decoder in state.decoders:
        rest = decoder.range.minus(state.firmware_ram)
        if rest and rest != (decoder.range,):
            raise document.error(
                "kernel.cmdline",
                f"memmap= gives a part of {decoder.name} to the kernel as RAM, and not {rest[0]}: "
                "dax_cxl can own a region only as a whole",
                hint=f"give all of {decoder.range}, or none of it",
            )
    boot_ram = min((bank for bank in state.ram if bank.start > 0xFFFFF), default=None)
    for index, reserved in enumerate(state.soft_reserved):
        if reserved.range.start % _PAGE or (reserved.range.end + 1) % _PAGE:
            raise document.error(
                f"firmware.soft_reserved.{reserved.name}",
                f"{reserved.range} does not begin and end at page boundaries of 4 KiB",
                hint="UEFI 2.10, 7.2.3: memory descriptors count pages of 4 KiB",
            )
        at = f"firmware.soft_reserved.{reserved.name}"
        for other in state.soft_reserved[:index]:
            if other.range.overlaps(reserved.range):
                raise document.error(
                    at,
                    f"overlaps {other.name} at {other.range}",
                    hint="move or shrink one of the two",
                )
        if boot_ram is not None and reserved.range.overlaps(boot_ram):
            raise document.error(
                at,
                f"covers the RAM at {boot_ram} that the kernel boots in",
                hint="use a node above 4 GiB",
            )
        unbacked = reserved.range.minus(backed)
        holes = [hole for hole in unbacked if any(hole.overlaps(w) for w in windows)]
        nowhere = [hole for hole in unbacked if hole not in holes]
        if holes:
            # A kernel that onlines it crashes: every read returns poison.
            raise document.error(
                at,
                f"{holes[0]} ({format_size(holes[0].size)}) has no memory behind it",
                hint="commit a decoder over it; with a hidden host bridge in the profile, memory "
                "works although Linux assembles no region",
            )
        if nowhere:
            raise document.error(
                at,
                f"{nowhere[0]} lies outside the RAM and the windows of the profile",
                hint="harness boot --print shows the machine; windows and RAM are at "
                + ", ".join(str(r) for r in sorted((*windows, *state.ram))),
            )
