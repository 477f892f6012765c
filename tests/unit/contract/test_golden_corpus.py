# SPDX-License-Identifier: GPL-2.0-or-later
"""Observations of real kernels, and what the judge makes of them.

Each folder of tests/data/observations has the sections that a guest printed (the kernel's log
without the lines that are about neither memory nor cxl nor dax) and QEMU's own ACPI tables of its
machine. The judge's answers here were checked by hand against /proc/iomem.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
from corpus import CORPUS, layout_from, sections_of
from layouts import layout_of

from harness.contract.expected import Expected
from harness.contract.judge import Judgement, judge
from harness.contract.observation import Observation, ObservationError
from harness.contract.observation_parser import parse_observation
from harness.contract.preflight import early_problems, window_problems
from harness.contract.result import Verdict
from harness.platform.address_map import MachineLayout
from harness.platform.firmware_state import FirmwareState, place_firmware
from harness.platform.target_node import node_ranges, target_node
from harness.scenario.allowed_messages import allowed_messages
from harness.scenario.known_issues import circumstances, load_known_issues
from harness.scenario.scenario_files import Case, load_case

TOO_EARLY = "exact_cover-7.2-too_early"


class Owned(NamedTuple):
    name: str
    range: str
    owner: str
    via: str


@dataclass(frozen=True)
class Known:
    """What the judge says: owners that use a range as system_ram, and the rules that are broken."""

    owners: tuple[Owned, ...]
    rules: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()


BY_CXL = "region0 > dax0.0 > kmem"
COVERED = (Owned("sr0", "110000000-18fffffff", "dax_cxl", BY_CXL),)
LINEAR_CACHE = ("cxl root0: Extended linear cache calculation failed rc:-2",)
HALF_STRANDED = (
    Owned("sr0", "110000000-14fffffff", "dax_cxl", BY_CXL),
    Owned("sr0", "150000000-18fffffff", "nobody", "iomem: CXL Window 0 > Soft Reserved"),
)
THREAD = (
    Owned("sr_node2", "180000000-1bfffffff", "dax_hmem", "hmem.2 > dax2.0 > kmem"),
    Owned("sr_node3", "1c0000000-1ffffffff", "dax_hmem", "hmem.3 > dax3.0 > kmem"),
    Owned("sr_window", "5d0000000-64fffffff", "dax_cxl", BY_CXL),
)
EXPECTED = {
    "exact_cover-6.12": Known(COVERED),
    "exact_cover-6.18": Known(COVERED, ("6",), LINEAR_CACHE),
    "exact_cover-7.2": Known(COVERED),
    "no_soft_reserved-7.2": Known(
        (Owned("region", "110000000-18fffffff", "dax_cxl", BY_CXL),),
    ),
    "partial_region-6.12": Known(HALF_STRANDED, ("3", "1")),
    "partial_region-6.18": Known(HALF_STRANDED, ("3", "1", "6"), LINEAR_CACHE),
    "partial_region-7.2": Known(
        (
            Owned(
                *("sr0", "110000000-18fffffff", "nobody"),
                "hmem.2 > dax2.0 without a driver; iomem: CXL Window 0 > region0",
            ),
        ),
        ("1", "6", "6", "6", "6"),
        (
            "kmem dax2.0: mapping0: 0x110000000-0x18fffffff could not reserve region",
            "kmem dax2.0: probe with driver kmem failed with error -16",
            "cxl_dax_region dax_region0: dax_region resource conflict for "
            "[mem 0x110000000-0x14fffffff]",
            "cxl_dax_region dax_region0: probe with driver cxl_dax_region failed with error -12",
        ),
    ),
    "sr_outside_window-7.2": Known(
        (Owned("sr0", "180000000-1bfffffff", "dax_hmem", "hmem.1 > dax1.0 > kmem"),),
    ),
    "thread_hmat_maxmem-6.18": Known(THREAD, ("6",), LINEAR_CACHE),
    "thread_hmat_maxmem-7.2": Known(THREAD),
}


@dataclass(frozen=True)
class Capture:
    """One folder of the corpus, read."""

    name: str
    case: Case
    layout: MachineLayout
    state: FirmwareState
    seen: Observation


@pytest.fixture(params=sorted(EXPECTED))
def capture(request: pytest.FixtureRequest) -> Capture:
    name = request.param
    case = load_case(name.rpartition("-")[0])
    layout = layout_from(name, case)
    state = place_firmware(case.document, case.profile, layout)
    return Capture(name, case, layout, state, parse_observation(sections_of(name)))


def judged(capture: Capture) -> Judgement:
    scenario = capture.case.scenario
    expected = scenario.expect.owners("per_range")
    allowed = allowed_messages(scenario, capture.case.profile)
    return judge(capture.seen, capture.state, Expected(expected), allowed)


def test_every_capture_has_its_expected_judgement() -> None:
    assert {path.name for path in CORPUS.iterdir()} == {*EXPECTED, TOO_EARLY}


def test_the_judge_finds_the_owners(capture: Capture) -> None:
    found = [
        Owned(owned.name, str(piece.range), piece.owner, piece.via)
        for owned in judged(capture).owners
        for piece in owned.observed
    ]
    assert tuple(found) == EXPECTED[capture.name].owners


def test_the_judge_finds_the_rules_that_are_broken(capture: Capture) -> None:
    expected, judgement = EXPECTED[capture.name], judged(capture)
    assert tuple(one.rule for one in judgement.findings) == expected.rules
    assert judgement.verdict is (Verdict.FAIL if expected.rules else Verdict.PASS)


def test_owned_memory_is_used_as_system_ram_and_nothing_else_is_used(capture: Capture) -> None:
    for owned in judged(capture).owners:
        for piece in owned.observed:
            assert piece.use == ("none" if piece.owner == "nobody" else "system_ram")


def test_the_judge_finds_every_complaint_and_no_other(capture: Capture) -> None:
    complaints = [one for one in judged(capture).findings if one.rule == "6"]
    texts = tuple(one.text.partition(": ")[2] for one in complaints)
    assert texts == EXPECTED[capture.name].complaints


def test_a_finding_about_a_range_shows_what_it_is_about(capture: Capture) -> None:
    for finding in judged(capture).findings:
        if finding.range is not None:
            assert any("CXL Window 0" in line for line in finding.iomem)


def test_a_stranded_range_comes_with_the_messages_that_say_why() -> None:
    case = load_case("partial_region")
    state = place_firmware(case.document, case.profile, layout_from("partial_region-7.2", case))
    seen = parse_observation(sections_of("partial_region-7.2"))
    stranded = judge(seen, state, Expected(case.scenario.expect.owners("per_range"))).findings[0]
    assert len(stranded.dmesg) == 4
    assert "could not reserve region" in stranded.dmesg[0]


def test_every_failure_of_the_corpus_is_a_known_issue(capture: Capture) -> None:
    findings = judged(capture).findings
    case = circumstances(capture.case, capture.layout, "per_range")
    assert None not in load_known_issues().explain(findings, case, capture.seen.release)


def test_the_guest_got_the_machine_that_was_asked_for(capture: Capture) -> None:
    assert early_problems(capture.seen.dmesg, capture.state, capture.layout) == ()
    assert window_problems(capture.seen, capture.state) == ()


def test_a_guest_that_got_another_machine_is_noticed(capture: Capture) -> None:
    other = load_case("thread_hmat_maxmem")
    if capture.case.name == other.name:
        other = load_case("exact_cover")
    layout = layout_of(other.profile)
    state = place_firmware(other.document, other.profile, layout)
    assert early_problems(capture.seen.dmesg, state, layout) != ()


def test_the_made_up_layout_of_a_profile_is_the_real_one(capture: Capture) -> None:
    made_up, real = layout_of(capture.case.profile), capture.layout
    assert made_up.memory == real.memory
    assert made_up.windows == real.windows
    uids = {one.uid for one in made_up.bridges}
    assert uids == {one.uid for one in real.bridges}


def test_a_split_window_is_given_to_linux_as_one() -> None:
    case = load_case("partial_region")
    layout = layout_from("partial_region-7.2", case)
    assert [str(one.range) for one in layout.windows] == ["110000000-18fffffff"]
    assert layout.cedt is not None
    assert layout_from("exact_cover-7.2", load_case("exact_cover")).cedt is None


def test_every_entry_of_iomem_is_read(capture: Capture) -> None:
    text = sections_of(capture.name)["iomem"]
    assert list(capture.seen.iomem.lines()) == text.splitlines()


def test_devices_regions_and_modules_are_read(capture: Capture) -> None:
    seen = capture.seen
    assert {"kmem", "dax_hmem", "cxl_acpi"} <= set(seen.modules)
    assert seen.dax_drivers == ("kmem",)
    for region in seen.regions:
        assert region.committed and region.ways == 1
        assert region.range in {one.range for one in capture.state.regions()}
    listed = {
        device["chardev"]
        for region in seen.daxctl_list or ()
        for device in region.get("devices", ())
    }
    assert {one.name for one in seen.dax} == listed
    assert seen.offline == ()


def test_every_dax_device_has_the_computed_numa_node(capture: Capture) -> None:
    nodes = node_ranges(capture.layout.srat, capture.state.srat, capture.state.windows)
    assert capture.seen.dax
    for device in capture.seen.dax:
        assert device.target_node == target_node(device.ranges[0].start, nodes)


def test_owned_memory_has_the_node_of_its_device(capture: Capture) -> None:
    nodes = {one.target_node for one in capture.seen.dax}
    for owned in judged(capture).owners:
        for piece in owned.observed:
            assert piece.node in ({None} if piece.owner == "nobody" else nodes - {None})


def test_a_guest_that_was_read_while_kmem_was_still_at_work_is_refused() -> None:
    # /proc/iomem is whole and all blocks are online, but the device has no mapping yet: the kernel
    # registers it after the driver's probe has returned.
    sections = sections_of(TOO_EARLY)
    assert "System RAM (kmem)" in sections["iomem"]
    with pytest.raises(ObservationError, match="its mappings differ"):
        parse_observation(sections)
