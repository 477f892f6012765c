# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from dataclasses import replace

import pytest
from machines import firmware_state, observed, record, span

from harness.contract.dmesg import Record
from harness.contract.preflight import absent_windows, early_problems, window_problems
from harness.platform.acpi_tables import MemoryAffinity
from harness.platform.address_map import MachineLayout
from harness.platform.firmware_state import FirmwareState, NamedRange

RAM = (
    MemoryAffinity(span("0-9ffff"), 0, hotplug=False),
    MemoryAffinity(span("100000-3fffffff"), 0, hotplug=False),
)
ROOM = MemoryAffinity(span("200000000-5bfffffff"), 3, hotplug=True)
ADDED = MemoryAffinity(span("5d0000000-64fffffff"), 4, hotplug=False)

E820 = (
    "BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable",
    "BIOS-e820: [mem 0x00000000000f0000-0x00000000000fffff] reserved",
)
SRAT = (
    "ACPI: SRAT 0x000000003FFE2C72 0000C8 (v01 BOCHS  BXPC     00000001 BXPC 00000001)",
    "ACPI: SRAT: Node 0 PXM 0 [mem 0x00000000-0x0009ffff]",
    "ACPI: SRAT: Node 0 PXM 0 [mem 0x00100000-0x3fffffff]",
)
HOTPLUG = "ACPI: SRAT: Node 3 PXM 3 [mem 0x200000000-0x5bfffffff] hotplug"


def layout(*memory: MemoryAffinity) -> MachineLayout:
    return MachineLayout(bridges=(), windows=(), memory=memory, srat=b"")


def log(*texts: str) -> tuple[Record, ...]:
    return tuple(record(6, text) for text in texts)


def soft(where: str, by: str = "user") -> str:
    one = span(where)
    return f"{by}: [mem {one.start:#018x}-{one.end:#018x}] soft reserved"


def state_with(*ranges: str, srat: tuple[MemoryAffinity, ...] = ()) -> FirmwareState:
    plain = firmware_state({f"sr{n}": text for n, text in enumerate(ranges)})
    return FirmwareState(**{**plain.__dict__, "srat": srat})


@pytest.mark.parametrize("by", ["user", "BIOS-e820"])
def test_a_guest_that_shows_what_was_asked_for_has_no_problem(by: str) -> None:
    shown = log(*E820, soft("180000000-1bfffffff", by), *SRAT, HOTPLUG)
    assert early_problems(shown, state_with("180000000-1bfffffff"), layout(*RAM, ROOM)) == ()


def test_a_kernel_that_aligns_its_columns_is_read_too() -> None:
    shown = log("BIOS-e820: [mem 0x0000000180000000-0x00000001bfffffff]  soft reserved", *SRAT)
    assert early_problems(shown, state_with("180000000-1bfffffff"), layout(*RAM)) == ()


def test_ranges_that_touch_stay_two_and_one_in_two_pieces_is_one() -> None:
    halves = ("1c0000000-1ffffffff", "180000000-1bfffffff")
    two, one = log(*map(soft, halves), *SRAT), log(soft("180000000-1ffffffff"), *SRAT)
    asked_two, asked_one = state_with(*halves), state_with("180000000-1ffffffff")
    assert early_problems(two, asked_two, layout(*RAM)) == ()
    assert early_problems(two, asked_one, layout(*RAM)) == ()
    (problem,) = early_problems(one, asked_two, layout(*RAM))
    assert problem.endswith("the kernel shows 180000000-1ffffffff")


@pytest.mark.parametrize(
    ("shown", "says"),
    [
        ((), "the kernel shows nothing"),
        (("180000000-1afffffff",), "the kernel shows 180000000-1afffffff"),
        (("180000000-1bfffffff", "1d0000000-1dfffffff"), "shows 180000000-1bfffffff, 1d0000000-1"),
    ],
)
def test_soft_reserved_ranges_that_were_not_asked_for_are_a_problem(
    shown: tuple[str, ...], says: str
) -> None:
    lines = log(*map(soft, shown), *SRAT)
    (problem,) = early_problems(lines, state_with("180000000-1bfffffff"), layout(*RAM))
    assert problem.startswith("requested Soft Reserved 180000000-1bfffffff, ")
    assert says in problem


