# SPDX-License-Identifier: GPL-2.0-or-later
"""Compute the values of all HDM decoders that the firmware commits.

Source: CXL 3.1, 8.2.4.20 (HDM decoder capability) and 9.13.1 (interleave over several levels).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from harness.core.errors import UsageError
from harness.platform.firmware_state import FirmwareState, PlacedDecoder
from harness.platform.memory_range import MemoryRange
from harness.scenario.profile import GRANULARITIES, Port, Profile

# Ports in the target list of one decoder.
_MOST_TARGETS = 8
# Decoders select by address bits 8 to 14: no other bits have a flag in the capability register
# (CXL 3.1, 8.2.4.20.1), and QEMU's components set both flags. Linux refuses decoders that use more.
MOST_STRIDE = 32768

ComponentKind = Literal["host_bridge", "switch", "endpoint"]


@dataclass(frozen=True)
class Component:
    """A component with HDM decoders, and the path to it.

    Attributes:
        name: of the host bridge, of the port above the switch, or of the device.
        bus: PCI bus number of its host bridge.
        ports: port numbers from the host bridge down to it; empty for a host bridge.
    """

    kind: ComponentKind
    name: str
    bus: int
    ports: tuple[int, ...] = ()


@dataclass(frozen=True)
class DecoderSetting:
    """The values of one HDM decoder.

    Attributes:
        index: its number in the component.
        ways: interleave ways of this level.
        granularity: bytes of one interleave step of this level.
        targets: port numbers in interleave order; empty for an endpoint.
        locked: with Lock On Commit.
    """

    component: Component
    index: int
    range: MemoryRange
    ways: int
    granularity: int
    targets: tuple[int, ...]
    locked: bool = False


def plan_decoders(profile: Profile, state: FirmwareState) -> tuple[DecoderSetting, ...]:
    """List the decoders to commit: endpoints before the ports above them, by ascending address.

    Raises:
        UsageError: the devices of a decoder cannot be interleaved by this tree of ports.
    """
    settings: list[DecoderSetting] = []
    used: dict[Component, int] = {}
    for decoder in sorted(state.decoders, key=lambda placed: placed.range):
        for setting in plan_decoder(profile, decoder):
            index = used.get(setting.component, 0)
            used[setting.component] = index + 1
            settings.append(replace(setting, index=index))
    return tuple(settings)


def plan_decoder(profile: Profile, decoder: PlacedDecoder) -> tuple[DecoderSetting, ...]:
    """Compute the settings of one decoder, as if it were the first of each of its components.

    Raises:
        UsageError: its devices cannot be interleaved by this tree of ports.
    """
    settings: list[DecoderSetting] = []

    def add(component: Component, ways: int, grain: int, targets: Sequence[int]) -> None:
        span = decoder.range if component.kind == "endpoint" else decoder.ports_range
        settings.append(
            DecoderSetting(component, 0, span, ways, grain, tuple(targets), decoder.locked)
        )

    ways = len(decoder.devices)
    if ways > 1 and ways * decoder.granularity > MOST_STRIDE:
        raise UsageError(
            f"{ways} ways in steps of {decoder.granularity} need address bits above 14",
            where=decoder.name,
            hint="decoders select by address bits 8 to 14 (CXL 3.1, 8.2.4.20.1): ways times "
            f"granularity are at most {MOST_STRIDE}",
        )
    paths = [profile.path_to(device) for device in decoder.devices]
    for device, (bridge, ports) in zip(decoder.devices, paths, strict=True):
        numbers = tuple(number for number, _ in ports)
        endpoint = Component("endpoint", device, bridge.bus, numbers)
        add(endpoint, ways, decoder.granularity, ())
    for bridge in dict.fromkeys(bridge for bridge, _ in paths):
        below = {way: ports for way, (other, ports) in enumerate(paths) if other is bridge}
        above = Component("host_bridge", bridge.name, bridge.bus)
        _plan_level(above, decoder, below, decoder.granularity * decoder.window_ways, add)
    return tuple(settings)


def _plan_level(
    component: Component,
    decoder: PlacedDecoder,
    paths: Mapping[int, tuple[tuple[int, Port], ...]],
    unused_grain: int,
    add: Callable[[Component, int, int, Sequence[int]], None],
) -> None:
    """Plan a component and all components below it.

    Args:
        component: the host bridge or switch.
        decoder: the decoder to plan.
        paths: the ports from the component down to each of its devices, by the device's place in
            the interleave order.
        unused_grain: the granularity to write if this level has one way, and does not use it.
        add: called with each setting.
    """
    numbers = list(dict.fromkeys(path[0][0] for path in paths.values()))
    ways = len(numbers)
    if ways > _MOST_TARGETS:
        raise UsageError(
            f"{component.name} would interleave over {ways} ports",
            where=decoder.name,
            hint=f"the target list of a decoder has {_MOST_TARGETS} entries (CXL 3.1, 8.2.4.20.8)",
        )
    grain, targets = min(unused_grain, GRANULARITIES[-1]), numbers
    if ways > 1:
        grain, targets = _level_order(component, decoder, paths)
    if grain not in GRANULARITIES:
        raise UsageError(
            f"{component.name} would interleave in steps of {grain}",
            where=decoder.name,
            hint=f"decoders have steps of at most {GRANULARITIES[-1]}: reduce the granularity",
        )
    add(component, ways, grain, targets)
    for number in numbers:
        through = {way: path for way, path in paths.items() if path[0][0] == number}
        port = next(iter(through.values()))[0][1]
        if port.switch is not None:
            below = {way: path[1:] for way, path in through.items()}
            switch = Component("switch", port.name, component.bus, (*component.ports, number))
            _plan_level(switch, decoder, below, grain * ways, add)


def _level_order(
    component: Component,
    decoder: PlacedDecoder,
    paths: Mapping[int, tuple[tuple[int, Port], ...]],
) -> tuple[int, list[int]]:
    """Return the granularity and target list by which one level reaches its devices in order.

    A level selects its port by adjacent address bits. They may lie above or below the bits of the
    levels beneath it.
    """
    reached = Counter(path[0][0] for path in paths.values())
    ways, even = len(reached), len(set(reached.values())) == 1
    for doublings in range(len(decoder.devices).bit_length()):
        targets: dict[int, int] = {}
        for way, path in paths.items():
            targets.setdefault((way >> doublings) % ways, path[0][0])
        if (
            even
            and len(set(targets.values())) == ways
            and all(targets[(way >> doublings) % ways] == path[0][0] for way, path in paths.items())
        ):
            return decoder.granularity << doublings, [targets[place] for place in sorted(targets)]
    raise UsageError(
        f"the devices {', '.join(decoder.devices)} do not alternate below {component.name}",
        where=decoder.name,
        hint="CXL 3.1, 9.13.1: each level of ports alternates in a fixed order; list the devices "
        "in it",
    )
