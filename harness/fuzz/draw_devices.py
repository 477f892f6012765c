# SPDX-License-Identifier: GPL-2.0-or-later
"""Random host bridges with switches and devices, and what their decoders are used for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st

from harness.platform.memory_range import MIB, format_size

GRAIN = 256
"""MiB: the steps of CXL capacity."""

# In MiB.
_MOST_OF_A_DEVICE = 2048
_MOST_BEHIND_WINDOWS = 3072
_DECODERS_PER_COMPONENT = 4

# Each root port of a host bridge: a device, or a switch with two.
_PORTS = (("device",), ("device", "device"), ("switch",), ("device", "switch"), ("switch",) * 2)
_BUSES = (0x20, 0x50, 0x80)

HIDDEN = "hbh"
HIDDEN_DEVICE = "memh"
"""The host bridge that no CEDT mentions, and what is below it."""

T = TypeVar("T")


class Draw(Protocol):
    """Draws from a strategy, as Hypothesis hands it to a composite one."""

    def __call__(self, strategy: st.SearchStrategy[T], /) -> T:
        """A value of the strategy."""


@dataclass
class DrawnTree:
    """The host bridges, and what their decoders are used for so far."""

    bridges: list[dict[str, Any]] = field(default_factory=list)
    above: dict[str, tuple[str, ...]] = field(default_factory=dict)
    groups: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    decoders: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    behind: int = 0

    def take(self, devices: tuple[str, ...], size: int) -> bool:
        """Use decoders and capacity, unless there are none left."""
        parts = {*devices, *(one for device in devices for one in self.above[device])}
        share = size // len(devices)
        if (
            any(self.decoders.get(one, 0) >= _DECODERS_PER_COMPONENT for one in parts)
            or any(self.used.get(one, 0) + share > _MOST_OF_A_DEVICE for one in devices)
            or self.behind + size > _MOST_BEHIND_WINDOWS
        ):
            return False
        for one in parts:
            self.decoders[one] = self.decoders.get(one, 0) + 1
        for one in devices:
            self.used[one] = self.used.get(one, 0) + share
        self.behind += size
        return True


def draw_tree(draw: Draw) -> DrawnTree:
    """One or two host bridges that Linux is told of, and one that is hidden, with one device."""
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
                    {"name": f"dp{number}{place}{index}", "device": one}
                    for index, one in enumerate(plugged)
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
    """The devices of one host bridge that can interleave: each level of ports takes turns."""
    every = [name for names in below for name in names]
    groups: list[tuple[str, ...]] = [(name,) for name in every]
    groups += [(one, other) for one in every for other in every if one < other]
    if len(every) == 4:
        groups.append((below[0][0], below[1][0], below[0][1], below[1][1]))
    return groups


def draw_turns(draw: Draw, tree: DrawnTree, targets: list[str]) -> tuple[str, ...]:
    """Devices that take turns over a window's targets, as many below each."""
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
            below = [filled(one) for one in port["switch"]["ports"]]
            return port | {"switch": {"ports": below}}
        name = port["device"]["name"]
        size = min(max(tree.used.get(name, 0) + spare, GRAIN), _MOST_OF_A_DEVICE)
        return port | {"device": {"name": name, "size": size_text(size)}}

    return [
        bridge | {"ports": [filled(port) for port in bridge["ports"]]} for bridge in tree.bridges
    ]


def size_text(mebibytes: int) -> str:
    """A number of MiB, more than 0, as files have it."""
    return format_size(mebibytes * MIB)
