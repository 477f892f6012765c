# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of a scenario against its profile, made before anything starts."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.errors import UsageError
from harness.platform.firmware_state import PlacedDecoder
from harness.platform.hdm_decoders import plan_decoder
from harness.platform.kernel_cmdline import denied_modules
from harness.platform.memory_range import MemoryRange, format_size
from harness.scenario.module_load import LoadPlan
from harness.scenario.post_boot_steps import check_steps
from harness.scenario.profile import Profile
from harness.scenario.scenario import (
    POLICIES,
    Decoder,
    Position,
    Scenario,
    SratEntry,
    decoder_name,
)
from harness.scenario.yaml_document import Document

# HDM decoders of QEMU's host bridges, switches and type-3 devices (CXL 3.1 allows 10).
_DECODERS_PER_COMPONENT = 4


def check_scenario(document: Document[Scenario], profile: Profile) -> None:
    """Check everything that does not depend on addresses."""
    scenario = document.value
    for name, position in scenario.firmware.soft_reserved.items():
        _check_position(document, f"firmware.soft_reserved.{name}", position, profile)
    for index, decoder in enumerate(scenario.firmware.decoders):
        _check_decoder(document, f"firmware.decoders[{index}]", decoder, profile)
    for index, entry in enumerate(scenario.firmware.acpi.srat):
        _check_part(document, f"firmware.acpi.srat[{index}]", entry, profile)
    _check_overlaps(
        document,
        "firmware.decoders",
        scenario.firmware.decoders,
        profile,
        "CXL 3.1, 8.2.4.20.12: decoders do not overlap; ports_size counts as well",
    )
    _check_overlaps(
        document,
        "firmware.acpi.srat",
        scenario.firmware.acpi.srat,
        profile,
        "ACPI 6.5, 5.2.16.2: a memory range belongs to one proximity domain",
    )
    _check_components(document, profile)
    check_load(document)
    _check_expectations(document)
    _check_step_modules(document)
    check_steps(
        document,
        scenario.guest.then,
        list(scenario.firmware.soft_reserved),
        _decoder_names(scenario),
        profile.cpus,
    )


def check_load(document: Document[Scenario]) -> None:
    """Check `guest.load` against the parameters and fields that keep modules out."""
    guest = document.value.guest
    at = "guest.load"
    if isinstance(guest.load, LoadPlan):
        given = [
            name for name in ("all_orders", "parallel", "modalias") if getattr(guest.load, name)
        ]
        if len(given) != 1:
            raise document.error(
                at,
                f"lists {' and '.join(given) or 'no module'}",
                hint="give a list of modules, or one of all_orders, parallel and modalias",
            )
        at = f"{at}.{given[0]}"
        _check_unique(document, at, guest.modules)
    denied = denied_modules(document.value.kernel.cmdline)
    for index, name in enumerate(guest.modules):
        for modules, field in (
            (guest.missing, "guest.missing removes"),
            (denied, "module_blacklist in kernel.cmdline denies"),
        ):
            if name in modules:
                raise document.error(
                    f"{at}[{index}]",
                    f"loads {name}, which {field}",
                    hint="remove it from one of the two",
                )


def _check_step_modules(document: Document[Scenario]) -> None:
    guest = document.value.guest
    for index, step in enumerate(guest.then):
        at = f"guest.then[{index}].{step.verb}"
        _check_unique(document, at, step.modules())
        for name in step.modules():
            if name in guest.missing:
                raise document.error(
                    at,
                    f"names {name}, which guest.missing removes",
                    hint="remove it from one of the two",
                )


def _check_unique(document: Document[Scenario], at: str, names: tuple[str, ...]) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise document.error(
                f"{at}[{index}]", f"duplicate module {name}", hint="list each module once"
            )


def _decoder_names(scenario: Scenario) -> list[str]:
    return [decoder_name(scenario, index) for index in range(len(scenario.firmware.decoders))]


