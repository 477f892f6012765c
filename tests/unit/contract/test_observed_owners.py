# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import by_cxl, by_hmem, iomem_of, observed, record, span

from harness.contract.iomem import Iomem
from harness.contract.observation import CxlRegion, DaxDevice, Observation
from harness.contract.observed_owners import disagreements, double_claims, online, pieces_of
from harness.platform.memory_range import MemoryRange

SR = span("110000000-18fffffff")

OWNED = """
    110000000-18fffffff : CXL Window 0
      110000000-18fffffff : region0
        110000000-18fffffff : dax0.0
          110000000-18fffffff : System RAM (kmem)
"""
BARE = """
    110000000-18fffffff : CXL Window 0
      110000000-14fffffff : region0
"""


def pieces(seen: Observation) -> list[tuple[str, str, str, str]]:
    return [(str(one.range), one.owner, one.use, one.via) for one in pieces_of(SR, seen)]


def test_a_range_under_a_dax_device_belongs_to_who_made_it() -> None:
    assert pieces(observed(OWNED, by_cxl("dax0.0", "110000000-18fffffff"))) == [
        ("110000000-18fffffff", "dax_cxl", "system_ram", "region0 > dax0.0 > kmem")
    ]
    assert pieces(observed(OWNED, by_hmem("dax2.0", "110000000-18fffffff"))) == [
        ("110000000-18fffffff", "dax_hmem", "system_ram", "hmem.2 > dax2.0 > kmem")
    ]


def test_the_driver_that_holds_a_device_says_what_it_is_used_for() -> None:
    device = by_hmem("dax2.0", "110000000-18fffffff", driver="device_dax")
    seen = observed(BARE, device, drivers=["device_dax", "kmem"])
    assert [(one[1], one[2]) for one in pieces(seen)] == [("dax_hmem", "devdax")]


def test_a_device_without_a_driver_is_owned_only_while_kmem_is_not_there() -> None:
    device = by_hmem("dax2.0", "110000000-18fffffff", driver=None)
    assert pieces(observed(BARE, device, drivers=["device_dax"])) == [
        ("110000000-18fffffff", "dax_hmem", "none", "hmem.2 > dax2.0")
    ]
    assert pieces(observed(BARE, device, drivers=["kmem"])) == [
        (
            *("110000000-18fffffff", "nobody", "none"),
            "hmem.2 > dax2.0 without a driver; iomem: CXL Window 0 > region0",
        )
    ]


def test_a_range_without_a_dax_device_is_stranded_where_iomem_says() -> None:
    assert pieces(observed(BARE)) == [
        ("110000000-18fffffff", "nobody", "none", "iomem: CXL Window 0 > region0")
    ]
    assert pieces(observed("0-fff : Reserved"))[0][3] == "iomem: nothing"


def test_a_piece_has_the_node_of_the_device_that_owns_it() -> None:
    device = replace(by_cxl("dax0.0", "110000000-13fffffff", "140000000-14fffffff"), target_node=2)
    seen = observed(BARE, device)
    assert [(str(one.range), one.node) for one in pieces_of(SR, seen)] == [
        ("110000000-14fffffff", 2),
        ("150000000-18fffffff", None),
    ]
    unheld = replace(by_hmem("dax2.0", "110000000-18fffffff", driver=None), target_node=2)
    assert [one.node for one in pieces_of(SR, observed(BARE, unheld))] == [None]


def test_a_range_in_several_hands_comes_in_pieces_that_cover_it() -> None:
    seen = observed(
        BARE, by_cxl("dax0.0", "110000000-14fffffff"), by_hmem("dax2.0", "170000000-1ffffffff")
    )
    assert [one[:2] for one in pieces(seen)] == [
        ("110000000-14fffffff", "dax_cxl"),
        ("150000000-16fffffff", "nobody"),
        ("170000000-18fffffff", "dax_hmem"),
    ]


def test_neighbours_of_one_device_are_one_piece() -> None:
    device = by_hmem("dax2.0", "110000000-14fffffff", "150000000-18fffffff")
    assert [one[0] for one in pieces(observed(BARE, device))] == ["110000000-18fffffff"]


def test_neighbours_of_two_devices_are_two_pieces() -> None:
    first = by_hmem("dax2.0", "110000000-14fffffff")
    second = by_hmem("dax3.0", "150000000-18fffffff")
    held = """
        110000000-18fffffff : CXL Window 0
          110000000-14fffffff : dax2.0
            110000000-14fffffff : System RAM (kmem)
          150000000-18fffffff : dax3.0
            150000000-18fffffff : System RAM (kmem)"""
    assert [one[3] for one in pieces(observed(held, first, second))] == [
        "hmem.2 > dax2.0 > kmem",
        "hmem.3 > dax3.0 > kmem",
    ]


def test_of_two_devices_the_one_with_a_driver_owns() -> None:
    failed = by_hmem("dax2.0", "110000000-18fffffff", driver=None)
    holds = by_cxl("dax0.0", "110000000-18fffffff")
    for devices in ((failed, holds), (holds, failed)):
        assert [one[1] for one in pieces(observed(OWNED, *devices))] == ["dax_cxl"]


