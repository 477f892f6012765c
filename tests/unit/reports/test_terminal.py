# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from dataclasses import replace

import pytest
from machines import CXL, HMEM, by_hmem, committed, firmware_state, observed, record, span

from harness.contract.expected import Expected
from harness.contract.judge import judge
from harness.contract.result import (
    Finding,
    OwnedRange,
    Piece,
    RunKernel,
    RunResult,
    StepOutcome,
    Verdict,
)
from harness.reports.terminal import headline, result_lines, summary_line
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.owner import Ownership

SR = span("110000000-18fffffff")
CONFLICT = "kmem dax2.0: mapping0: 0x110000000-0x18fffffff could not reserve region"
PASSED = RunResult(
    scenario="exact_cover",
    request=KernelRequest("debian:7.2"),
    policy="per_range",
    kernel=RunKernel("7.2.13"),
    accel="tcg",
    verdict=Verdict.PASS,
    owners=(OwnedRange("sr0", SR, CXL, (Piece(SR, "dax_cxl", "system_ram", "dax0.0 > kmem"),)),),
    timings={"boot": 3.0, "total": 4.94},
    evidence="/evidence/run",
)


def failed() -> RunResult:
    """What the judge makes of a stranded range, with a complaint about it and one about nothing."""
    seen = observed(
        """
        110000000-18fffffff : CXL Window 0
          110000000-14fffffff : region0
        """,
        by_hmem("dax2.0", "110000000-18fffffff", driver=None),
        dmesg=[record(3, CONFLICT, 3.284964), record(4, "cxl root0: something else", 4.5)],
    )
    state = firmware_state(
        {"sr0": "110000000-18fffffff"}, decoders=[committed("r", "110000000-14fffffff")]
    )
    judgement = judge(seen, state, Expected({"sr0": HMEM}))
    return replace(
        PASSED,
        scenario="partial_region",
        verdict=judgement.verdict,
        owners=judgement.owners,
        findings=judgement.findings,
    )


def test_a_pass_is_a_headline_and_its_owners() -> None:
    assert result_lines(PASSED) == (
        "PASS exact_cover on debian:7.2 (7.2.13), policy per_range, tcg, 4.9 s",
        "    sr0 110000000-18fffffff dax_cxl/system_ram by dax0.0 > kmem",
    )


def test_a_headline_leaves_out_what_is_not_known_yet() -> None:
    fresh = RunResult(scenario="a", request=KernelRequest("image:x"), policy="all_or_nothing")
    assert headline(fresh) == "INCONCLUSIVE a on image:x, policy all_or_nothing"


def test_a_failure_says_rule_range_owners_iomem_and_dmesg() -> None:
    assert result_lines(failed()) == (
        "FAIL partial_region on debian:7.2 (7.2.13), policy per_range, tcg, 4.9 s",
        "  ! sr0 110000000-18fffffff nobody by hmem.2 > dax2.0 without a driver; "
        "iomem: CXL Window 0 > region0",
        "  rule 1: every byte of a Soft Reserved range has exactly one owner",
        "    110000000-18fffffff sr0: expected dax_hmem/system_ram, found nobody (stranded), by "
        "hmem.2 > dax2.0 without a driver; iomem: CXL Window 0 > region0",
        "    /proc/iomem:",
        "      110000000-18fffffff : CXL Window 0",
        "        110000000-14fffffff : region0",
        "    dmesg:",
        f"      [    3.284964] {CONFLICT}",
        "  rule 6: nothing of cxl, dax, hmem or kmem warns or errors",
        "    a warning: cxl root0: something else",
        "    dmesg:",
        "      [    4.500000] cxl root0: something else",
        "  evidence: /evidence/run",
    )


def test_a_complaint_that_is_shown_with_its_range_is_not_shown_again() -> None:
    text = "\n".join(result_lines(failed()))
    assert text.count(CONFLICT) == 1
    assert sum(one.rule == "6" for one in failed().findings) == 2


def test_every_owner_of_a_range_has_a_line_and_the_wrong_ones_a_mark() -> None:
    halves = (
        Piece(span("110000000-14fffffff"), "dax_cxl", "system_ram", "dax0.0 > kmem"),
        Piece(span("150000000-18fffffff"), "nobody", "none", "iomem: nothing"),
    )
    small = span("1-2")
    other = OwnedRange("longer", small, HMEM, (Piece(small, "dax_hmem", "devdax", "x"),))
    lines = result_lines(replace(PASSED, owners=(OwnedRange("sr0", SR, CXL, halves), other)))
    assert lines[1:] == (
        "    sr0    110000000-14fffffff dax_cxl/system_ram by dax0.0 > kmem",
        "  ! sr0    150000000-18fffffff nobody             by iomem: nothing",
        "  ! longer 00000001-00000002   dax_hmem/devdax    by x",
    )


