# SPDX-License-Identifier: GPL-2.0-or-later
"""NUMA nodes of memory, computed from SRAT and CEDT; test_golden_corpus compares with Linux."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from layouts import layout_of, srat_table, state_of, table
from machines import span

from harness.contract.result import Piece
from harness.core.paths import SCENARIOS
from harness.platform.acpi_tables import MemoryAffinity
from harness.platform.target_node import named_node, node_ranges, target_node
from harness.scenario.scenario import POLICIES
from harness.scenario.scenario_files import Case, load_case, scenario_names

RAM = MemoryAffinity(span("0-3fffffff"), 0, hotplug=False)
WINDOWS = (span("110000000-18fffffff"), span("190000000-20fffffff"))
PIECE = Piece(WINDOWS[0], "dax_cxl", "system_ram", "region0 > dax0.0 > kmem", 1)


def entry(where: str, domain: int, *, hotplug: bool = False) -> MemoryAffinity:
    return MemoryAffinity(span(where), domain, hotplug)


def apic(domain: int, *, flags: int = 1) -> bytes:
    low, high = domain & 0xFF, (domain >> 8).to_bytes(3, "little")
    return struct.pack("<BBBBIB3sI", 0, 16, low, 0, flags, 0, high, 0)


def x2apic(domain: int, *, flags: int = 1) -> bytes:
    return struct.pack("<BBHIIIII", 2, 24, 0, domain, 256, flags, 0, 0)


def srat_with(cpus: bytes, *memory: MemoryAffinity, version: int = 1) -> bytes:
    whole = bytearray(table("SRAT", srat_table(memory)[36:] + cpus))
    whole[8] = version
    return bytes(whole)


def nodes_at(addresses: Sequence[int], *added: MemoryAffinity) -> list[int | None]:
    nodes = node_ranges(srat_table([RAM]), added, WINDOWS)
    return [target_node(one, nodes) for one in addresses]


def test_windows_that_the_srat_does_not_describe_get_nodes_in_the_order_of_the_cedt() -> None:
    assert nodes_at([0x0, 0x110000000, 0x190000000, 0x20FFFFFFF]) == [0, 1, 2, 2]
    nodes = node_ranges(srat_table([RAM]), (), WINDOWS[::-1])
    assert [target_node(one.start, nodes) for one in WINDOWS] == [2, 1]


def test_what_nothing_describes_has_no_node() -> None:
    assert nodes_at([0x40000000, 0x10FFFFFFF, 0x210000000]) == [None] * 3
    assert target_node(0x110000000, node_ranges(srat_table([RAM]), (), ())) is None


def test_without_any_entry_in_the_srat_the_first_window_gets_node_0() -> None:
    nodes = node_ranges(srat_table([]), (), WINDOWS)
    assert [(one.node, one.domain) for one in nodes] == [(0, 0), (1, 1)]


def test_proximity_domains_are_numbered_as_they_come_and_windows_after_them() -> None:
    second = entry("190000000-20fffffff", 7)
    assert nodes_at([0x110000000, 0x190000000], second) == [2, 1]
    both = (second, entry("110000000-18fffffff", 2))
    assert nodes_at([0x110000000, 0x190000000], *both) == [2, 1]


def test_domains_of_cpus_are_numbered_before_those_of_memory() -> None:
    for cpu in (
        apic,
        x2apic,
    ):
        assert callable(cpu)
        memory = (entry("0-3fffffff", 1), entry("100000000-10fffffff", 0))
        for cpus, expected in ((cpu(0), [1, 0]), (cpu(0, flags=0), [0, 1]), (cpu(5), [1, 2])):
            nodes = node_ranges(srat_with(cpus, *memory), (), ())
            assert [target_node(one.range.start, nodes) for one in memory] == expected


def test_the_domain_of_a_cpu_has_four_bytes_since_revision_2_of_the_srat() -> None:
    memory = (entry("0-3fffffff", 0x102), entry("100000000-10fffffff", 2))
    for version, expected in ((1, [1, 0]), (2, [0, 1])):
        nodes = node_ranges(srat_with(apic(0x102), *memory, version=version), (), ())
        assert [target_node(one.range.start, nodes) for one in memory] == expected


def test_an_entry_for_a_part_of_a_window_is_one_for_all_of_it() -> None:
    part = entry("120000000-12fffffff", 3, hotplug=True)
    assert nodes_at([0x110000000, 0x120000000, 0x18FFFFFFF, 0x190000000], part) == [1, 1, 1, 2]


def test_a_gap_between_entries_in_a_window_belongs_to_the_entry_above_it() -> None:
    parts = (entry("170000000-17fffffff", 1), entry("120000000-12fffffff", 2))
    at = [0x110000000, 0x12FFFFFFF, 0x130000000, 0x16FFFFFFF, 0x18FFFFFFF]
    assert nodes_at(at, *parts) == [2, 2, 1, 1, 1]


def test_an_entry_over_two_windows_is_one_for_both() -> None:
    assert nodes_at([0x110000000, 0x20FFFFFFF], entry("180000000-19fffffff", 4)) == [1, 1]


def test_of_overlapping_entries_the_first_in_the_table_counts() -> None:
    overlapping = (entry("110000000-18fffffff", 2), entry("150000000-16fffffff", 1))
    assert nodes_at([0x110000000, 0x150000000, 0x18FFFFFFF], *overlapping) == [1, 1, 1]


def test_a_node_comes_with_its_proximity_domain_where_the_numbers_differ() -> None:
    nodes = node_ranges(srat_table([RAM]), [entry("190000000-20fffffff", 7)], WINDOWS)
    assert named_node(0, nodes) == "node 0"
    assert named_node(1, nodes) == "node 1 (proximity domain 7)"
    assert named_node(2, nodes) == "node 2 (proximity domain 8)"
    assert named_node(5, nodes) == "node 5"
    assert named_node(None, nodes) == "no node"


def test_owned_memory_in_another_node_is_wrong_and_nothing_else() -> None:
    assert PIECE.wrong_node(2)
    assert replace(PIECE, node=None).wrong_node(2)
    assert not PIECE.wrong_node(1)
    assert not PIECE.wrong_node(None)
    assert not replace(PIECE, owner="nobody", node=None).wrong_node(2)


def stated_and_computed(case: Case) -> list[tuple[int | None, int | None]]:
    """Each node that a scenario states, with that of its range's first byte."""
    state = state_of(case)
    nodes = node_ranges(layout_of(case.profile).srat, state.srat, state.windows)
    starts = {one.name: one.range.start for one in state.named_ranges()}
    return [
        (owner.node, target_node(starts[name], nodes))
        for policy in POLICIES
        for name, owner in case.scenario.expect.owners(policy).items()
        if owner.node is not None
    ]


def test_the_nodes_that_scenarios_state_are_the_computed_ones(tmp_path: Path) -> None:
    pairs = [pair for name in scenario_names() for pair in stated_and_computed(load_case(name))]
    assert len(pairs) >= 4
    assert all(stated == computed for stated, computed in pairs)
    wrong = tmp_path / "target_node.yaml"
    wrong.write_text((SCENARIOS / wrong.name).read_text().replace("node: 1}", "node: 3}"))
    pairs = stated_and_computed(load_case(str(wrong)))
    assert any(stated != computed for stated, computed in pairs)
