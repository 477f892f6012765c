# SPDX-License-Identifier: GPL-2.0-or-later
"""Short ways to write profiles, scenarios, dax devices and observations in tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness.contract.dmesg import Record
from harness.contract.iomem import Iomem, parse_iomem
from harness.contract.observation import CxlRegion, DaxDevice, Observation
from harness.platform.firmware_state import FirmwareState, NamedRange, PlacedDecoder
from harness.platform.memory_range import GIB, MemoryRange
from harness.scenario.profile import Device, HostBridge, NumaNode, Port, Profile, Switch, Window
from harness.scenario.scenario import Ownership, Scenario, read_scenario
from harness.scenario.yaml_document import Document, Size

CXL = Ownership(owner="dax_cxl", use="system_ram")
HMEM = Ownership(owner="dax_hmem", use="system_ram")
NOBODY = Ownership(owner="nobody")

_ALL_MODULES = ["cxl_acpi", "cxl_pci", "cxl_mem", "dax_hmem", "kmem", "dax_cxl"]


def port(name: str, device: str | None = None, *, size: int = 2 * GIB) -> Port:
    """A port with a device of that name in it, or with nothing."""
    return Port(name=name, device=Device(name=device, size=Size(size)) if device else None)


def switch_port(name: str, *below: Port) -> Port:
    """A port with a switch in it."""
    return Port(name=name, switch=Switch(ports=below))


def bridge(name: str, bus: int, *ports: Port, hidden: bool = False) -> HostBridge:
    """A host bridge with these root ports."""
    return HostBridge(name=name, bus=bus, ports=ports, hidden=hidden)


def window(*targets: str, size: int = 2 * GIB, granularity: int = 256) -> Window:
    """A window over these host bridges."""
    return Window(targets=targets, size=Size(size), granularity=granularity)


def machine(
    bridges: Sequence[HostBridge], windows: Sequence[Window], *, ram: int = 1 * GIB
) -> Profile:
    """A profile with one node."""
    return Profile(
        summary="Made for a test.",
        nodes=(NumaNode(memory=Size(ram), cpus=1),),
        host_bridges=tuple(bridges),
        windows=tuple(windows),
    )


def one_window(*, granularity: int = 256) -> Profile:
    """One host bridge, root port, device and window of 2 GiB each."""
    bridges = [bridge("hb0", 0x35, port("rp0", "mem0"))]
    return machine(bridges, [window("hb0", granularity=granularity)])


def scenario_of(
    firmware: Mapping[str, Any] | None = None,
    *,
    load: Sequence[str] = tuple(_ALL_MODULES),
    config: Mapping[str, str] | None = None,
    **more: Any,
) -> Document[Scenario]:
    """A scenario that expects dax_cxl for each Soft Reserved range, unless `expect` is given."""
    firmware = dict(firmware or {})
    owners = {name: {"owner": "dax_cxl"} for name in firmware.get("soft_reserved", {})}
    values: dict[str, Any] = {
        "summary": "Made for a test.",
        "source": "a test",
        "profile": "made_up",
        "firmware": firmware,
        "kernel": {"config": dict(config or {})},
        "guest": {"load": list(load)},
        "expect": {"per_range": owners, "all_or_nothing": owners},
    }
    return read_scenario(json.dumps(values | more), "made_up.yaml")


def span(text: str) -> MemoryRange:
    """A range from START-END in hexadecimal."""
    return MemoryRange.parse(text)


def committed(
    name: str, text: str, *devices: str, ways: int = 1, grain: int = 256
) -> PlacedDecoder:
    """A committed decoder, in window 0."""
    return PlacedDecoder(
        name=name,
        range=span(text),
        window=0,
        devices=devices or ("mem0",),
        granularity=grain,
        window_ways=ways,
        hidden=False,
        ports_range=span(text),
    )


def firmware_state(
    soft_reserved: Mapping[str, str],
    *,
    decoders: Sequence[PlacedDecoder] = (),
    windows: Sequence[str] = (),
    ram: Sequence[str] = (),
    hotplug_room: Sequence[str] = (),
) -> FirmwareState:
    """A firmware state from ranges as text."""
    return FirmwareState(
        soft_reserved=tuple(NamedRange(name, span(one)) for name, one in soft_reserved.items()),
        decoders=tuple(decoders),
        windows=tuple(map(span, windows)),
        ram=tuple(map(span, ram)),
        hotplug_room=tuple(map(span, hotplug_room)),
        srat=(),
    )


def by_cxl(name: str, *ranges: str, driver: str | None = "kmem", region: int = 0) -> DaxDevice:
    """A dax device that dax_cxl made over a region."""
    path = f"devices/platform/ACPI0017:00/root0/decoder0.0/region{region}/dax_region{region}/{name}"
    return _dax(name, ranges, driver, "dax_cxl", path)


def by_hmem(name: str, *ranges: str, driver: str | None = "kmem") -> DaxDevice:
    """A dax device that dax_hmem made."""
    path = f"devices/platform/hmem_platform.0/hmem.{name[3]}/{name}"
    return _dax(name, ranges, driver, "dax_hmem", path)


def _dax(name: str, ranges: Sequence[str], driver: str | None, parent: str, path: str) -> DaxDevice:
    spans = tuple(map(span, ranges))
    return DaxDevice(name, spans, sum(one.size for one in spans), driver, parent, path)


def observed(
    iomem: str,
    *devices: DaxDevice,
    drivers: Sequence[str] = ("kmem",),
    dmesg: Sequence[Record] = (),
    offline: Sequence[str] = (),
    regions: Sequence[CxlRegion] | None = None,
) -> Observation:
    """An observation with this text in /proc/iomem; a common indentation does not count.

    Without `regions`, sysfs has those that iomem has.
    """
    tree = iomem_of(iomem)
    if regions is None:
        shown = tree.named(r"region\d+")
        regions = [CxlRegion(one.name, one.range, True, 1, "cxl_region") for one in shown]
    return Observation(
        release="7.2.0",
        iomem=tree,
        dax=devices,
        dax_drivers=tuple(drivers),
        regions=tuple(regions),
        decoders=(),
        cxl_devices={},
        cxl_drivers=(),
        offline=tuple(map(span, offline)),
        block_size=128 << 20,
        modules=(),
        cxl_list=None,
        daxctl_list=None,
        dmesg=tuple(dmesg),
    )


def iomem_of(text: str) -> Iomem:
    """The tree of an indented text block."""
    lines = [line for line in text.splitlines() if line.strip()]
    margin = min(len(line) - len(line.lstrip()) for line in lines)
    return parse_iomem("".join(f"{line[margin:]}\n" for line in lines))


def record(level: int, text: str, time: float = 1.0) -> Record:
    """A kernel message."""
    return Record(level, time, text)