def test_a_soft_reserved_range_that_nobody_asked_for_is_a_problem() -> None:
    (problem,) = early_problems(log(soft("180000000-1bfffffff"), *SRAT), state_with(), layout(*RAM))
    assert problem.startswith("requested Soft Reserved nothing")


def test_an_srat_override_that_did_not_take_is_a_problem() -> None:
    (problem,) = early_problems(log(*SRAT), state_with(srat=(ADDED,)), layout(*RAM))
    assert problem == ("SRAT entries missing: 5d0000000-64fffffff of node 4; not requested: none")
    there = "ACPI: SRAT: Node 1 PXM 4 [mem 0x5d0000000-0x64fffffff]"
    assert early_problems(log(*SRAT, there), state_with(srat=(ADDED,)), layout(*RAM)) == ()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("ACPI: SRAT: Node 2 PXM 2 [mem 0x200000000-0x5bfffffff] hotplug", "of node 2"),
        ("ACPI: SRAT: Node 3 PXM 3 [mem 0x200000000-0x5bfffffff]", "of node 3"),
        ("ACPI: SRAT: Node 3 PXM 3 [mem 0x200000000-0x5afffffff] hotplug", "200000000-5afffffff"),
    ],
    ids=["node", "hotplug", "range"],
)
def test_an_srat_entry_that_differs_is_a_problem(line: str, says: str) -> None:
    (problem,) = early_problems(log(*SRAT, line), state_with(), layout(*RAM, ROOM))
    assert "missing: 200000000-5bfffffff of node 3" in problem
    assert says in problem.partition("not requested: ")[2]


def test_an_srat_entry_that_nobody_asked_for_is_a_problem() -> None:
    (problem,) = early_problems(log(*SRAT, HOTPLUG), state_with(), layout(*RAM))
    assert problem == "SRAT entries missing: none; not requested: 200000000-5bfffffff of node 3"


def test_all_problems_are_told_at_once() -> None:
    assert len(early_problems(log(*E820), state_with("180000000-1bfffffff"), layout(*RAM))) == 2


WINDOWED = FirmwareState(
    soft_reserved=(NamedRange("sr0", span("110000000-18fffffff")),),
    decoders=(),
    windows=(span("110000000-18fffffff"), span("190000000-20fffffff")),
    ram=(),
    hotplug_room=(),
    srat=(),
)


def test_windows_are_where_they_were_asked_for() -> None:
    seen = observed("""
        110000000-18fffffff : CXL Window 0
        190000000-20fffffff : CXL Window 1
    """)
    assert window_problems(seen, WINDOWED) == ()


def test_windows_below_a_dax_device_count_too() -> None:
    seen = observed("""
        110000000-20fffffff : dax0.0
          110000000-20fffffff : System RAM (kmem)
            110000000-18fffffff : CXL Window 0
            190000000-20fffffff : CXL Window 1
    """)
    assert window_problems(seen, WINDOWED) == ()


def test_without_cxl_acpi_there_are_no_windows_to_compare() -> None:
    assert window_problems(observed("0-fff : Reserved"), WINDOWED) == ()


@pytest.mark.parametrize(
    ("module", "iomem", "problems"),
    [
        ("cxl_acpi", "0-fff : Reserved", 1),
        ("cxl_acpi", "110000000-18fffffff : CXL Window 0", 0),
        ("cxl_pci", "0-fff : Reserved", 0),
    ],
)
def test_cxl_acpi_without_any_window_was_not_tested(module: str, iomem: str, problems: int) -> None:
    seen = replace(observed(iomem), modules=(module,))
    assert len(absent_windows(seen, WINDOWED)) == problems
    assert absent_windows(seen, replace(WINDOWED, windows=())) == ()


@pytest.mark.parametrize(
    "iomem",
    [
        "110000000-18fffffff : CXL Window 0",
        "110000000-18fffffff : CXL Window 0\n190000000-1ffffffff : CXL Window 1",
    ],
)
def test_windows_elsewhere_are_a_problem(iomem: str) -> None:
    (problem,) = window_problems(observed(iomem), WINDOWED)
    assert problem.startswith("requested windows at 110000000-18fffffff, 190000000-20fffffff")