def test_a_device_of_neither_driver_owns_nothing_and_is_named_as_it_is() -> None:
    device = replace(by_hmem("dax7.0", "110000000-18fffffff"), parent="pmem7", path="x/dax7.0")
    ((_, owner, use, via),) = pieces(observed(BARE, device))
    assert (owner, use) == ("nobody", "none")
    assert via.startswith("dax7.0 > kmem")
    assert "without a driver" not in via


def test_a_part_that_two_devices_cover_is_claimed_twice() -> None:
    seen = observed(
        OWNED, by_cxl("dax0.0", "110000000-18fffffff"), by_hmem("dax2.0", "180000000-1bfffffff")
    )
    assert double_claims(SR, seen) == (
        (span("180000000-18fffffff"), "region0 > dax0.0 > kmem and hmem.2 > dax2.0 > kmem"),
    )
    assert double_claims(span("110000000-17fffffff"), seen) == ()


@pytest.mark.parametrize("name", ["System RAM", "System RAM (virtio_mem)"])
def test_what_a_device_covers_and_is_other_ram_too_is_claimed_twice(name: str) -> None:
    iomem = f"150000000-1ffffffff : {name}"
    seen = observed(iomem, by_hmem("dax2.0", "110000000-18fffffff", driver=None))
    both = f"hmem.2 > dax2.0 and {name}"
    assert double_claims(SR, seen) == ((span("150000000-18fffffff"), both),)
    assert double_claims(SR, observed(iomem)) == ()


small = st.builds(MemoryRange.of_size, st.integers(0, 40), st.integers(1, 20))
holdings = st.lists(st.tuples(small, st.sampled_from(["kmem", None])), max_size=4)


@given(small, holdings)
def test_pieces_cover_the_range_exactly_and_tell_the_owner_of_every_byte(
    whole: MemoryRange, held: list[tuple[MemoryRange, str | None]]
) -> None:
    devices = [
        by_hmem(f"dax{number}.0", str(one), driver=driver)
        for number, (one, driver) in enumerate(held)
    ]
    found = pieces_of(whole, observed("0-fff : x", *devices))
    assert found[0].range.start == whole.start
    assert found[-1].range.end == whole.end
    assert all(a.range.end + 1 == b.range.start for a, b in itertools.pairwise(found))
    for piece in found:
        for at in range(piece.range.start, piece.range.end + 1):
            owned = any(one.start <= at <= one.end and driver for one, driver in held)
            assert (piece.owner == "dax_hmem") == owned


def test_iomem_and_sysfs_that_agree_leave_nothing_to_say() -> None:
    assert disagreements(observed(OWNED, by_cxl("dax0.0", "110000000-18fffffff"))) == ()
    devdax = by_hmem("dax2.0", "180000000-1bfffffff", driver="device_dax")
    assert disagreements(observed("180000000-1bfffffff : dax2.0", devdax)) == ()
    assert disagreements(observed(BARE, by_hmem("dax2.0", "1-2", driver=None))) == ()


@pytest.mark.parametrize(
    ("iomem", "device", "kind"),
    [
        (OWNED, None, "device_missing"),
        (
            OWNED,
            by_cxl("dax0.0", "110000000-18fffffff", driver=None),
            "device_without_driver",
        ),
        (
            OWNED,
            by_cxl("dax0.0", "110000000-14fffffff"),
            "device_elsewhere",
        ),
        (
            BARE,
            by_cxl("dax0.0", "110000000-14fffffff"),
            "device_not_in_iomem",
        ),
        (
            OWNED.replace("System RAM (kmem)", "Reserved"),
            by_cxl("dax0.0", "110000000-18fffffff"),
            "kmem_without_ram",
        ),
        (
            "180000000-1bfffffff : System RAM (kmem)",
            None,
            "ram_without_device",
        ),
        (
            OWNED,
            by_cxl("dax0.0", "110000000-18fffffff", driver="device_dax"),
            "ram_without_device",
        ),
    ],
)
def test_iomem_and_sysfs_that_disagree_are_a_finding(
    iomem: str, device: DaxDevice | None, kind: str
) -> None:
    found = disagreements(observed(iomem, *([device] if device else [])))
    assert kind in [one.kind for one in found]
    assert {one.rule for one in found} == {"consistency"}
    assert all(one.range is not None for one in found)


@pytest.mark.parametrize(
    ("device", "ram", "parts"),
    [
        # Memory blocks have 128 MiB: kmem trims a device at both ends to whole ones.
        (
            "114000000-18fffffff",
            "118000000-18fffffff",
            ["114000000-117ffffff none", "118000000-18fffffff system_ram"],
        ),
        (
            "110000000-153ffffff",
            "110000000-14fffffff",
            ["110000000-14fffffff system_ram", "150000000-153ffffff none"],
        ),
    ],
)
def test_what_kmem_trims_to_whole_memory_blocks_is_no_system_ram(
    device: str, ram: str, parts: list[str]
) -> None:
    iomem = f"""
        110000000-18fffffff : CXL Window 0
          {ram} : dax2.0
            {ram} : System RAM (kmem)"""
    found = pieces_of(span(device), observed(iomem, by_hmem("dax2.0", device)))
    assert [f"{one.range} {one.use}" for one in found] == parts
    assert {one.owner for one in found} == {"dax_hmem"}
    (lost,) = [one.via for one in found if one.use == "none"]
    assert lost == "hmem.2 > dax2.0 > kmem, which takes whole memory blocks of 128M only"
    assert disagreements(observed(iomem, by_hmem("dax2.0", device))) == ()


