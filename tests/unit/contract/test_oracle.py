# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracle on layouts of the discussion, beside the scenario files that test_catalogue holds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
from machines import CXL, HMEM, NOBODY, committed, firmware_state, scenario_of

from harness.contract.oracle import expected_owners
from harness.platform.firmware_state import FirmwareState
from harness.platform.memory_range import MemoryRange
from harness.scenario.scenario import Ownership, Policy

ALL = ("cxl_acpi", "cxl_pci", "cxl_mem", "dax_hmem", "kmem", "dax_cxl")
WINDOW = "110000000-18fffffff"
LOWER, UPPER = "110000000-14fffffff", "150000000-18fffffff"
OUTSIDE = "1c0000000-1ffffffff"


def state(soft_reserved: Mapping[str, str], *regions: str) -> FirmwareState:
    decoders = [committed(f"r{number}", one) for number, one in enumerate(regions)]
    return firmware_state(soft_reserved, decoders=decoders, windows=[WINDOW])


def owners(
    where: FirmwareState,
    policy: Policy,
    load: Sequence[str] = ALL,
    config: Mapping[str, str] | None = None,
) -> dict[str, Ownership]:
    return expected_owners(scenario_of({}, load=load, config=config).value, where, policy)


def both(where: FirmwareState) -> tuple[dict[str, Ownership], dict[str, Ownership]]:
    return owners(where, "per_range"), owners(where, "all_or_nothing")


@pytest.mark.parametrize(
    ("soft_reserved", "regions", "per_range", "all_or_nothing"),
    [
        # One range, exactly covered; inside a larger region; larger than its region; bare.
        ({"a": WINDOW}, [WINDOW], {"a": CXL}, {"a": CXL}),
        ({"a": LOWER}, [WINDOW], {"a": CXL}, {"a": CXL}),
        ({"a": WINDOW}, [LOWER], {"a": HMEM}, {"a": HMEM}),
        ({"a": WINDOW}, [], {"a": HMEM}, {"a": HMEM}),
        # No single region contains it, though two together do.
        ({"a": WINDOW}, [LOWER, UPPER], {"a": HMEM}, {"a": HMEM}),
        # One bare range decides for all in windows, and for those only.
        ({"a": LOWER, "b": UPPER}, [LOWER], {"a": CXL, "b": HMEM}, {"a": HMEM, "b": HMEM}),
        ({"a": WINDOW, "b": OUTSIDE}, [WINDOW], {"a": CXL, "b": HMEM}, {"a": CXL, "b": HMEM}),
        # A range over the window's end is in the window, and in no region.
        (
            {"a": LOWER, "b": "180000000-19fffffff"},
            [LOWER],
            {"a": CXL, "b": HMEM},
            {"a": HMEM, "b": HMEM},
        ),
        # A region without any range under it; it does not survive when CXL gives up.
        ({}, [LOWER], {"r0": CXL}, {"r0": CXL}),
        ({"a": LOWER}, [LOWER, UPPER], {"a": CXL, "r1": CXL}, {"a": CXL, "r1": CXL}),
        (
            {"a": "150000000-16fffffff"},
            [LOWER, "160000000-18fffffff"],
            {"a": HMEM, "r0": CXL},
            {"a": HMEM},
        ),
    ],
)
def test_who_owns_what_under_both_policies(
    soft_reserved: Mapping[str, str],
    regions: Sequence[str],
    per_range: Mapping[str, Ownership],
    all_or_nothing: Mapping[str, Ownership],
) -> None:
    assert both(state(soft_reserved, *regions)) == (per_range, all_or_nothing)


CONTAINED = state({"a": WINDOW}, WINDOW)


@pytest.mark.parametrize("missing", ["cxl_acpi", "cxl_pci", "cxl_mem"])
def test_without_a_driver_of_cxl_no_region_forms(missing: str) -> None:
    load = [name for name in ALL if name != missing]
    assert owners(CONTAINED, "per_range", load) == {"a": HMEM}


@pytest.mark.parametrize(
    ("argument", "built_in", "owner"),
    [
        ("module_blacklist=cxl_acpi", False, HMEM),
        ("module_blacklist=kmem_other,cxl-mem", False, HMEM),
        ("module_blacklist=cxl_pmem", False, CXL),
        # Built in, a driver is no module, and a module has no initcall at boot.
        ("module_blacklist=cxl_acpi", True, CXL),
        ("initcall_blacklist=cxl_acpi_init", True, HMEM),
        ("initcall_blacklist=other,cxl_mem_driver_init", True, HMEM),
        ("initcall_blacklist=cxl_acpi_init", False, CXL),
        # It hides aliases; who asks for the module by name gets it.
        ("modprobe.blacklist=cxl_acpi", False, CXL),
    ],
)
def test_a_driver_that_the_command_line_denies_makes_no_region(
    argument: str, built_in: bool, owner: Ownership
) -> None:
    options = ("CXL_ACPI", "CXL_PCI", "CXL_MEM", "DEV_DAX_CXL", "DEV_DAX_HMEM", "DEV_DAX_KMEM")
    kernel = {"cmdline": [argument], "config": dict.fromkeys(options, "y" if built_in else "m")}
    scenario = scenario_of({}, load=() if built_in else ALL, kernel=kernel).value
    assert expected_owners(scenario, CONTAINED, "per_range") == {"a": owner}


