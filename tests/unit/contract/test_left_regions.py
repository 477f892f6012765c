# SPDX-License-Identifier: GPL-2.0-or-later
"""Rule 3 under all_or_nothing: no region is left where CXL is given up."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from machines import (
    HMEM,
    by_cxl,
    by_hmem,
    committed,
    firmware_state,
    observed,
    record,
    scenario_of,
    span,
)

from harness.contract.expected import Expected
from harness.contract.judge import judge
from harness.contract.observation import CxlRegion, DaxDevice
from harness.contract.oracle import leaves_no_region
from harness.contract.post_boot_oracle import no_region_after_steps
from harness.contract.result import Verdict
from harness.scenario.scenario import Policy

ALL = ("cxl_acpi", "cxl_pci", "cxl_mem", "dax_hmem", "kmem", "dax_cxl")
# As SR1 to SR3 and R1 to R3 of the discussion of version 4: R1 is shorter than SR1.
SOFT_RESERVED = {
    "sr1": "110000000-14fffffff",
    "sr2": "150000000-18fffffff",
    "sr3": "190000000-1cfffffff",
}
SHORT = "110000000-13fffffff"
STATE = firmware_state(
    SOFT_RESERVED,
    decoders=[
        committed("r1", SHORT),
        committed("r2", SOFT_RESERVED["sr2"]),
        committed("r3", SOFT_RESERVED["sr3"]),
    ],
    windows=["110000000-1cfffffff"],
)
DEVICES = [by_hmem(f"dax{number}.0", one) for number, one in enumerate(SOFT_RESERVED.values())]
GONE = """
    110000000-1cfffffff : CXL Window 0
      110000000-14fffffff : dax0.0
        110000000-14fffffff : System RAM (kmem)
      150000000-18fffffff : dax1.0
        150000000-18fffffff : System RAM (kmem)
      190000000-1cfffffff : dax2.0
        190000000-1cfffffff : System RAM (kmem)
"""
LEFT = """
    110000000-1cfffffff : CXL Window 0
      110000000-14fffffff : dax0.0
        110000000-14fffffff : System RAM (kmem)
      150000000-18fffffff : region1
        150000000-18fffffff : dax1.0
          150000000-18fffffff : System RAM (kmem)
      190000000-1cfffffff : region2
        190000000-1cfffffff : dax2.0
          190000000-1cfffffff : System RAM (kmem)
"""
REGIONS = [
    CxlRegion("region1", span(SOFT_RESERVED["sr2"]), True, 1, "cxl_region"),
    CxlRegion("region2", span(SOFT_RESERVED["sr3"]), True, 1, "cxl_region"),
]
OWNERS = dict.fromkeys(SOFT_RESERVED, HMEM)


def left_over(
    iomem: str, regions: Sequence[CxlRegion], devices: Sequence[DaxDevice] = DEVICES
) -> list[tuple[str, str, str]]:
    seen = observed(iomem, *devices, regions=regions)
    judgement = judge(seen, STATE, Expected(OWNERS, no_region=True))
    assert (judgement.verdict is Verdict.FAIL) == bool(judgement.findings)
    return [(one.rule, str(one.range), one.text) for one in judgement.findings]


def test_a_kernel_that_tears_all_regions_down_keeps_rule_3() -> None:
    assert left_over(GONE, []) == []


def test_each_region_that_is_left_breaks_rule_3_though_dax_hmem_owns_all() -> None:
    said = "is left, but CXL must be given up, with every region"
    assert left_over(LEFT, REGIONS) == [
        ("3", SOFT_RESERVED["sr2"], f"region1 {said}"),
        ("3", SOFT_RESERVED["sr3"], f"region2 {said}"),
    ]


def test_a_left_region_is_shown_with_its_lines() -> None:
    log = [record(4, "cxl region1: cannot be torn down")]
    seen = observed(LEFT, *DEVICES, regions=REGIONS, dmesg=log)
    first, second, complaint = judge(seen, STATE, Expected(OWNERS, no_region=True)).findings
    assert first.iomem[:2] == (
        "110000000-1cfffffff : CXL Window 0",
        "  150000000-18fffffff : region1",
    )
    assert [one.rule for one in (first, second, complaint)] == ["3", "3", "6"]
    assert len(first.dmesg) == 1 and second.dmesg == ()


@pytest.mark.parametrize("where", ["iomem", "sysfs", "sysfs, without a range"])
def test_a_region_that_only_one_of_iomem_and_sysfs_shows_is_left_too(where: str) -> None:
    iomem = LEFT if where == "iomem" else GONE
    empty = CxlRegion("region1", None, False, 0, None)
    regions = {"iomem": [], "sysfs": REGIONS, "sysfs, without a range": [empty]}[where]
    names = [text.split()[0] for rule, _, text in left_over(iomem, regions) if rule == "3"]
    assert names == (["region1"] if "without" in where else ["region1", "region2"])


def test_without_regions_a_dax_device_must_stay_in_soft_reserved_ranges() -> None:
    ranges = {"a": "110000000-11fffffff"}
    region = committed("r0", "120000000-12fffffff")
    state = firmware_state(ranges, decoders=[region], windows=["110000000-13fffffff"])
    devices = (by_hmem("dax0.0", ranges["a"]), by_cxl("dax1.0", "120000000-12fffffff"))
    iomem = """
        110000000-11fffffff : dax0.0
          110000000-11fffffff : System RAM (kmem)
        120000000-12fffffff : region0
          120000000-12fffffff : dax1.0
            120000000-12fffffff : System RAM (kmem)
    """
    rules = [
        [
            (one.rule, str(one.range))
            for one in judge(
                observed(iomem, *devices), state, Expected({"a": HMEM}, no_region)
            ).findings
            if one.rule != "3"
        ]
        for no_region in (True, False)
    ]
    assert rules == [[("4", "120000000-12fffffff")], []]


@pytest.mark.parametrize(
    ("policy", "load", "gone"),
    [
        ("all_or_nothing", ALL, True),
        ("per_range", ALL, False),
        # Nobody is there who would tear them down.
        ("all_or_nothing", tuple(name for name in ALL if name != "dax_hmem"), False),
    ],
)
def test_when_no_region_may_be_left(policy: Policy, load: Sequence[str], gone: bool) -> None:
    assert leaves_no_region(scenario_of({}, load=load).value, STATE, policy) is gone


def test_where_regions_contain_every_range_in_windows_they_stay() -> None:
    outside = {"sr0": SHORT, "sr1": "200000000-20fffffff"}
    state = firmware_state(outside, decoders=[committed("r1", SHORT)], windows=[SHORT])
    scenario = scenario_of({}).value
    assert not leaves_no_region(scenario, state, "all_or_nothing")
    # A range that dax_hmem owns only because there is no dax_cxl is contained as well.
    without = scenario_of({}, config={"DEV_DAX_CXL": "n"}).value
    assert not leaves_no_region(without, state, "all_or_nothing")


def test_after_a_step_regions_are_gone_from_when_dax_hmem_came() -> None:
    steps = [{"reload": ["kmem"]}, {"load": "dax_hmem"}, {"unload": "dax_hmem"}]
    load = [name for name in ALL if name != "dax_hmem"]
    scenario = scenario_of({}, guest={"load": load, "then": steps}).value
    assert no_region_after_steps(scenario, STATE, "all_or_nothing") == (False, True, True)
    assert no_region_after_steps(scenario, STATE, "per_range") == (False, False, False)
