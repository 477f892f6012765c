# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import re
from dataclasses import replace

import pytest
from machines import (
    CXL,
    HMEM,
    NOBODY,
    by_cxl,
    by_hmem,
    committed,
    firmware_state,
    observed,
    record,
    span,
)

from harness.contract.dmesg import Record, StepMarks, in_phases
from harness.contract.expected import Expected
from harness.contract.judge import Judgement, judge
from harness.contract.observation import DaxDevice, Observation
from harness.contract.result import RULES, Finding, Verdict
from harness.scenario.scenario import ExpectedLine, Ownership

WINDOW = "110000000-18fffffff"
STATE = firmware_state(
    {"sr0": WINDOW},
    decoders=[committed("region", WINDOW)],
    windows=[WINDOW],
    hotplug_room=["200000000-5bfffffff"],
)
GOOD = """
    110000000-18fffffff : CXL Window 0
      110000000-18fffffff : region0
        110000000-18fffffff : dax0.0
          110000000-18fffffff : System RAM (kmem)
"""
BARE = "110000000-18fffffff : CXL Window 0"
BY_CXL = by_cxl("dax0.0", WINDOW)


def good(*dmesg: Record, offline: tuple[str, ...] = ()) -> Observation:
    return observed(GOOD, BY_CXL, dmesg=dmesg, offline=offline)


def judged(seen: Observation, wanted: Ownership = CXL, *lines: ExpectedLine) -> Judgement:
    return judge(seen, STATE, Expected({"sr0": wanted}), [re.compile(one.pattern) for one in lines])


def found(judgement: Judgement) -> list[tuple[str, str]]:
    assert (judgement.verdict is Verdict.FAIL) == bool(judgement.findings)
    assert {one.rule for one in judgement.findings} <= set(RULES)
    return [(one.rule, one.text) for one in judgement.findings]


def only(judgement: Judgement) -> Finding:
    assert judgement.verdict is Verdict.FAIL
    (finding,) = judgement.findings
    return finding


def test_a_guest_that_keeps_the_contract_passes() -> None:
    judgement = judged(good(record(6, "cxl root0: fine"), record(4, "mtrr: not ours")))
    assert judgement.verdict is Verdict.PASS
    assert judgement.findings == ()
    (owned,) = judgement.owners
    assert (owned.name, owned.range, owned.expected) == ("sr0", span(WINDOW), CXL)
    assert [(one.owner, one.use) for one in owned.observed] == [("dax_cxl", "system_ram")]


def test_a_stranded_range_breaks_rule_1() -> None:
    finding = only(judged(observed(BARE)))
    assert finding.rule == "1"
    assert finding.range == span(WINDOW)
    assert finding.text == (
        "sr0: expected dax_cxl/system_ram, found nobody (stranded), by iomem: CXL Window 0"
    )
    assert finding.iomem == (BARE,)


def test_a_stranded_part_breaks_rule_1_for_that_part_only() -> None:
    half = observed(
        """
        110000000-18fffffff : CXL Window 0
          110000000-14fffffff : region0
            110000000-14fffffff : dax0.0
              110000000-14fffffff : System RAM (kmem)
        """,
        by_cxl("dax0.0", "110000000-14fffffff"),
    )
    finding = only(judged(half))
    assert (finding.rule, finding.range) == ("1", span("150000000-18fffffff"))
    owners = [one.owner for one in judged(half).owners[0].observed]
    assert owners == ["dax_cxl", "nobody"]


@pytest.mark.parametrize(
    ("wanted", "device", "rule"),
    [(CXL, by_hmem("dax2.0", WINDOW), "2"), (HMEM, BY_CXL, "3"), (NOBODY, BY_CXL, "3")],
)
def test_the_wrong_owner_breaks_the_rule_about_the_right_one(
    wanted: Ownership, device: DaxDevice, rule: str
) -> None:
    seen = observed(GOOD.replace("dax0.0", device.name), device)
    finding = only(judged(seen, wanted))
    assert finding.rule == rule
    assert finding.text.startswith(f"sr0: expected {wanted}, found dax_")
    assert "stranded" not in finding.text


