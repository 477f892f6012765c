# SPDX-License-Identifier: GPL-2.0-or-later
"""Profiles: the hardware that a scenario runs on, as qemu_profiles/*.yaml describes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec

from harness.platform.memory_range import GIB, MIB, format_size
from harness.scenario.yaml_document import Document, Size, read_document

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]*\Z", max_length=32)]

# CXL 3.1, 9.18.1.3: a window's size is a multiple of 256 MiB times its number of ways.
WINDOW_GRAIN = 256 * MIB
WAYS = (1, 2, 4, 8, 16, 3, 6, 12)
GRANULARITIES = (256, 512, 1024, 2048, 4096, 8192, 16384)

# Limits of QEMU 10.0's q35, tried paused; 256 windows work. With 17 host bridges, QEMU starts,
# but the last one's registers lie outside the 1 MiB that it has for them.
_MOST_HOST_BRIDGES = 16
# Slots of one PCI bus.
_MOST_PORTS = 32
_MOST_NODES = 128


class _Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A frozen value; a field that it does not know is an error."""


class Device(_Value, frozen=True, kw_only=True):
    """A CXL type-3 memory device with volatile memory only.

    Attributes:
        name: unique in the profile.
        size: bytes of volatile capacity.
    """

    name: Name
    size: Size


class Switch(_Value, frozen=True, kw_only=True):
    """A CXL switch: one upstream port, and downstream ports below it."""

    ports: tuple[Port, ...]


class Port(_Value, frozen=True, kw_only=True):
    """A root port or a switch's downstream port, with what is plugged into it."""

    name: Name
    device: Device | None = None
    switch: Switch | None = None


class HostBridge(_Value, frozen=True, kw_only=True):
    """A CXL host bridge (QEMU `pxb-cxl`).

    Attributes:
        name: unique in the profile.
        bus: its PCI bus number, 1-255; also its ACPI `_UID`.
        ports: its root ports; a port's place in the list is its port number.
        hidden: the CEDT that Linux gets does not mention it: what lies below works, but Linux
            cannot know how.
    """

    name: Name
    bus: Annotated[int, msgspec.Meta(ge=1, le=255)]
    ports: tuple[Port, ...]
    hidden: bool = False


class WindowPart(_Value, frozen=True, kw_only=True):
    """A part of a window as the hardware decodes it, which may differ from what the CEDT says.

    Attributes:
        targets: host bridges that this part really interleaves over.
        size: bytes.
    """

    targets: tuple[Name, ...]
    size: Size


class Window(_Value, frozen=True, kw_only=True):
    """A CXL Fixed Memory Window.

    Attributes:
        targets: host bridges it interleaves over, by name; the number of ways is their count.
        size: bytes.
        granularity: bytes of one interleave step, 256 to 16384, a power of two.
        parts: what the hardware really decodes, in address order; empty for what the CEDT says.
        hidden: the CEDT that Linux gets does not mention it: memory there works, but to Linux it
            lies in no window.
    """

    targets: tuple[Name, ...]
    size: Size
    granularity: int = 256
    parts: tuple[WindowPart, ...] = ()
    hidden: bool = False

    def hardware(self) -> tuple[WindowPart, ...]:
        """The window's parts as the hardware decodes them, at least one, in address order."""
        return self.parts or (WindowPart(targets=self.targets, size=self.size),)

    def part_at(self, offset: int, size: int) -> WindowPart | None:
        """The part that `size` bytes from `offset` lie in, None when they lie in several."""
        start = 0
        for part in self.hardware():
            if start <= offset and offset + size <= start + part.size:
                return part
            start += part.size
        return None


class NumaNode(_Value, frozen=True, kw_only=True):
    """A NUMA node; its number is its place in the list.

    Attributes:
        memory: bytes of RAM.
        cpus: number of CPUs, 0 for a memory-only node.
    """

    memory: Size
    cpus: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0


class HmatEntry(_Value, frozen=True, kw_only=True):
    """Access latency (nanoseconds) and bandwidth (bytes a second) from initiator to target node."""

    initiator: int
    target: int
    latency: int
    bandwidth: Size