def _check_window(document: Document[Scenario], at: str, window: int, profile: Profile) -> None:
    if not 0 <= window < len(profile.windows):
        raise document.error(
            at,
            f"the profile has no window {window}",
            hint=f"the profile has {len(profile.windows)} windows, numbered from 0",
        )


def _check_part(
    document: Document[Scenario], at: str, part: Position | Decoder | SratEntry, profile: Profile
) -> None:
    """Check the window, offset and size of a part of a window."""
    assert part.window is not None, "the caller has checked it"
    _check_window(document, f"{at}.window", part.window, profile)
    if part.size == 0:
        raise document.error(f"{at}.size", "has no bytes", hint="leave size out, or enlarge it")
    size = getattr(part, "ports_size", None) or part.size or 1
    total = profile.windows[part.window].size
    if part.offset >= total or part.offset + size > total:
        raise document.error(
            at,
            f"ends behind window {part.window}, which has {format_size(total)}",
            hint="reduce offset or size (CXL 3.1, 9.18.1.3: Window Size)",
        )


def _check_position(
    document: Document[Scenario], at: str, position: Position, profile: Profile
) -> None:
    if position.window is not None:
        _check_part(document, at, position, profile)
    if position.last_window is not None:
        _check_window(document, f"{at}.last_window", position.last_window, profile)
    if position.node is not None and not 0 <= position.node < len(profile.nodes):
        raise document.error(
            f"{at}.node",
            f"the profile has no node {position.node}",
            hint=f"nodes of the profile: 0 to {len(profile.nodes) - 1}",
        )


def _check_decoder(
    document: Document[Scenario], at: str, decoder: Decoder, profile: Profile
) -> None:
    _check_part(document, at, decoder, profile)
    sizes = {device.name: device.size for device in profile.devices()}
    for device in decoder.devices:
        if device not in sizes:
            raise document.error(
                f"{at}.devices",
                f"the profile has no device {device!r}",
                hint=f"devices of the profile: {', '.join(sizes) or 'none'}",
            )
    window = profile.windows[decoder.window]
    part = window.part_at(decoder.offset, decoder.ports_size or decoder.size)
    if part is None:
        raise document.error(
            at,
            f"lies in several parts of window {decoder.window}",
            hint="different hardware decodes the profile's parts: use one decoder for each",
        )
    granularity = decoder.granularity or window.granularity
    if len(window.targets) > 1 and granularity > window.granularity:
        raise document.error(
            f"{at}.granularity",
            f"window {decoder.window} interleaves in steps of {window.granularity}",
            hint="below an interleaved window, decoders have its granularity or a smaller one",
        )
    targets = part.targets
    _check_targets(document, f"{at}.devices", decoder, profile, targets)
    _check_power_of_two(document, f"{at}.devices", len(targets), "host bridges")
    _check_plan(document, f"{at}.devices", decoder, profile, len(targets))
    _check_power_of_two(document, f"{at}.devices", len(decoder.devices), "devices")
    for device in decoder.devices:
        if decoder.size // len(decoder.devices) > sizes[device]:
            raise document.error(
                f"{at}.size",
                f"{device} has only {format_size(sizes[device])}",
                hint="reduce size, or enlarge the device in the profile",
            )


def _check_power_of_two(document: Document[Scenario], at: str, ways: int, components: str) -> None:
    if ways & (ways - 1):
        raise document.error(
            at,
            f"QEMU cannot decode an interleave over {ways} {components}",
            hint="CXL allows it, but QEMU 10.0 decodes powers of two only, and crashes on others",
        )


