# SPDX-License-Identifier: GPL-2.0-or-later
"""Limits of QEMU's q35 that a profile can reach, tried with QEMU 10.0, paused.

Not among them: windows (256 work), and what the types of a profile's fields already limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.scenario.yaml_document import Document

if TYPE_CHECKING:
    from harness.scenario.profile import Port, Profile

# With 17, QEMU starts, but the last one's registers lie outside the 1 MiB that it has for them.
_MOST_HOST_BRIDGES = 16
# Slots of one PCI bus.
_MOST_PORTS = 32
_MOST_NODES = 128


def check_limits(document: Document[Profile]) -> None:
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