class Profile(_Value, frozen=True, kw_only=True):
    """The hardware of a machine.

    Attributes:
        summary: one sentence.
        source: where the topology comes from, when it comes from somewhere.
        nodes: NUMA nodes; node 0 has the boot CPU.
        slots: DIMM slots for memory hotplug, 0 for none.
        maxmem: RAM plus hotplug room in bytes, required with slots.
        distances: a row per node, 10 on the diagonal; empty for the default.
        hmat: entries of the ACPI HMAT; empty for no HMAT.
        host_bridges: CXL host bridges.
        windows: CXL Fixed Memory Windows, in CEDT order.
        phys_bits: width of physical addresses, for windows above 1 TiB; None for the CPU's own.
    """

    summary: str
    source: str = ""
    nodes: tuple[NumaNode, ...]
    slots: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0
    maxmem: Size | None = None
    distances: tuple[tuple[int, ...], ...] = ()
    hmat: tuple[HmatEntry, ...] = ()
    host_bridges: tuple[HostBridge, ...] = ()
    windows: tuple[Window, ...] = ()
    phys_bits: Annotated[int, msgspec.Meta(ge=40, le=52)] | None = None

    @property
    def memory(self) -> int:
        """Bytes of RAM over all nodes."""
        return sum(node.memory for node in self.nodes)

    @property
    def cpus(self) -> int:
        """CPUs over all nodes."""
        return sum(node.cpus for node in self.nodes)

    def differs_from_cedt(self) -> bool:
        """Whether Linux must be given another CEDT than the hardware's own."""
        return any(bridge.hidden for bridge in self.host_bridges) or any(
            window.parts or window.hidden for window in self.windows
        )

    def devices(self) -> tuple[Device, ...]:
        """All type-3 devices, depth first."""
        return tuple(
            port.device
            for bridge in self.host_bridges
            for port in _ports_below(bridge.ports)
            if port.device is not None
        )

    def path_to(self, device: str) -> tuple[HostBridge, tuple[tuple[int, Port], ...]]:
        """The host bridge above a device, and each port on the way with its port number.

        Raises:
            KeyError: the profile has no such device.
        """
        for bridge in self.host_bridges:
            for path in _paths(bridge.ports):
                last = path[-1][1].device
                if last is not None and last.name == device:
                    return bridge, path
        raise KeyError(device)


def _ports_below(ports: tuple[Port, ...]) -> Iterator[Port]:
    for port in ports:
        yield port
        if port.switch is not None:
            yield from _ports_below(port.switch.ports)


def _paths(ports: tuple[Port, ...]) -> Iterator[tuple[tuple[int, Port], ...]]:
    for number, port in enumerate(ports):
        if port.device is not None:
            yield ((number, port),)
        if port.switch is not None:
            for below in _paths(port.switch.ports):
                yield ((number, port), *below)


def read_profile(text: str, name: str) -> Document[Profile]:
    """Read a profile and check that such hardware can exist.

    Raises:
        UsageError: names file, line and field.
    """
    document = read_document(text, name, Profile)
    _check_nodes(document)
    _check_limits(document)
    _check_bridges(document)
    _check_windows(document)
    return document


def _check_nodes(document: Document[Profile]) -> None:
    profile = document.value
    if not profile.nodes or profile.nodes[0].cpus == 0:
        raise document.error(
            "nodes", "node 0 needs at least one CPU", hint="give the first node cpus: 2"
        )
    if profile.memory > 256 * GIB:
        raise document.error(
            "nodes", "more than 256G of RAM", hint="large capacities belong behind CXL windows"
        )
    for index, node in enumerate(profile.nodes):
        if node.memory == 0 or node.memory % (128 * MIB):
            raise document.error(
                f"nodes[{index}].memory",
                f"{format_size(node.memory)} is not a multiple of 128M",
                hint="use whole memory blocks, so that every node can be Soft Reserved",
            )
    if bool(profile.slots) != (profile.maxmem is not None):
        raise document.error("slots", "slots and maxmem go together", hint="give both, or neither")
    if profile.maxmem is not None and profile.maxmem <= profile.memory:
        raise document.error(
            "maxmem",
            f"maxmem must be more than the {format_size(profile.memory)} of RAM",
            hint="raise maxmem, or leave slots and maxmem out",
        )
    count = len(profile.nodes)
    rows = profile.distances
    if rows and (len(rows) != count or any(len(row) != count for row in rows)):
        raise document.error(
            "distances", f"not {count} rows of {count}", hint="one row and column per node"
        )
    for index, row in enumerate(rows):
        if row[index] != 10 or any(not 10 <= value <= 254 for value in row):
            raise document.error(
                f"distances[{index}]",
                "distances are 10 on the diagonal and 10 to 254 elsewhere",
                hint="ACPI SLIT values are relative to 10, the local distance",
            )
    for index, entry in enumerate(profile.hmat):
        if not (0 <= entry.initiator < count and 0 <= entry.target < count):
            raise document.error(
                f"hmat[{index}]",
                "names a node that does not exist",
                hint=f"name a node from 0 to {count - 1}",
            )


