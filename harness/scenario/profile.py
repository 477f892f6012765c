# SPDX-License-Identifier: GPL-2.0-or-later
"""Profiles: the hardware of a machine, as qemu_profiles/*.yaml describes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec

from harness.platform.memory_range import GIB, MIB, format_size
from harness.scenario.yaml_document import Document, FieldError, Size, read_document

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]*\Z", max_length=32)]

# CXL 3.1, 9.18.1.3: a window's size is a multiple of 256 MiB times its number of ways.
WINDOW_GRAIN = 256 * MIB
WAYS = (1, 2, 4, 8, 16, 3, 6, 12)
GRANULARITIES = (256, 512, 1024, 2048, 4096, 8192, 16384)

# Limits of QEMU 10.0's q35, found by starting it paused; 256 windows work. With 17 host bridges,
# QEMU starts, but the registers of the last one lie outside the 1 MiB reserved for them.
_MOST_HOST_BRIDGES = 16
# Slots of one PCI bus.
_MOST_PORTS = 32
_MOST_NODES = 128


def require_multiple(field: str, size: int, grain: int, *, hint: str) -> None:
    """Refuse a size of zero, or one that is not a multiple of `grain` bytes."""
    if size == 0 or size % grain:
        raise FieldError(
            f"{format_size(size)} is not a multiple of {format_size(grain)}", field=field, hint=hint
        )


def check_granularity(granularity: int) -> None:
    """Refuse what is not an interleave granularity of CXL."""
    if granularity not in GRANULARITIES:
        raise FieldError(
            f"{granularity} is not an interleave granularity",
            field="granularity",
            hint=f"one of {', '.join(map(str, GRANULARITIES))}",
        )


def _check_targets(targets: tuple[str, ...]) -> None:
    if len(targets) not in WAYS:
        raise FieldError(
            f"{len(targets)} targets",
            field="targets",
            hint=f"CXL interleaves over {', '.join(map(str, sorted(WAYS)))} ways",
        )
    if len(set(targets)) != len(targets):
        raise FieldError(
            "names a host bridge twice",
            field="targets",
            hint="for several root ports of one host bridge, list several devices in the decoder",
        )


class _Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A frozen value; an unknown field is an error."""


class Device(_Value, frozen=True, kw_only=True):
    """A CXL type-3 memory device with volatile memory only; its name is unique in the profile."""

    name: Name
    size: Size

    def __post_init__(self) -> None:
        require_multiple("size", self.size, WINDOW_GRAIN, hint="use a multiple of 256M")


class Switch(_Value, frozen=True, kw_only=True):
    """A CXL switch: one upstream port, and downstream ports below it."""

    ports: tuple[Port, ...]


class Port(_Value, frozen=True, kw_only=True):
    """A root port or a switch's downstream port, with what is plugged into it."""

    name: Name
    device: Device | None = None
    switch: Switch | None = None

    def __post_init__(self) -> None:
        if self.device is not None and self.switch is not None:
            raise FieldError(
                f"port {self.name} has a device and a switch", hint="remove one of the two"
            )


class HostBridge(_Value, frozen=True, kw_only=True):
    """A CXL host bridge (QEMU `pxb-cxl`).

    Attributes:
        name: unique in the profile.
        bus: its PCI bus number; also its ACPI `_UID`.
        ports: its root ports; the index of a port is its port number.
        hidden: missing from the CEDT that Linux gets: the memory below works, but Linux cannot
            tell how it is decoded.
    """

    name: Name
    bus: Annotated[int, msgspec.Meta(ge=1, le=255)]
    ports: tuple[Port, ...]
    hidden: bool = False

    def __post_init__(self) -> None:
        if not self.ports:
            raise FieldError(
                "has no root port",
                field="ports",
                hint="give the host bridge a port: ports: [{name: rp0}]",
            )
        if self.last_bus() > 256:
            raise FieldError(
                f"bus {self.bus:#x} leaves no bus numbers below 256 for its ports",
                field="bus",
                hint=f"use a bus of at most {256 - self.last_bus() + self.bus:#x}",
            )

    def last_bus(self) -> int:
        """The last bus number reserved for the ports: they are numbered upwards from its own."""
        return self.bus + 2 * len(list(_ports_below(self.ports))) + 1


class WindowPart(_Value, frozen=True, kw_only=True):
    """A part of a window as the hardware decodes it, which may differ from the CEDT.

    Attributes:
        targets: host bridges that this part interleaves over.
        size: bytes.
    """

    targets: tuple[Name, ...]
    size: Size

    def __post_init__(self) -> None:
        _check_targets(self.targets)
        require_multiple(
            "size",
            self.size,
            WINDOW_GRAIN * len(self.targets),
            hint="use a multiple of 256M for each target (CXL 3.1, 9.18.1.3)",
        )


