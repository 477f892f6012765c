# SPDX-License-Identifier: GPL-2.0-or-later
"""Check that the parts of an observation agree: differences show damage and false output.

If they contradict each other, the run is INCONCLUSIVE. For differences between
/proc/iomem and sysfs about a dax device there are findings instead
(`observed_owners.disagreements`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from harness.platform.memory_range import MemoryRange

if TYPE_CHECKING:
    from harness.contract.observation import Observation

KMEM_RAM = r"System RAM \(kmem\)"
# Modules that are dax drivers, which have the module's name.
_DAX_DRIVERS = ("kmem", "device_dax")


def contradictions(observation: Observation, blocks: Iterable[MemoryRange]) -> tuple[str, ...]:
    """Describe the differences between two parts of an observation.

    Args:
        observation: the guest.
        blocks: all memory blocks, online or not.
    """
    return (
        *_about_devices(observation),
        *_about_regions(observation),
        *_about_drivers(observation),
        *_about_blocks(observation, tuple(blocks)),
    )


def _about_devices(observation: Observation) -> Iterator[str]:
    in_sysfs = sorted(device.name for device in observation.dax)
    listed = sorted(_named(observation.daxctl_list, "chardev"))
    if in_sysfs != listed:
        yield f"sysfs has dax devices {_list(in_sysfs)}, daxctl lists {_list(listed)}"


def _about_regions(observation: Observation) -> Iterator[str]:
    in_sysfs = sorted(region.name for region in observation.regions)
    listed = sorted(set(_named(observation.cxl_list, "region")))
    if in_sysfs != listed:
        yield f"sysfs has regions {_list(in_sysfs)}, cxl lists {_list(listed)}"
    yield from _about_windows(observation)


def _about_windows(observation: Observation) -> Iterator[str]:
    """Windows that only iomem or only sysfs has.

    cxl_acpi enlarges a window's entry in iomem around what lies across its borders, at the cost of
    the next one (drivers/cxl/acpi.c, add_cxl_resources()); together they cover the windows.
    """
    windows = [one.range for one in observation.decoders if one.depth == 0 and one.range]
    shown = [entry.range for entry in observation.iomem.named(r"CXL Window \d+")]
    for span in sorted(windows):
        if span.minus(shown):
            yield f"only a root decoder has a window at {span}"
    for entry in sorted(shown):
        if not any(entry.overlaps(span) for span in windows):
            yield f"only iomem has a window at {entry}"


def _about_drivers(observation: Observation) -> Iterator[str]:
    for name in _DAX_DRIVERS:
        if name in observation.modules and name not in observation.dax_drivers:
            yield f"the module {name} is loaded, but there is no driver {name}"
    for device in observation.dax:
        if device.driver is not None and device.driver not in observation.dax_drivers:
            yield f"{device.name} has the driver {device.driver}, which does not exist"


def _about_blocks(observation: Observation, blocks: tuple[MemoryRange, ...]) -> Iterator[str]:
    for entry in observation.iomem.named(KMEM_RAM):
        if entry.range.minus(blocks):
            yield f"iomem has RAM at {entry.range}, not all of which has memory blocks"

    ram = [entry.range for entry in observation.iomem.named(r"System RAM(?: \(.*\))?")]
    for block in blocks:
        if not any(block.overlaps(one) for one in ram):
            yield f"there is a memory block at {block}, where iomem has no RAM"
            return  # a wrong size of blocks moves all of them


def _named(listed: Any, key: str) -> Iterator[str]:
    """The names that `cxl list` and `daxctl list` give under a key, at any depth."""
    stack = [listed]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if isinstance(name := value.get(key), str) and re.fullmatch(r"[a-z]+[\d.]+", name):
                yield name
            stack += value.values()
        elif isinstance(value, list):
            stack += value


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