def _check_bridges(document: Document[Profile]) -> None:
    profile = document.value
    names: set[str] = set()
    buses: set[int] = set()
    for index, bridge in enumerate(profile.host_bridges):
        at = f"host_bridges[{index}]"
        if bridge.bus in buses:
            raise document.error(
                f"{at}.bus",
                f"bus {bridge.bus:#x} is taken",
                hint="name a bus that no other host bridge has",
            )
        buses.add(bridge.bus)
        ports = list(_ports_below(bridge.ports))
        if not ports:
            raise document.error(
                f"{at}.ports",
                "has no root port",
                hint="give the host bridge a port: ports: [{name: rp0}]",
            )
        # Buses below a bridge are numbered upwards from its own.
        if bridge.bus + 2 * len(ports) > 255:
            raise document.error(
                f"{at}.bus",
                f"bus {bridge.bus:#x} leaves no bus numbers below 256 for its ports",
                hint=f"name a bus of at most {255 - 2 * len(ports):#x}",
            )
        for other in profile.host_bridges:
            if bridge.bus < other.bus <= bridge.bus + 2 * len(ports) + 1:
                raise document.error(
                    f"{at}.bus",
                    f"leaves no bus numbers for its ports before {other.name}",
                    hint=f"keep at least {2 * len(ports) + 2} apart",
                )
        for port in ports:
            if port.device is not None and port.switch is not None:
                raise document.error(
                    at, f"port {port.name} has two things", hint="keep its device or its switch"
                )
        found = [bridge.name, *(p.name for p in ports), *(p.device.name for p in ports if p.device)]
        for name in found:
            if name in names:
                raise document.error(
                    at, f"the name {name!r} stands twice", hint="give one of the two another name"
                )
            names.add(name)
    for device in profile.devices():
        if device.size == 0 or device.size % WINDOW_GRAIN:
            raise document.error(
                "host_bridges",
                f"the size of {device.name} is not a multiple of 256M",
                hint="CXL capacity comes in multiples of 256M",
            )


def _check_windows(document: Document[Profile]) -> None:
    profile = document.value
    for index, window in enumerate(profile.windows):
        at = f"windows[{index}]"
        if len(window.targets) not in WAYS:
            raise document.error(
                f"{at}.targets",
                f"{len(window.targets)} targets",
                hint=f"CXL interleaves over {', '.join(map(str, sorted(WAYS)))} ways",
            )
        _check_targets(document, f"{at}.targets", window.targets)
        for number, part in enumerate(window.parts):
            _check_targets(document, f"{at}.parts[{number}].targets", part.targets)
        hidden = [bridge.name for bridge in profile.host_bridges if bridge.hidden]
        if not window.hidden and any(name in window.targets for name in hidden):
            raise document.error(
                f"{at}.targets",
                "names a hidden host bridge",
                hint="only parts, or a hidden window, may name it",
            )
        if sum(part.size for part in window.hardware()) != window.size:
            raise document.error(
                f"{at}.parts",
                "do not add up to the window's size",
                hint="correct the size of a part, or that of the window",
            )
        for number, part in enumerate(window.hardware()):
            ways = len(part.targets)
            if ways not in WAYS or part.size == 0 or part.size % (WINDOW_GRAIN * ways):
                raise document.error(
                    f"{at}.parts[{number}]" if window.parts else f"{at}.size",
                    f"{format_size(part.size)} is not a multiple of 256M for each target",
                    hint="enlarge or reduce it: CXL 3.1, 9.18.1.3",
                )
        if window.granularity not in GRANULARITIES:
            raise document.error(
                f"{at}.granularity",
                f"{window.granularity} is not an interleave granularity",
                hint=f"one of {', '.join(map(str, GRANULARITIES))}",
            )


def _check_targets(document: Document[Profile], at: str, targets: tuple[str, ...]) -> None:
    bridges = [bridge.name for bridge in document.value.host_bridges]
    for target in targets:
        if target not in bridges:
            raise document.error(
                at,
                f"no host bridge is called {target!r}",
                hint=f"host bridges: {', '.join(bridges) or 'none'}",
            )
    if len(set(targets)) != len(targets):
        raise document.error(
            at,
            "names a host bridge twice",
            hint="for several root ports of one host bridge, name several devices in the decoder",
        )


def _check_limits(document: Document[Profile]) -> None:
    """Refuse a profile that QEMU does not take.

    Raises:
        UsageError: names file, line, field and the limit.
    """
    for field, count, most, what in _counts(document.value):
        if count > most:
            raise document.error(
                field, f"{count} {what}, and QEMU takes {most}", hint=f"leave {count - most} out"
            )
    cpus = document.value.cpus
    with_cpus = [index for index, node in enumerate(document.value.nodes) if node.cpus]
    if cpus % len(with_cpus):
        raise document.error(
            f"nodes[{with_cpus[-1]}].cpus",
            f"{cpus} CPUs do not divide evenly over {len(with_cpus)} nodes with CPUs",
            hint="QEMU has one socket for each, all of one size: give each node the same cpus",
        )


def _counts(profile: Profile) -> Iterator[tuple[str, int, int, str]]:
    yield "nodes", len(profile.nodes), _MOST_NODES, "NUMA nodes"
    yield "host_bridges", len(profile.host_bridges), _MOST_HOST_BRIDGES, "host bridges"
    for index, bridge in enumerate(profile.host_bridges):
        yield from _ports(f"host_bridges[{index}].ports", bridge.ports)


def _ports(at: str, ports: tuple[Port, ...]) -> Iterator[tuple[str, int, int, str]]:
    yield at, len(ports), _MOST_PORTS, "ports on one bus"
    for index, port in enumerate(ports):
        if port.switch is not None:
            yield from _ports(f"{at}[{index}].switch.ports", port.switch.ports)