def test_the_right_owner_with_another_use_is_a_mismatch_of_use() -> None:
    device = by_cxl("dax0.0", WINDOW, driver="device_dax")
    iomem = GOOD.replace("\n          110000000-18fffffff : System RAM (kmem)", "")
    finding = only(judged(observed(iomem, device)))
    assert finding.rule == "use"
    assert "expected dax_cxl/system_ram, found dax_cxl/devdax" in finding.text


def test_a_range_claimed_twice_breaks_rule_1() -> None:
    second = by_hmem("dax2.0", WINDOW, driver=None)
    finding = only(judged(observed(GOOD, BY_CXL, second)))
    assert (finding.rule, finding.range) == ("1", span(WINDOW))
    assert finding.text == "sr0: claimed twice, by region0 > dax0.0 > kmem and hmem.2 > dax2.0"


ROOM = GOOD + "    200000000-23fffffff : dax3.0\n      200000000-23fffffff : System RAM (kmem)\n"


def test_a_dax_device_in_the_hotplug_room_breaks_rule_4() -> None:
    finding = only(judged(observed(ROOM, BY_CXL, by_hmem("dax3.0", "200000000-23fffffff"))))
    assert (finding.rule, finding.range) == ("4", span("200000000-23fffffff"))
    assert finding.text == "dax3.0 of dax_hmem covers memory hotplug room"
    assert any("dax3.0" in line for line in finding.iomem)


def test_a_dax_device_that_reaches_out_of_its_range_breaks_rule_4_for_the_rest() -> None:
    wide = by_cxl("dax0.0", "110000000-19fffffff")
    finding = only(judged(observed(GOOD.replace("18fffffff", "19fffffff"), wide)))
    assert (finding.rule, finding.range) == ("4", span("190000000-19fffffff"))
    assert finding.text == "dax0.0 of dax_cxl covers neither Soft Reserved nor a region"


def test_a_dax_device_over_a_region_without_soft_reserved_breaks_no_rule() -> None:
    state = firmware_state({}, decoders=[committed("region", WINDOW)], windows=[WINDOW])
    assert judge(good(), state, Expected({"region": CXL})).verdict is Verdict.PASS


@pytest.mark.parametrize("device", [by_hmem("dax0.0", WINDOW), None])
def test_a_region_without_soft_reserved_that_dax_cxl_does_not_own_breaks_rule_5(
    device: DaxDevice | None,
) -> None:
    state = firmware_state({}, decoders=[committed("region", WINDOW)], windows=[WINDOW])
    seen = observed(GOOD, device) if device else observed(BARE)
    finding = only(judge(seen, state, Expected({"region": CXL})))
    assert (finding.rule, finding.range) == ("5", span(WINDOW))


def test_what_nothing_is_expected_of_is_not_judged_by_its_owner() -> None:
    judgement = judge(good(), STATE, Expected({"region": CXL}))
    assert [one.name for one in judgement.owners] == ["region"]
    assert judge(good(), STATE, Expected({})).owners == ()


def test_a_complaint_breaks_rule_6_and_shows_its_first_line() -> None:
    trace = record(4, "WARNING: CPU: 0 PID: 1 at x\nmore", 2.5)
    finding = only(judged(good(trace)))
    assert (finding.rule, finding.range) == ("6", None)
    assert finding.text == "a WARN: WARNING: CPU: 0 PID: 1 at x"
    assert finding.dmesg == (str(trace),)


def test_every_complaint_is_a_finding_of_its_own() -> None:
    judgement = judged(good(record(4, "cxl a"), record(6, "cxl b"), record(3, "kmem c")))
    assert found(judgement) == [("6", "a warning: cxl a"), ("6", "an error: kmem c")]


def test_an_expected_line_breaks_no_rule() -> None:
    line = ExpectedLine(pattern=re.compile(r"cxl root\d+: a$"), reason="it is expected here")
    seen = good(record(4, "cxl root0: a"))
    assert judged(seen, CXL, line).verdict is Verdict.PASS
    assert found(judged(good(record(4, "cxl root0: ab")), CXL, line)) != []