@pytest.mark.parametrize("option", ["CXL_REGION", "CXL_MEM", "DEV_DAX_CXL"])
def test_a_kernel_built_without_cxl_regions_leaves_all_to_dax_hmem(option: str) -> None:
    assert owners(CONTAINED, "per_range", config={option: "n"}) == {"a": HMEM}
    assert owners(state({}, WINDOW), "per_range", config={option: "n"}) == {}


def test_without_dax_hmem_what_cxl_does_not_own_is_nobodys() -> None:
    load = [name for name in ALL if name != "dax_hmem"]
    where = state({"a": LOWER, "b": UPPER}, LOWER)
    assert owners(where, "per_range", load) == {"a": CXL, "b": NOBODY}
    assert owners(where, "all_or_nothing", load) == {"a": NOBODY, "b": NOBODY}


def test_a_driver_that_is_built_in_need_not_be_loaded() -> None:
    load = ["cxl_pci", "cxl_mem", "dax_cxl"]
    built_in = {"CXL_ACPI": "y", "DEV_DAX_HMEM": "y", "DEV_DAX_KMEM": "y"}
    assert owners(CONTAINED, "per_range", load, built_in) == {"a": CXL}
    assert owners(CONTAINED, "per_range", load, {"CXL_ACPI": "m"}) == {"a": NOBODY}


def test_modules_are_known_by_both_spellings() -> None:
    load = [name.replace("_", "-") for name in ALL]
    assert owners(CONTAINED, "per_range", load) == {"a": CXL}


@pytest.mark.parametrize(
    ("load", "config", "use"),
    [
        (ALL, {}, "system_ram"),
        (("dax_hmem",), {}, "none"),
        (("dax_hmem", "device_dax"), {}, "none"),
        (("dax_hmem", "device_dax"), {"DEV_DAX_KMEM": "n"}, "devdax"),
        (("dax_hmem",), {"DEV_DAX_KMEM": "n", "DEV_DAX": "y"}, "devdax"),
        (("dax_hmem",), {"DEV_DAX_KMEM": "n"}, "none"),
        (("dax_hmem",), {"DEV_DAX_KMEM": "y"}, "system_ram"),
    ],
)
def test_the_drivers_that_are_there_say_what_a_range_is_used_for(
    load: Sequence[str], config: Mapping[str, str], use: str
) -> None:
    (owner,) = owners(state({"a": OUTSIDE}), "per_range", load, config).values()
    assert (owner.owner, owner.use) == ("dax_hmem", use)


# Four units of a window, in which ranges and regions begin and end.
_UNITS = 4
_UNIT = 0x2000_0000


def _spans(most: int, first: int = 0) -> Iterator[tuple[str, ...]]:
    """Every set of at most so many disjoint spans of whole units, ascending."""
    yield ()
    if not most:
        return
    for start, end in itertools.combinations(range(first, _UNITS + 1), 2):
        low = 0x1_1000_0000
        span = f"{low + start * _UNIT:x}-{low + end * _UNIT - 1:x}"
        yield from ((span, *rest) for rest in _spans(most - 1, end))


@pytest.mark.parametrize("policy", ["per_range", "all_or_nothing"])
def test_some_kernel_can_do_what_is_expected_of_every_small_layout(policy: Policy) -> None:
    """The expected owners are dax devices that do not overlap and cover each range exactly once.

    dax_hmem makes a device of a range, dax_cxl one of a region, both as a whole.
    """
    layouts = 0
    for ranges, regions in itertools.product(_spans(3), _spans(3)):
        where = state({f"s{n}": one for n, one in enumerate(ranges)}, *regions)
        expected = owners(where, policy)
        devices = {
            next(
                (r.range for r in where.regions() if r.range.contains(one.range)), one.range
            ) if expected[one.name] == CXL else one.range
            for one in where.judged_ranges()
            if one.name in expected
        }  # fmt: skip
        assert not any(a.overlaps(b) for a, b in itertools.combinations(devices, 2))
        for one in where.soft_reserved:
            assert one.range.minus(devices) == (), (ranges, regions)
        layouts += 1
    assert layouts > 500


def test_a_region_that_also_cuts_another_range_claims_nothing() -> None:
    where = state({"a": "110000000-12fffffff", "b": "140000000-18fffffff"}, LOWER)
    assert both(where) == ({"a": HMEM, "b": HMEM}, {"a": HMEM, "b": HMEM})


def test_a_region_over_ram_that_the_firmware_gave_is_not_for_cxl() -> None:
    where = replace(state({}, WINDOW), firmware_ram=(MemoryRange.parse(WINDOW),))
    assert owners(where, "per_range") == {"r0": Ownership(owner="firmware_ram")}
    assert owners(where, "per_range", config={"CXL_REGION": "n"})["r0"].owner == "firmware_ram"
