# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of one guest: dax devices, CXL regions and decoders, iomem, dmesg."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.contract.dmesg import Record
from harness.contract.iomem import Iomem
from harness.platform.memory_range import MemoryRange

SECTIONS = (
    *("release", "iomem", "dax_links", "dax_values", "cxl_links", "cxl_values"),
    *("memory_blocks", "modules", "cxl_list", "daxctl_list", "dmesg"),
)


class ObservationError(ValueError):
    """The text from the guest is not a complete observation."""


@dataclass(frozen=True)
class DaxDevice:
    """A dax device.

    Attributes:
        name: such as `dax0.0`.
        ranges: the physical ranges that its mappings cover.
        size: bytes, as sysfs has them.
        driver: `kmem`, `device_dax`, or None when no driver is bound.
        parent: `dax_cxl` or `dax_hmem`, or another parent's device path.
        path: its place in sysfs, such as `…/region0/dax_region0/dax0.0`.
        target_node: the NUMA node that kmem adds its memory to, None where it has none.
    """

    name: str
    ranges: tuple[MemoryRange, ...]
    size: int
    driver: str | None
    parent: str
    path: str
    target_node: int | None = None


@dataclass(frozen=True)
class CxlRegion:
    """A CXL region.

    Attributes:
        name: such as `region0`.
        range: host physical addresses, None before it has any.
        committed: whether its decoders are committed.
        ways: interleave ways.
        driver: the driver that is bound, or None.
    """

    name: str
    range: MemoryRange | None
    committed: bool
    ways: int
    driver: str | None


@dataclass(frozen=True)
class CxlDecoder:
    """A decoder as Linux has it; endpoint decoders of unused hardware have no range."""

    name: str
    range: MemoryRange | None
    region: str
    depth: int


@dataclass(frozen=True)
class Undecoded:
    """Memory that a driver owns and that does not answer.

    Attributes:
        range: the memory.
        text: its owner, and why it does not answer.
    """

    range: MemoryRange
    text: str


@dataclass(frozen=True)
class Observation:
    """Everything that was read from one guest at one moment.

    Attributes:
        release: `uname -r`.
        iomem: the tree of /proc/iomem.
        dax: dax devices.
        dax_drivers: drivers on the dax bus.
        regions: CXL regions.
        decoders: CXL decoders of all ports.
        cxl_devices: every device of the cxl bus, with its driver or None.
        cxl_drivers: drivers on the cxl bus, and cxl_acpi and cxl_pci where they are registered.
        offline: ranges of memory blocks that exist and are not online.
        block_size: bytes of a memory block, 1 where the guest has none.
        modules: loaded modules.
        cxl_list: the output of `cxl list`, None if it was empty.
        daxctl_list: the output of `daxctl list`, None if it was empty.
        dmesg: the kernel's log.
        undecoded: memory with an owner that does not answer, read by the harness through QEMU.
    """

    release: str
    iomem: Iomem
    dax: tuple[DaxDevice, ...]
    dax_drivers: tuple[str, ...]
    regions: tuple[CxlRegion, ...]
    decoders: tuple[CxlDecoder, ...]
    cxl_devices: Mapping[str, str | None]
    cxl_drivers: tuple[str, ...]
    offline: tuple[MemoryRange, ...]
    block_size: int
    modules: tuple[str, ...]
    cxl_list: Any
    daxctl_list: Any
    dmesg: tuple[Record, ...]
    undecoded: tuple[Undecoded, ...] = ()
