# SPDX-License-Identifier: GPL-2.0-or-later
"""Random host bridges with switches and devices, and the use of their decoders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st

from harness.platform.memory_range import MIB, format_size

GRAIN = 256
"""The granularity of CXL capacity in MiB."""

# In MiB.
_MOST_OF_A_DEVICE = 2048
_MOST_BEHIND_WINDOWS = 3072
_DECODERS_PER_COMPONENT = 4

# The root ports of a host bridge, each with a device or a switch with two devices.
_PORTS = (("device",), ("device", "device"), ("switch",), ("device", "switch"), ("switch",) * 2)
_BUSES = (0x20, 0x50, 0x80)

HIDDEN = "hbh"
HIDDEN_DEVICE = "memh"
"""The host bridge without an entry in the CEDT, and its device."""

T = TypeVar("T")


class Draw(Protocol):
    """The first argument of a composite strategy of Hypothesis."""

    def __call__(self, strategy: st.SearchStrategy[T], /) -> T:
        """Draw a value of a strategy."""


@dataclass
class DrawnTree:
    """The host bridges, and the decoders and the capacity in use so far.

    Attributes:
        above: the host bridge and the port with a switch above each device.
        groups: the devices of each host bridge that can interleave.
        decoders: the number of decoders in use of each component.
        used: MiB in use of each device.
        behind: MiB behind all windows.
    """

    bridges: list[dict[str, Any]] = field(default_factory=list)
    above: dict[str, tuple[str, ...]] = field(default_factory=dict)
    groups: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    decoders: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    behind: int = 0

    def take(self, devices: tuple[str, ...], size: int) -> bool:
        """Use decoders and capacity, and return whether enough were left."""
        parts = {*devices, *(part for device in devices for part in self.above[device])}
        share = size // len(devices)
        if (
            any(self.decoders.get(part, 0) >= _DECODERS_PER_COMPONENT for part in parts)
            or any(self.used.get(device, 0) + share > _MOST_OF_A_DEVICE for device in devices)
            or self.behind + size > _MOST_BEHIND_WINDOWS
        ):
            return False
        for part in parts:
            self.decoders[part] = self.decoders.get(part, 0) + 1
        for device in devices:
            self.used[device] = self.used.get(device, 0) + share
        self.behind += size
        return True


def draw_tree(draw: Draw) -> DrawnTree:
    """One or two host bridges in the CEDT, and a hidden one with one device."""
    tree = DrawnTree()
    devices = 0
    for number in range(draw(st.integers(1, 2))):
        bridge = f"hb{number}"
        ports: list[dict[str, Any]] = []
        below: list[list[str]] = []
        for place, kind in enumerate(draw(st.sampled_from(_PORTS))):
            port = f"rp{number}{place}"
            names = [f"mem{devices + index}" for index in range(2 if kind == "switch" else 1)]
            devices += len(names)
            below.append(names)
            plugged = [{"name": name} for name in names]
            if kind == "switch":
                downstream = [
                    {"name": f"dp{number}{place}{index}", "device": device}
                    for index, device in enumerate(plugged)
                ]
                ports.append({"name": port, "switch": {"ports": downstream}})
            else:
                ports.append({"name": port, "device": plugged[0]})
            for name in names:
                tree.above[name] = (bridge, port) if kind == "switch" else (bridge,)
        tree.bridges.append({"name": bridge, "bus": _BUSES[number], "ports": ports})
        tree.groups[bridge] = _groups(below)
    hidden = {"name": "rph", "device": {"name": HIDDEN_DEVICE}}
    tree.bridges.append({"name": HIDDEN, "bus": _BUSES[2], "hidden": True, "ports": [hidden]})
    tree.above[HIDDEN_DEVICE] = (HIDDEN,)
    tree.groups[HIDDEN] = [(HIDDEN_DEVICE,)]
    return tree


def _groups(below: list[list[str]]) -> list[tuple[str, ...]]:
    """The devices of one host bridge that can interleave, in the order of their ports."""
    every = [name for names in below for name in names]
    groups: list[tuple[str, ...]] = [(name,) for name in every]
    groups += [(first, second) for first in every for second in every if first < second]
    if len(every) == 4:
        groups.append((below[0][0], below[1][0], below[0][1], below[1][1]))
    return groups


def draw_turns(draw: Draw, tree: DrawnTree, targets: list[str]) -> tuple[str, ...]:
    """Devices that interleave over the targets of a window, the same number below each."""
    ways = draw(st.sampled_from((1, 1, 2, 4)))
    chosen = []
    for bridge in targets:
        ways = min(ways, max(len(group) for group in tree.groups[bridge]))
    for bridge in targets:
        groups = [group for group in tree.groups[bridge] if len(group) == ways]
        chosen.append(draw(st.sampled_from(groups)))
    return tuple(device for turn in zip(*chosen, strict=True) for device in turn)


def draw_bridges(draw: Draw, tree: DrawnTree) -> list[dict[str, Any]]:
    """The host bridges with the sizes of their devices."""
    spare = draw(st.sampled_from((0, 0, GRAIN)))

    def filled(port: dict[str, Any]) -> dict[str, Any]:
        if "switch" in port:
            below = [filled(downstream) for downstream in port["switch"]["ports"]]
            return port | {"switch": {"ports": below}}
        name = port["device"]["name"]
        size = min(max(tree.used.get(name, 0) + spare, GRAIN), _MOST_OF_A_DEVICE)
        return port | {"device": {"name": name, "size": size_text(size)}}

    return [
        bridge | {"ports": [filled(port) for port in bridge["ports"]]} for bridge in tree.bridges
    ]


def size_text(mebibytes: int) -> str:
    """A positive number of MiB in the format of files."""
    return format_size(mebibytes * MIB)
