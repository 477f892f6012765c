# SPDX-License-Identifier: GPL-2.0-or-later
"""What a scenario may ask of its profile, checked before anything starts."""

from __future__ import annotations

from harness.core.errors import UsageError
from harness.platform.firmware_state import PlacedDecoder
from harness.platform.hdm_decoders import plan_decoder
from harness.platform.memory_range import MemoryRange, format_size
from harness.scenario.load_checks import check_load
from harness.scenario.post_boot_checks import check_steps
from harness.scenario.profile import GRANULARITIES, WAYS, WINDOW_GRAIN, Profile
from harness.scenario.scenario import POLICIES, Decoder, Position, Scenario, decoder_name
from harness.scenario.yaml_document import Document

# HDM decoders that QEMU's host bridges, switches and type-3 devices have (CXL 3.1 allows 10).
_DECODERS_PER_COMPONENT = 4


def check_scenario(document: Document[Scenario], profile: Profile) -> None:
    """Check everything that does not need addresses.

    Raises:
        UsageError: names file, line and field, and the rule that is broken.
    """
    firmware = document.value.firmware
    for name, position in firmware.soft_reserved.items():
        _check_position(document, f"firmware.soft_reserved.{name}", position, profile)
    for index, decoder in enumerate(firmware.decoders):
        _check_decoder(document, index, decoder, profile)
    _check_decoders_together(document, profile)
    _check_srat(document, profile)
    check_load(document)
    _check_expectations(document)
    check_steps(document, profile)


def _check_window(document: Document[Scenario], at: str, window: int, profile: Profile) -> None:
    if not 0 <= window < len(profile.windows):
        have = f"0 to {len(profile.windows) - 1}" if profile.windows else "none"
        raise document.error(
            at, f"the profile has no window {window}", hint=f"windows of the profile: {have}"
        )


def _check_extent(
    document: Document[Scenario],
    at: str,
    window: int,
    offset: int,
    size: int | None,
    profile: Profile,
) -> None:
    if size == 0:
        raise document.error(f"{at}.size", "has no bytes", hint="leave size out, or enlarge it")
    room = profile.windows[window].size
    if offset >= room or offset + (size or 1) > room:
        raise document.error(
            at,
            f"reaches past the end of window {window}, which has {format_size(room)}",
            hint="reduce offset or size; CXL 3.1, 9.18.1.3: a window has Window Size bytes",
        )


def _check_position(
    document: Document[Scenario], at: str, position: Position, profile: Profile
) -> None:
    kinds = [
        position.window is not None,
        position.node is not None,
        position.start is not None or position.end is not None,
    ]
    if kinds.count(True) != 1:
        raise document.error(
            at,
            "says where it lies in none or several ways",
            hint="give one of: window, node, or start and end",
        )
    if position.window is None and (
        position.offset or position.size or position.last_window is not None
    ):
        raise document.error(
            at, "offset, size and last_window need a window", hint="add window, or remove them"
        )
    if position.window is not None:
        _check_window(document, f"{at}.window", position.window, profile)
        _check_extent(document, at, position.window, position.offset, position.size, profile)
        if position.last_window is not None:
            _check_window(document, f"{at}.last_window", position.last_window, profile)
            if position.last_window <= position.window or position.size is not None:
                raise document.error(
                    f"{at}.last_window",
                    "needs a later window, and no size",
                    hint="the range goes from the offset in window to the end of last_window",
                )
        return
    if position.node is not None:
        if not 0 <= position.node < len(profile.nodes):
            raise document.error(
                f"{at}.node",
                f"the profile has no node {position.node}",
                hint=f"nodes of the profile: 0 to {len(profile.nodes) - 1}",
            )
        return
    if position.start is None or position.end is None or position.end < position.start:
        raise document.error(
            at, "start and end make no range", hint="end is the last address, and not below start"
        )


