# SPDX-License-Identifier: GPL-2.0-or-later
"""The NUMA node that Linux gives to memory at an address, computed from SRAT and CEDT.

dax_cxl and dax_hmem give a dax device the node of its first byte (phys_to_target_node()), and kmem
adds its memory to that node; kmem rejects a device without one ("invalid node: -1"). With a HMAT,
dax_hmem takes the node of the SRAT entry (drivers/acpi/numa/hmat.c), which is the same one.

Source: Linux, drivers/acpi/numa/srat.c and mm/numa_memblks.c. From 6.12 to 7.2 they differ in two
points. Since 7.1, a kernel without CONFIG_CXL_ACPI makes no nodes for windows ("ACPI: NUMA: Only
parse CFMWS at boot when CXL_ACPI is on"). Since 7.0, and in some stable kernels before it, a window
between two blocks of RAM of one node keeps its own node ("mm: numa_memblks: Identify the accurate
NUMA ID of CFMW"). QEMU puts windows above all RAM, so the second point does not matter here.

Not modelled: `numa=off`, and ordinary RAM in a window without any SRAT entry, for which Linux drops
the SRAT and makes one node of all RAM (memblock_validate_numa_coverage()).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness.platform.acpi_tables import MemoryAffinity, parse_cpu_domains, parse_srat
from harness.platform.memory_range import MemoryRange


@dataclass(frozen=True)
class NodeRange:
    """A range of addresses with its NUMA node, and its proximity domain in the SRAT."""

    range: MemoryRange
    node: int
    domain: int


def node_ranges(
    srat: bytes, added: Iterable[MemoryAffinity], windows: Iterable[MemoryRange]
) -> tuple[NodeRange, ...]:
    """List the ranges that have a node, in the order in which Linux searches them.

    Linux numbers the proximity domains in the order in which it reads them: those of CPUs, then
    those of memory. Each window without a memory entry in the SRAT gets the next number. Where a
    window has entries, these are extended until they cover it.

    Args:
        srat: the SRAT that QEMU built.
        added: the memory entries that the scenario adds to it.
        windows: the windows of the CEDT that Linux gets, in its order; empty for a kernel that
            makes no nodes for windows.

    Raises:
        AcpiTableError: the SRAT is malformed.
    """
    numbers: dict[int, int] = {}
    entries = [*parse_srat(srat), *added]
    for domain in (*parse_cpu_domains(srat), *(entry.node for entry in entries)):
        numbers.setdefault(domain, len(numbers))
    alone: list[NodeRange] = []
    for window in windows:
        if any(entry.range.overlaps(window) for entry in entries):
            entries = _extended(entries, window)
        else:
            new = (len(numbers) + len(alone), max(numbers, default=-1) + 1 + len(alone))
            alone.append(NodeRange(window, *new))
    described = (NodeRange(entry.range, numbers[entry.node], entry.node) for entry in entries)
    return (*alone, *described)


def target_node(address: int, nodes: Iterable[NodeRange]) -> int | None:
    """Return the node of a dax device that begins at this address, None without one."""
    return next(
        (known.node for known in nodes if known.range.start <= address <= known.range.end), None
    )


def named_node(node: int | None, nodes: Iterable[NodeRange]) -> str:
    """Describe a node, with its proximity domain if that has another number."""
    if node is None:
        return "no node"
    domain = next((known.domain for known in nodes if known.node == node), node)
    return f"node {node}" if domain == node else f"node {node} (proximity domain {domain})"


def _extended(entries: Sequence[MemoryAffinity], window: MemoryRange) -> list[MemoryAffinity]:
    """The entries, with those in the window extended to cover it, as by numa_fill_memblks()."""
    inside = sorted(
        (number for number, entry in enumerate(entries) if entry.range.overlaps(window)),
        key=lambda number: entries[number].range.start,
    )
    extended = list(entries)
    uncovered = window.start
    for number in inside:
        span = entries[number].range
        end = max(span.end, window.end) if number == inside[-1] else span.end
        whole = MemoryRange(min(span.start, uncovered), end)
        extended[number] = replace(entries[number], range=whole)
        uncovered = max(uncovered, span.end + 1)
    return extended