def test_memory_blocks_that_are_not_online_are_a_mismatch_of_use() -> None:
    blocks = ("110000000-117ffffff", "118000000-11fffffff", "0-7ffffff")
    finding = only(judged(good(offline=blocks)))
    assert (finding.rule, finding.range) == ("use", span("110000000-11fffffff"))
    assert finding.text.startswith("sr0: expected dax_cxl/system_ram, found dax_cxl/offline")


def test_memory_blocks_elsewhere_or_of_a_range_that_is_no_ram_may_be_offline() -> None:
    assert judged(good(offline=("190000000-197ffffff",))).verdict is Verdict.PASS
    devdax = observed(
        GOOD.replace("\n          110000000-18fffffff : System RAM (kmem)", ""),
        by_cxl("dax0.0", WINDOW, driver="device_dax"),
        offline=("110000000-117ffffff",),
    )
    wanted = Ownership(owner="dax_cxl", use="devdax")
    assert judged(devdax, wanted).verdict is Verdict.PASS


def test_iomem_that_disagrees_with_sysfs_breaks_consistency() -> None:
    use, finding, lost = judged(observed(BARE, BY_CXL)).findings
    assert finding.rule == lost.rule == "consistency"
    assert lost.text == "dax0.0 is of a region that is not committed over it"
    assert lost.kind == "region_uncommitted"
    assert finding.text == "kmem holds dax0.0, but iomem does not show it"
    assert use.rule == "use" and "found dax_cxl, by region0 > dax0.0 > kmem" in use.text


STRANDED = """
    110000000-18fffffff : CXL Window 0
      110000000-14fffffff : region0
"""
ABOUT = [
    "kmem dax2.0: mapping0: 0x110000000-0x18fffffff could not reserve region",
    "kmem dax2.0: probe with driver kmem failed with error -16",
    "cxl_dax_region dax_region0: probe failed",
    "hmem hmem.2: something",
    "cxl region0: something",
    "cxl root0: [mem 0x18fffffff-0x1ffffffff] is odd",
    "cxl root0: [mem 0x100000000-0x110000000] is odd",
]
ELSEWHERE = [
    "kmem dax12.0: probe failed",
    "cxl region01: something",
    "cxl root0: [mem 0x190000000-0x1ffffffff] is odd",
    "cxl root0: [mem 0x100000000-0x10fffffff] is odd",
    "cxl root0: Extended linear cache calculation failed rc:-2",
]


@pytest.mark.parametrize("text", [*ABOUT, *ELSEWHERE])
def test_a_finding_shows_the_complaints_about_its_range(text: str) -> None:
    device = by_hmem("dax2.0", WINDOW, driver=None)
    judgement = judged(observed(STRANDED, device, dmesg=[record(4, text)]), HMEM)
    stranded = judgement.findings[0]
    assert stranded.rule == "1"
    assert bool(stranded.dmesg) == (text in ABOUT)
    # Whether it is shown there or not, it counts.
    assert [one.rule for one in judgement.findings] == ["1", "6"]


def test_a_finding_shows_twelve_complaints_at_most() -> None:
    log = [record(4, f"kmem dax2.0: {number}") for number in range(40)]
    device = by_hmem("dax2.0", WINDOW, driver=None)
    stranded = judged(observed(STRANDED, device, dmesg=log), HMEM).findings[0]
    assert len(stranded.dmesg) == 12
    assert stranded.dmesg[0].endswith("kmem dax2.0: 0")


def test_everything_that_is_wrong_is_found_at_once() -> None:
    seen = observed(
        ROOM, BY_CXL, by_hmem("dax3.0", "200000000-23fffffff"), dmesg=[record(4, "cxl a")]
    )
    rules = [rule for rule, _ in found(judged(seen, HMEM))]
    assert rules == ["3", "4", "6"]


def in_steps(*records: Record) -> Observation:
    marks = StepMarks("secret")
    log = (
        *(record(6, "Linux version 7.2"), record(4, "cxl_acpi ACPI0017:00: early")),
        record(3, "kernel BUG at mm/other.c:1!"),
        *(record(6, marks.line("modprobe kmem")), *records),
    )
    return good(*in_phases(log, marks))