def test_memory_in_another_node_than_the_expected_one_has_a_mark() -> None:
    piece = Piece(SR, "dax_cxl", "system_ram", "dax0.0 > kmem", 1)
    for node, mark in ((1, " "), (2, "!"), (None, " ")):
        expected = Ownership(owner="dax_cxl", use="system_ram", node=node)
        owned = OwnedRange("sr0", SR, expected, (piece,))
        assert result_lines(replace(PASSED, owners=(owned,)))[1][2] == mark


def test_a_run_without_a_judgement_says_why_and_what_to_do() -> None:
    lost = replace(
        PASSED, verdict=Verdict.INCONCLUSIVE, owners=(), reason="QEMU ended:\nboom", hint="look"
    )
    assert result_lines(lost)[1:] == (
        *("  QEMU ended:", "  boom", "  hint: look", "  evidence: /evidence/run"),
    )


def test_a_known_issue_is_told_with_its_reason() -> None:
    lines = result_lines(replace(failed(), known_issue="It is known\nwhy.\n"))
    assert lines[-4:] == (
        *("  known issue:", "    It is known", "    why.", "  evidence: /evidence/run"),
    )


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("use", "  use: a range is used as the loaded drivers can use it"),
        ("step", "  step: every guest step succeeds"),
    ],
)
def test_a_finding_that_is_of_no_numbered_rule_names_its_kind(rule: str, line: str) -> None:
    finding = Finding(rule, "what is wrong")
    lines = result_lines(replace(PASSED, verdict=Verdict.FAIL, findings=(finding,)))
    assert lines[2:4] == (line, "    what is wrong")


def test_a_long_tree_is_cut_and_a_long_message_is_not() -> None:
    tree = tuple(f"{number:08x}-{number:08x} : x" for number in range(40))
    finding = Finding("1", "t", SR, tree, ("first\nsecond",))
    lines = result_lines(replace(PASSED, verdict=Verdict.FAIL, findings=(finding,)))
    assert sum(" : x" in line for line in lines) == 16
    assert lines[-3:-1] == ("      first", "      second")


def test_of_a_long_trace_20_lines_are_shown_and_the_rest_is_counted() -> None:
    trace = "\n".join(f"line {number} of the trace" for number in range(208))
    finding = Finding("6", "a panic", None, (), (trace,))
    lines = result_lines(replace(PASSED, verdict=Verdict.FAIL, findings=(finding,)))
    assert [line for line in lines if "of the trace" in line] == [
        f"      line {number} of the trace" for number in range(20)
    ]
    assert "      and 188 more lines, see /evidence/run/verdict.json" in lines


def test_several_runs_are_counted_by_verdict() -> None:
    lost = replace(PASSED, verdict=Verdict.INCONCLUSIVE)
    assert summary_line([PASSED, failed(), lost, PASSED]) == "2 PASS, 1 FAIL, 1 INCONCLUSIVE"
    assert summary_line([PASSED]) == "1 PASS"


def test_steps_that_held_are_counted_and_each_has_a_line_once_one_did_not() -> None:
    held = StepOutcome("offline sr0", "held")
    one, two = (replace(PASSED, steps=(held,) * count) for count in (1, 2))
    assert result_lines(one)[-1] == "    after 1 more step as well"
    assert result_lines(two)[-1] == "    after 2 more steps as well"
    broken = (held, StepOutcome("online sr0", "broke"), StepOutcome("load kmem", "not_done"))
    lines = result_lines(replace(failed(), steps=broken))
    assert lines[2:5] == (
        "    after offline sr0",
        "  ! after online sr0",
        "    not done: load kmem",
    )


def test_what_a_guest_says_does_not_reach_the_terminal_as_control() -> None:
    evil = "\x1b]0;owned\x07 \x1b[2J\r\x9b31m\tkept\nnext"
    finding = Finding("6", f"an error: {evil}", dmesg=(evil,), iomem=(evil,))
    lost = replace(PASSED, verdict=Verdict.FAIL, findings=(finding,), reason=evil, notes=(evil,))
    text = "\n".join(result_lines(lost))
    assert "kept" in text and "next" in text
    assert not [one for one in text if one not in "\n\t" and not one.isprintable()]


def test_a_new_finding_beside_a_known_one_is_told_apart() -> None:
    line = ("[  1.0] kmem dax2.0: could not reserve",)
    result = replace(
        failed(),
        findings=(
            Finding("1", "sr0: stranded", SR, dmesg=line, known="stranded"),
            Finding("6", "an error: kmem", dmesg=line),
        ),
    )
    lines = "\n".join(result_lines(result))
    assert "sr0: stranded [known: stranded]" in lines
    assert "an error: kmem [new]" in lines