def test_whole_blocks_that_kmem_did_not_take_are_not_laid_to_alignment() -> None:
    short = OWNED.replace("110000000-18fffffff : System RAM", "110000000-17fffffff : System RAM")
    (_, lost) = pieces_of(SR, observed(short, by_cxl("dax0.0", "110000000-18fffffff")))
    assert (lost.use, str(lost.range)) == ("none", "180000000-18fffffff")
    assert lost.via.endswith("which did not take it: iomem has no System RAM (kmem) there")


def test_ram_that_the_firmware_gave_is_its_own() -> None:
    ram = "110000000-18fffffff : CXL Window 0\n  110000000-18fffffff : System RAM"
    (piece,) = pieces_of(SR, observed(ram))
    assert (piece.owner, piece.use) == ("firmware_ram", "none")


def test_devdax_of_which_iomem_shows_only_a_part_is_a_finding() -> None:
    devdax = by_hmem("dax2.0", "180000000-1bfffffff", driver="device_dax")
    (found,) = disagreements(observed("180000000-19fffffff : dax2.0", devdax))
    assert found.kind == "device_partly_in_iomem"
    halves = "180000000-19fffffff : dax2.0\n1a0000000-1bfffffff : dax2.0"
    assert disagreements(observed(halves, devdax)) == ()


def test_a_disagreement_shows_the_lines_of_iomem_that_it_is_about() -> None:
    (missing, _) = disagreements(observed(OWNED))
    assert missing.range == SR
    assert missing.iomem == observed(OWNED).iomem.lines()


def ram(*ranges: str) -> Iomem:
    return iomem_of("\n".join(f"{one} : System RAM (kmem)" for one in ranges))


def test_memory_is_online_once_kmem_holds_all_of_it() -> None:
    both = (span("110000000-14fffffff"), span("180000000-1bfffffff"))
    assert online(ram("110000000-14fffffff", "180000000-1bfffffff"), both)
    assert online(ram("110000000-12fffffff", "130000000-1bfffffff"), both)
    assert not online(ram("110000000-14fffffff"), both)
    assert not online(ram("110000000-14ffffffe", "180000000-1bfffffff"), both)
    assert not online(iomem_of("110000000-1bfffffff : System RAM"), both)


def test_memory_of_kmem_is_offline_where_its_blocks_are() -> None:
    ours = by_cxl("dax0.0", "110000000-18fffffff")
    whole = observed(OWNED, ours, offline=["100000000-14fffffff", "150000000-18fffffff"])
    assert [one[2] for one in pieces(whole)] == ["offline"]
    half = observed(OWNED, ours, offline=["110000000-14fffffff"])
    assert [one[2] for one in pieces(half)] == ["offline", "system_ram"]
    devdax = by_cxl("dax0.0", "110000000-18fffffff", driver="device_dax")
    away = observed(OWNED, devdax, offline=["110000000-18fffffff"])
    assert [one[2] for one in pieces(away)] == ["devdax"]


REGION = CxlRegion("region0", SR, committed=True, ways=1, driver="cxl_region")
NO_REGION = "110000000-18fffffff : CXL Window 0"
NOT_ENTERED = record(3, "mem0:decoder2.0: __construct_region region0 cannot insert resource")


@pytest.mark.parametrize(
    ("iomem", "regions", "texts"),
    [
        (OWNED, [REGION], []),
        (OWNED, [], ["iomem has region0, but sysfs has no", "dax0.0 is of a region that is not"]),
        (OWNED, [replace(REGION, committed=False)], ["dax0.0 is of a region that is not"]),
        (NO_REGION, [REGION], ["sysfs has region0, but iomem does not", "kmem holds dax0.0, but"]),
    ],
)
def test_a_region_that_a_kernel_leaves_behind_breaks_consistency(
    iomem: str, regions: list[CxlRegion], texts: list[str]
) -> None:
    found = disagreements(observed(iomem, by_cxl("dax0.0", "110000000-18fffffff"), regions=regions))
    assert {one.rule for one in found} <= {"consistency"}
    assert len(found) == len(texts)
    assert all(any(one.text.startswith(text) for one in found) for text in texts)


def test_a_region_that_the_kernel_could_not_enter_into_iomem_is_no_disagreement() -> None:
    assert disagreements(observed(NO_REGION, regions=[REGION], dmesg=[NOT_ENTERED])) == ()
    assert len(disagreements(observed(NO_REGION, regions=[REGION]))) == 1