def test_what_was_said_before_the_first_step_does_not_count_and_is_kept() -> None:
    judgement = judge(in_steps(), STATE, Expected({"sr0": CXL}))
    assert judgement.verdict is Verdict.PASS
    assert [str(one) for one in judgement.earlier] == [
        "a warning: cxl_acpi ACPI0017:00: early (during boot)",
        "a BUG: kernel BUG at mm/other.c:1! (during boot)",
    ]


def test_a_trace_that_begins_before_the_first_step_and_ends_in_it_counts() -> None:
    marks = StepMarks("secret")
    log = (
        record(4, "------------[ cut here ]------------"),
        record(4, "WARNING: at mm/other.c:1"),
        record(6, marks.line("modprobe kmem")),
        record(4, "Memory state around the kmem driver: it failed"),
        record(4, "---[ end trace 0000000000000000 ]---"),
    )
    judgement = judge(good(*in_phases(log, marks)), STATE, Expected({"sr0": CXL}))
    assert only(judgement).text == "a WARN: WARNING: at mm/other.c:1 (during boot)"
    before = in_phases((log[2], *log[:2], *log[3:]), marks)
    assert only(judge(good(*before), STATE, Expected({"sr0": CXL}))).phase == "modprobe kmem"
    after = in_phases((*log[:2], *log[3:], log[2]), marks)
    assert judge(good(*after), STATE, Expected({"sr0": CXL})).verdict is Verdict.PASS


def test_with_drivers_built_in_the_boot_counts() -> None:
    judgement = judge(in_steps(), STATE, Expected({"sr0": CXL}), boot_counts=True)
    assert [one.phase for one in judgement.findings] == ["boot", "boot"]
    assert judgement.earlier == ()


def test_a_finding_about_the_log_says_in_which_step() -> None:
    finding = only(judge(in_steps(record(4, "kmem dax0.0: x")), STATE, Expected({"sr0": CXL})))
    assert finding.phase == "modprobe kmem"
    assert finding.text == "a warning: kmem dax0.0: x (during modprobe kmem)"
    (line,) = finding.dmesg
    assert line.endswith("] (modprobe kmem) kmem dax0.0: x")


def test_a_quirk_of_qemu_does_not_count_and_other_lines_do() -> None:
    quirk = [re.compile("kmem dax0.0: x$")]
    for text, verdict in (("kmem dax0.0: x", Verdict.PASS), ("kmem dax0.0: y", Verdict.FAIL)):
        seen = in_steps(record(4, text))
        assert judge(seen, STATE, Expected({"sr0": CXL}), quirk).verdict is verdict


@pytest.mark.parametrize(("found", "words"), [(1, "NUMA node 1"), (None, "no NUMA node")])
def test_memory_in_another_node_than_the_firmware_says(found: int | None, words: str) -> None:
    device = replace(BY_CXL, target_node=found)
    wanted = Ownership(owner="dax_cxl", use="system_ram", node=2)
    finding = only(judged(observed(GOOD, device), wanted))
    assert finding.rule == "node"
    assert finding.text.startswith(f"sr0: expected NUMA node 2, found {words}, by region0")
    assert not judged(observed(GOOD, replace(BY_CXL, target_node=2)), wanted).findings


def test_findings_have_typed_fields_beside_their_text() -> None:
    in_node_2 = Ownership(owner="dax_cxl", use="system_ram", node=2)
    unused = Ownership(owner="dax_cxl")
    cases = [
        (judged(observed(BARE)), "owner", CXL, Ownership(owner="nobody")),
        (judged(good(offline=(WINDOW,))), "use", CXL, Ownership(owner="dax_cxl", use="offline")),
        (judged(good(), unused), "use", unused, CXL),
        (
            judged(observed(GOOD, replace(BY_CXL, target_node=1)), in_node_2),
            *("node", in_node_2, Ownership(owner="dax_cxl", use="system_ram", node=1)),
        ),
    ]
    for judgement, kind, expected, seen in cases:
        finding = only(judgement)
        assert (finding.kind, finding.subject) == (kind, "sr0")
        assert (finding.expected, finding.observed) == (expected, seen)
    warned = only(judged(good(record(4, "kmem dax0.0: x"))))
    assert (warned.kind, warned.subject, warned.expected) == ("warning", "kmem dax0.0: x", None)