class Window(_Value, frozen=True, kw_only=True):
    """A CXL Fixed Memory Window.

    Attributes:
        targets: names of the host bridges that it interleaves over; one for each way.
        size: bytes.
        granularity: bytes of one interleave step, 256 to 16384, a power of two.
        parts: what the hardware decodes, in address order; empty where the CEDT is right.
        hidden: missing from the CEDT that Linux gets: memory there works, but for Linux it lies
            outside any window.
    """

    targets: tuple[Name, ...]
    size: Size
    granularity: int = 256
    parts: tuple[WindowPart, ...] = ()
    hidden: bool = False

    def __post_init__(self) -> None:
        _check_targets(self.targets)
        check_granularity(self.granularity)
        if sum(part.size for part in self.hardware()) != self.size:
            raise FieldError(
                "the sizes of the parts do not add up to the window's size",
                field="parts",
                hint="correct the size of a part, or that of the window",
            )

    def hardware(self) -> tuple[WindowPart, ...]:
        """The window's parts as the hardware decodes them, at least one, in address order."""
        return self.parts or (WindowPart(targets=self.targets, size=self.size),)

    def part_at(self, offset: int, size: int) -> WindowPart | None:
        """Return the part that contains `size` bytes from `offset`, None for several parts."""
        start = 0
        for part in self.hardware():
            if start <= offset and offset + size <= start + part.size:
                return part
            start += part.size
        return None


class NumaNode(_Value, frozen=True, kw_only=True):
    """A NUMA node; its number is its index in the list."""

    memory: Size
    cpus: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0

    def __post_init__(self) -> None:
        require_multiple(
            "memory",
            self.memory,
            128 * MIB,
            hint="use whole memory blocks of 128M, so that every node can be Soft Reserved",
        )


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
        source: the origin of the topology, if it has one.
        nodes: NUMA nodes; node 0 has the boot CPU.
        slots: DIMM slots for memory hotplug.
        maxmem: bytes of RAM plus memory hotplug area, required with slots.
        distances: a row per node, 10 on the diagonal; empty for the default.
        hmat: entries of the ACPI HMAT; empty for no HMAT.
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
        """True if Linux must get a CEDT that differs from that of the hardware."""
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
        """Return the host bridge above a device, and the ports between with their port numbers.

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
    """Read a profile, and check it against CXL's rules and QEMU's limits."""
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
            "nodes", "more than 256G of RAM", hint="put large capacities behind CXL windows"
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
                "refers to a node that does not exist",
                hint=f"use a node from 0 to {count - 1}",
            )


def _check_bridges(document: Document[Profile]) -> None:
    profile = document.value
    names: set[str] = set()
    for index, bridge in enumerate(profile.host_bridges):
        at = f"host_bridges[{index}]"
        for number, other in enumerate(profile.host_bridges):
            if number != index and bridge.bus <= other.bus <= bridge.last_bus():
                raise document.error(
                    f"{at}.bus",
                    f"leaves no bus numbers for its ports before {other.name}",
                    hint=f"keep at least {bridge.last_bus() - bridge.bus + 1} apart",
                )
        ports = list(_ports_below(bridge.ports))
        devices = [port.device.name for port in ports if port.device]
        for name in (bridge.name, *(port.name for port in ports), *devices):
            if name in names:
                raise document.error(
                    at, f"duplicate name {name!r}", hint="give one of the two another name"
                )
            names.add(name)


def _check_windows(document: Document[Profile]) -> None:
    bridges = {bridge.name: bridge for bridge in document.value.host_bridges}
    for index, window in enumerate(document.value.windows):
        at = f"windows[{index}]"
        places = {f"{at}.targets": window.targets} | {
            f"{at}.parts[{number}].targets": part.targets
            for number, part in enumerate(window.parts)
        }
        for place, target in ((p, name) for p, names in places.items() for name in names):
            if target not in bridges:
                raise document.error(
                    place,
                    f"there is no host bridge {target!r}",
                    hint=f"host bridges: {', '.join(bridges) or 'none'}",
                )
        if not window.hidden and any(bridges[name].hidden for name in window.targets):
            raise document.error(
                f"{at}.targets",
                "names a hidden host bridge",
                hint="only parts, or a hidden window, may name it",
            )


def _check_limits(document: Document[Profile]) -> None:
    """Refuse a profile that exceeds QEMU's limits."""
    for field, count, most, what in _counts(document.value):
        if count > most:
            raise document.error(
                field, f"{count} {what}, and QEMU takes {most}", hint=f"remove {count - most}"
            )
    cpus = document.value.cpus
    with_cpus = [index for index, node in enumerate(document.value.nodes) if node.cpus]
    if cpus % len(with_cpus):
        raise document.error(
            f"nodes[{with_cpus[-1]}].cpus",
            f"{cpus} CPUs do not divide evenly over {len(with_cpus)} nodes with CPUs",
            hint="QEMU makes one socket per node, all of one size: give each node the same cpus",
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