def _check_targets(
    document: Document[Scenario],
    at: str,
    decoder: Decoder,
    profile: Profile,
    targets: tuple[str, ...],
) -> None:
    """Check that the devices lie below the window's targets, in interleave order."""
    ways = len(decoder.devices)
    window = profile.windows[decoder.window]
    granularity = decoder.granularity or window.granularity
    bridges = [profile.path_to(device)[0].name for device in decoder.devices]
    steps = window.granularity // granularity if len(targets) > 1 else 1
    expected = [targets[way // steps % len(targets)] for way in range(ways)]
    if ways % (steps * len(targets)) or bridges != expected:
        raise document.error(
            at,
            f"window {decoder.window} interleaves over {', '.join(targets)}, but these devices "
            f"lie below {', '.join(bridges)}",
            hint="CXL 3.1, 9.18.1.3: devices alternate over the window's targets, in its order",
        )


def _check_plan(
    document: Document[Scenario], at: str, decoder: Decoder, profile: Profile, window_ways: int
) -> None:
    """Plan one decoder, as if its window began at address 0, to check every level above it."""
    span = MemoryRange.of_size(decoder.offset, decoder.size)
    placed = PlacedDecoder(
        name=at,
        range=span,
        window=decoder.window,
        devices=decoder.devices,
        granularity=decoder.granularity or profile.windows[decoder.window].granularity,
        window_ways=window_ways,
        hidden=False,
        ports_range=span,
    )
    try:
        plan_decoder(profile, placed)
    except UsageError as error:
        raise document.error(at, error.message, hint=error.hint) from None


def _check_overlaps(
    document: Document[Scenario],
    field: str,
    parts: Sequence[Decoder | SratEntry],
    profile: Profile,
    hint: str,
) -> None:
    spans: list[tuple[int, MemoryRange]] = []
    for index, part in enumerate(parts):
        span = _extent(part, profile)
        if any(window == part.window and other.overlaps(span) for window, other in spans):
            raise document.error(f"{field}[{index}]", "overlaps an earlier entry", hint=hint)
        spans.append((part.window, span))


def _extent(part: Decoder | SratEntry, profile: Profile) -> MemoryRange:
    """The addresses of a part relative to the start of its window."""
    size = part.ports_size or part.size if isinstance(part, Decoder) else part.size
    return MemoryRange.of_size(part.offset, size or profile.windows[part.window].size - part.offset)


def _check_components(document: Document[Scenario], profile: Profile) -> None:
    """Check the number of decoders of each component, their order, and the devices' capacity."""
    used: dict[str, int] = {}
    places: dict[str, list[tuple[int, int]]] = {}
    sizes = {device.name: device.size for device in profile.devices()}
    for index, decoder in enumerate(document.value.firmware.decoders):
        at = f"firmware.decoders[{index}]"
        place = (decoder.window, decoder.offset)
        ports = {name for device in decoder.devices for name in _above(profile, device)}
        for name in (*ports, *decoder.devices):
            earlier = places.setdefault(name, [])
            if len(earlier) == _DECODERS_PER_COMPONENT:
                raise document.error(
                    at,
                    f"{name} has only {_DECODERS_PER_COMPONENT} HDM decoders",
                    hint="CXL 3.1, 8.2.4.20.1: Decoder Count, "
                    f"{_DECODERS_PER_COMPONENT} in QEMU; use fewer, or another device",
                )
            if earlier and earlier[-1] > place:
                raise document.error(
                    at,
                    f"{name} would have decoders out of address order",
                    hint="CXL 3.1, 8.2.4.20.12: list decoders by ascending address",
                )
            earlier.append(place)
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
    """Names of the components that decode above a device: host bridge, ports with a switch."""
    bridge, ports = profile.path_to(device)
    return (bridge.name, *(port.name for _, port in ports if port.switch is not None))


def _check_expectations(document: Document[Scenario]) -> None:
    scenario = document.value
    names = [*scenario.firmware.soft_reserved, *_decoder_names(scenario)]
    if len(set(names)) != len(names):
        raise document.error(
            "firmware.decoders", "duplicate name", hint="name each range and decoder once"
        )
    for policy in POLICIES:
        for name in scenario.expect.owners(policy):
            if name.partition("[")[0] not in names:
                raise document.error(
                    f"expect.{policy}.{name}",
                    f"there is no range or decoder {name!r}",
                    hint=f"names of this scenario: {', '.join(sorted(names))}",
                )
