# SPDX-License-Identifier: GPL-2.0-or-later
"""One result for several guests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.contract.result import Finding, OwnedRange, Piece, RunResult, Verdict
from harness.platform.memory_range import MemoryRange
from harness.reports.terminal import result_lines
from harness.runs.combine import combine
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.module_load import Load
from harness.scenario.scenario import OwnerName, Ownership

SR = MemoryRange(0x1000, 0x1FFF)
PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE


def guest(
    verdict: Verdict, owner: OwnerName | None, *modules: str, known: str | None = None
) -> RunResult:
    expected = Ownership(owner="dax_cxl", use="system_ram")
    owners: tuple[OwnedRange, ...] = ()
    if owner is not None:
        owners = (OwnedRange("sr0", SR, expected, (Piece(SR, owner, "system_ram", "x"),)),)
    return RunResult(
        scenario="exact_cover",
        request=KernelRequest("debian:7.2"),
        policy="per_range",
        verdict=verdict,
        owners=owners,
        findings=(Finding("2", "sr0: wrong owner", SR),) if verdict is FAIL else (),
        reason="lost" if verdict is INCONCLUSIVE else "",
        load=Load("in_order", modules),
        evidence=f"/evidence/{'-'.join(modules)}",
        known_issue=known,
        timings={"boot": 1.0, "total": 2.0},
    )


def test_one_guest_is_its_own_result() -> None:
    only = guest(PASS, "dax_cxl", "a")
    assert combine([only], 9.0) is only


def test_all_pass() -> None:
    both = combine([guest(PASS, "dax_cxl", "a", "b"), guest(PASS, "dax_cxl", "b", "a")], 9.0)
    assert both.verdict is PASS
    assert (both.findings, both.reason) == ((), "")
    assert both.timings["total"] == 9.0
    assert [str(one.load) for one in both.attempts] == ["a, b", "b, a"]
    assert [one["verdict"] for one in both.as_json()["attempts"]] == ["PASS", "PASS"]


def test_guests_that_were_run_again_are_counted() -> None:
    again = replace(guest(PASS, "dax_cxl", "a"), retried=2)
    assert combine([again, guest(PASS, "dax_cxl", "b"), again], 9.0).retried == 4


def test_the_first_order_that_breaks_the_contract_is_named() -> None:
    result = combine(
        [
            guest(PASS, "dax_cxl", "a", "b", "c"),
            guest(INCONCLUSIVE, None, "a", "c", "b"),
            guest(FAIL, "dax_hmem", "b", "a", "c"),
            guest(FAIL, "nobody", "c", "a", "b"),
        ],
        9.0,
    )
    assert result.verdict is FAIL
    assert str(result.load) == "b, a, c"
    assert result.evidence == "/evidence/b-a-c"
    assert result.reason == "2 of 4 guests broke the contract, the first by loading b, a, c"
    assert [one.rule for one in result.findings] == ["2", "7"]
    seven = result.findings[-1].text
    assert seven.startswith("3 guests ended differently: ")
    assert "1 with sr0 00001000-00001fff dax_cxl/system_ram, the first by loading a, b, c" in seven
    assert "dax_hmem/system_ram, the first by loading b, a, c" in seven
    text = "\n".join(result_lines(result))
    assert "4 guests" in text
    assert "INCONCLUSIVE a, c, b: lost" in text
    assert "FAIL c, a, b: sr0: wrong owner" in text


def test_guests_that_all_fail_alike_did_not_end_differently() -> None:
    result = combine([guest(FAIL, "nobody", "a"), guest(FAIL, "nobody", "a")], 9.0)
    assert [one.rule for one in result.findings] == ["2"]


def test_a_guest_that_was_not_judged_is_no_pass() -> None:
    result = combine([guest(PASS, "dax_cxl", "a"), guest(INCONCLUSIVE, None, "b")], 9.0)
    assert result.verdict is INCONCLUSIVE
    assert result.reason == "1 of 2 guests were not judged: lost"


@pytest.mark.parametrize(("second", "known"), [("because", "because"), (None, None)])
def test_a_failure_is_known_when_each_is(second: str | None, known: str | None) -> None:
    result = combine(
        [
            guest(FAIL, "nobody", "a", known="because"),
            guest(FAIL, "dax_hmem", "b", known=second),
            guest(PASS, "dax_cxl", "c"),
        ],
        9.0,
    )
    assert result.known_issue == known


def test_a_new_failure_is_shown_before_a_known_one() -> None:
    known = guest(FAIL, "dax_hmem", "a", "b", known="as always")
    new = guest(FAIL, "nobody", "b", "a")
    both = combine([known, new], 9.0)
    assert (both.load, both.known_issue) == (new.load, None)
    assert both.evidence == new.evidence


def rule_7(*results: RunResult) -> list[str | None]:
    """The known issue of each finding of rule 7."""
    return [one.known for one in combine(results, 9.0).findings if one.rule == "7"]


def failure(owner: OwnerName, issue: str | None) -> RunResult:
    result = guest(FAIL, owner, owner, known="because" if issue else None)
    return replace(result, findings=tuple(replace(f, known=issue) for f in result.findings))


def test_different_outcomes_are_known_when_only_known_failures_differ() -> None:
    passed, race = guest(PASS, "dax_cxl", "a"), failure("nobody", "race")
    # A new failure that leaves the owners as they are, such as a kernel message.
    message = failure("dax_cxl", None)
    assert rule_7(passed, race) == ["race"]
    assert rule_7(passed, race, message) == ["race"]
    assert rule_7(message, race, race) == ["race"]
    # Two outcomes that the contract allows are not a failure of their own.
    assert rule_7(passed, guest(PASS, "dax_hmem", "b"), race) == ["race"]
    assert rule_7(passed, race, failure("dax_hmem", None)) == [None]
    assert rule_7(passed, failure("nobody", None)) == [None]
    assert rule_7(failure("nobody", "race"), failure("dax_hmem", "other")) == ["race"]