def _check_decoder(
    document: Document[Scenario], index: int, decoder: Decoder, profile: Profile
) -> None:
    at = f"firmware.decoders[{index}]"
    _check_window(document, f"{at}.window", decoder.window, profile)
    _check_extent(document, at, decoder.window, decoder.offset, decoder.size, profile)
    window = profile.windows[decoder.window]
    ways = len(decoder.devices)
    names = [device.name for device in profile.devices()]
    for device in decoder.devices:
        if device not in names:
            raise document.error(
                f"{at}.devices",
                f"the profile has no device {device!r}",
                hint=f"devices of the profile: {', '.join(names) or 'none'}",
            )
    if len(set(decoder.devices)) != ways or ways not in WAYS:
        raise document.error(
            f"{at}.devices",
            f"cannot interleave over {', '.join(decoder.devices) or 'no device'}",
            hint=f"name {', '.join(map(str, sorted(WAYS)))} different devices",
        )
    for field, value in (("offset", decoder.offset), ("size", decoder.size)):
        if value % (WINDOW_GRAIN * ways):
            raise document.error(
                f"{at}.{field}",
                f"{format_size(value)} is not a multiple of 256M for each device",
                hint="CXL 3.1, 8.2.4.20: decoders have a granularity of 256 MiB",
            )
    if decoder.ports_size is not None:
        _check_ports(document, f"{at}.ports_size", decoder, profile)
    granularity = decoder.granularity or window.granularity
    if granularity not in GRANULARITIES:
        raise document.error(
            f"{at}.granularity",
            f"{granularity} is not an interleave granularity",
            hint=f"one of {', '.join(map(str, GRANULARITIES))}",
        )
    if len(window.targets) > 1 and granularity > window.granularity:
        raise document.error(
            f"{at}.granularity",
            f"window {decoder.window} interleaves in steps of {window.granularity}",
            hint="below an interleaved window, decoders have its granularity or a smaller one",
        )
    bridges = [profile.path_to(device)[0].name for device in decoder.devices]
    part = window.part_at(decoder.offset, decoder.size)
    if part is None:
        raise document.error(
            at,
            f"lies in several parts of window {decoder.window}",
            hint="the profile's parts are decoded by different hardware: one decoder for each",
        )
    targets = part.targets
    steps = window.granularity // granularity if len(targets) > 1 else 1
    expected = [targets[way // steps % len(targets)] for way in range(ways)]
    if ways % (steps * len(targets)) or bridges != expected:
        raise document.error(
            f"{at}.devices",
            f"window {decoder.window} interleaves over {', '.join(targets)}, but these devices "
            f"lie below {', '.join(bridges)}",
            hint="CXL 3.1, 9.18.1.3: devices take turns over the window's targets, in its order",
        )
    _check_ways(document, f"{at}.devices", len(targets), "host bridges")
    _check_turns(document, f"{at}.devices", decoder, profile)
    _check_ways(document, f"{at}.devices", ways, "devices")
    for one in profile.devices():
        if one.name in decoder.devices and decoder.size // ways > one.size:
            raise document.error(
                f"{at}.size",
                f"{one.name} has only {format_size(one.size)}",
                hint="reduce size, or enlarge the device in the profile",
            )


def _check_ways(document: Document[Scenario], at: str, ways: int, what: str) -> None:
    if ways & (ways - 1):
        raise document.error(
            at,
            f"QEMU cannot decode an interleave over {ways} {what}",
            hint="CXL allows it, but QEMU 10.0 decodes powers of two only, and dies of others",
        )


def _check_ports(document: Document[Scenario], at: str, decoder: Decoder, profile: Profile) -> None:
    size = decoder.ports_size or 0
    if size <= decoder.size or size % (WINDOW_GRAIN * len(decoder.devices)):
        raise document.error(
            at,
            f"{format_size(size)} is not more than size, in steps of 256M for each device",
            hint="leave it out where host bridge and devices agree",
        )
    _check_extent(document, at, decoder.window, decoder.offset, size, profile)
    if profile.windows[decoder.window].part_at(decoder.offset, size) is None:
        raise document.error(
            at,
            f"reaches into another part of window {decoder.window}",
            hint="the profile's parts are decoded by different hardware",
        )


def _check_decoders_together(document: Document[Scenario], profile: Profile) -> None:
    decoders = document.value.firmware.decoders
    used: dict[str, int] = {}
    count: dict[str, int] = {}
    highest: dict[str, tuple[int, int]] = {}
    sizes = {device.name: device.size for device in profile.devices()}
    for index, decoder in enumerate(decoders):
        at = f"firmware.decoders[{index}]"
        for other in decoders[:index]:
            if (
                other.window == decoder.window
                and other.offset < decoder.offset + (decoder.ports_size or decoder.size)
                and decoder.offset < other.offset + (other.ports_size or other.size)
            ):
                raise document.error(
                    at,
                    "overlaps an earlier decoder",
                    hint="CXL 3.1, 8.2.4.20.12: decoders do not overlap; ports_size counts as well",
                )
        components = {name for device in decoder.devices for name in _above(profile, device)}
        for name in (*components, *decoder.devices):
            count[name] = count.get(name, 0) + 1
            if count[name] > _DECODERS_PER_COMPONENT:
                raise document.error(
                    at,
                    f"{name} has only {_DECODERS_PER_COMPONENT} HDM decoders",
                    hint="CXL 3.1, 8.2.4.20.1: a component says how many it has, and QEMU's say "
                    f"{_DECODERS_PER_COMPONENT}; use fewer, or another device",
                )
            place = (decoder.window, decoder.offset)
            if highest.get(name, place) > place:
                raise document.error(
                    at,
                    f"{name} would have decoders out of address order",
                    hint="CXL 3.1, 8.2.4.20.12: list decoders by ascending address",
                )
            highest[name] = place
        for device in decoder.devices:
            used[device] = used.get(device, 0) + decoder.size // len(decoder.devices)
            if used[device] > sizes[device]:
                raise document.error(
                    f"{at}.size",
                    f"the decoders of {device} need {format_size(used[device])}, it has "
                    f"{format_size(sizes[device])}",
                    hint="reduce sizes, or enlarge the device in the profile",
                )


def _above(profile: Profile, device: str) -> tuple[str, ...]:
    """The names of what decodes above a device: its host bridge, and ports with a switch."""
    bridge, ports = profile.path_to(device)
    return (bridge.name, *(port.name for _, port in ports if port.switch is not None))


def _check_turns(document: Document[Scenario], at: str, decoder: Decoder, profile: Profile) -> None:
    """Plan one decoder, at its place in a window from address 0 on: does every level take it?"""
    part = profile.windows[decoder.window].part_at(decoder.offset, decoder.size)
    assert part is not None, "the caller saw to it"
    span = MemoryRange.of_size(decoder.offset, decoder.size)
    placed = PlacedDecoder(
        name=at,
        range=span,
        window=decoder.window,
        devices=decoder.devices,
        granularity=decoder.granularity or profile.windows[decoder.window].granularity,
        window_ways=len(part.targets),
        hidden=False,
        ports_range=span,
    )
    try:
        plan_decoder(profile, placed)
    except UsageError as error:
        raise document.error(at, error.message, hint=error.hint) from None


def _check_srat(document: Document[Scenario], profile: Profile) -> None:
    entries = document.value.firmware.acpi.srat
    for index, entry in enumerate(entries):
        at = f"firmware.acpi.srat[{index}]"
        _check_window(document, f"{at}.window", entry.window, profile)
        _check_extent(document, at, entry.window, entry.offset, entry.size, profile)
        end = entry.offset + (entry.size or profile.windows[entry.window].size - entry.offset)
        for other in entries[:index]:
            other_end = other.offset + (
                other.size or profile.windows[other.window].size - other.offset
            )
            if other.window == entry.window and other.offset < end and entry.offset < other_end:
                raise document.error(
                    at,
                    "overlaps an earlier entry",
                    hint="ACPI 6.5, 5.2.16.2: a memory range belongs to one proximity domain",
                )


def _check_expectations(document: Document[Scenario]) -> None:
    scenario = document.value
    reserved = set(scenario.firmware.soft_reserved)
    decoders = [decoder_name(scenario, i) for i in range(len(scenario.firmware.decoders))]
    names = reserved | set(decoders)
    if len(names) != len(reserved) + len(decoders):
        raise document.error(
            "firmware.decoders", "a name stands twice", hint="name each range and decoder once"
        )
    for policy in POLICIES:
        for name in scenario.expect.owners(policy):
            if name.partition("[")[0] not in names:
                raise document.error(
                    f"expect.{policy}.{name}",
                    f"nothing is called {name!r}",
                    hint=f"names of this scenario: {', '.join(sorted(names))}",
                )
