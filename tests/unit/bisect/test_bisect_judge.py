# SPDX-License-Identifier: GPL-2.0-or-later
"""The outcome of a commit from its runs."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import span

from harness.bisect.judge import Flakiness, Judged, Outcome, judge_runs, together
from harness.contract.failure_signature import failures_of
from harness.contract.result import Finding, OwnedRange, RunResult, Verdict
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario import Ownership

GOOD, BAD, UNKNOWN = Outcome.GOOD, Outcome.BAD, Outcome.UNKNOWN
SR0 = OwnedRange("sr0", span("10000000-1fffffff"), Ownership(owner="dax_hmem"), ())
SR1 = OwnedRange("sr1", span("20000000-2fffffff"), Ownership(owner="dax_hmem"), ())


def run(verdict: Verdict, *findings: Finding, reason: str = "", known: str = "") -> RunResult:
    return RunResult(
        scenario="s",
        request=KernelRequest("k"),
        policy="per_range",
        verdict=verdict,
        owners=(SR0, SR1),
        findings=findings,
        reason=reason,
        known_issue=known or None,
        evidence="/there",
    )


STRANDED = Finding("1", "stranded", span("10000000-1fffffff"))
WARNING = Finding("6", "a WARN at 3.14")
RUNS = {
    "P": run(Verdict.PASS),
    "F": run(Verdict.FAIL, STRANDED),
    "W": run(Verdict.FAIL, WARNING),
    "B": run(Verdict.FAIL, WARNING, STRANDED),
    "K": run(Verdict.FAIL, STRANDED, known="because"),
    "?": run(Verdict.INCONCLUSIVE, reason="gone"),
}


def judged(
    letters: str, flakiness: Flakiness, bad_end: tuple[str, ...] | None = None
) -> Judged | None:
    return judge_runs("s", [RUNS[letter] for letter in letters], flakiness, bad_end)


@pytest.mark.parametrize(
    ("letters", "runs", "need", "outcome"),
    [
        ("F", 1, 1, BAD),
        ("K", 1, 1, BAD),  # a known issue is a failure
        ("P", 1, 1, GOOD),
        ("?", 1, 1, UNKNOWN),
        ("P", 2, 1, None),
        ("FFF???????", 10, 3, BAD),
        ("FFPPPPPPPP", 10, 3, GOOD),
        ("FF?PPPPPPP", 10, 3, UNKNOWN),
        ("F?PPPPPPPP", 10, 3, GOOD),
        ("FFPPPPPPP", 10, 3, None),
        ("PPPPPPPP", 10, 3, GOOD),  # two runs cannot make three failures
        ("FFF", 8, 3, BAD),
    ],
)
def test_m_of_n(letters: str, runs: int, need: int, outcome: Outcome | None) -> None:
    result = judged(letters, Flakiness(runs, need))
    assert (result and result.outcome) is outcome


@given(st.text("PF?", min_size=1, max_size=8), st.data())
def test_an_early_outcome_is_that_of_all_runs(letters: str, data: st.DataObject) -> None:
    flakiness = Flakiness(len(letters), data.draw(st.integers(1, len(letters))))
    whole = judged(letters, flakiness)
    assert whole is not None
    for made in range(1, len(letters)):
        early = judged(letters[:made], flakiness)
        assert early is None or early.outcome is whole.outcome


def test_failures_are_named_by_rule_and_ranges() -> None:
    both = Finding("3", "whole", span("18000000-27ffffff"))
    elsewhere = Finding("4", "hotplug", span("90000000-9fffffff"))
    step = Finding("step", "modprobe failed")
    result = run(Verdict.FAIL, STRANDED, STRANDED, both, elsewhere, step, WARNING)
    assert failures_of(result) == (
        *("rule 1 sr0", "rule 3 sr0 sr1", "rule 4 90000000-9fffffff", "step", "rule 6"),
    )
    edge = Finding("1", "x", span("20000000-20000000"))
    assert failures_of(run(Verdict.FAIL, edge)) == ("rule 1 sr1",)


@pytest.mark.parametrize(
    ("letters", "need", "bad_end", "other", "outcome", "strict"),
    [
        ("W", 1, ("rule 1 sr0",), True, BAD, UNKNOWN),
        ("F", 1, ("rule 1 sr0",), False, BAD, BAD),
        ("FW", 1, ("rule 1 sr0",), False, BAD, BAD),
        ("B", 1, ("rule 1 sr0",), False, BAD, BAD),
        ("P", 1, ("rule 1 sr0",), False, GOOD, GOOD),
        ("FW", 2, ("rule 1 sr0",), False, BAD, UNKNOWN),  # the other may hide a second one
        ("W", 1, None, False, BAD, BAD),  # the bad end itself
        # A warning counts only where the bad end has no failure with a range.
        ("W", 1, ("rule 1 sr0", "rule 6"), True, BAD, UNKNOWN),
        ("W", 1, ("use sr0", "rule 6"), True, BAD, UNKNOWN),
        ("W", 1, ("rule 6",), False, BAD, BAD),
        ("W", 1, ("step", "rule 6"), False, BAD, BAD),
    ],
)
def test_another_failure_than_at_the_bad_end(
    letters: str,
    need: int,
    bad_end: tuple[str, ...] | None,
    other: bool,
    outcome: Outcome,
    strict: Outcome,
) -> None:
    for same_failure, expected in ((False, outcome), (True, strict)):
        result = judged(letters, Flakiness(len(letters), need, same_failure), bad_end)
        assert result is not None
        assert (result.outcome, result.other_failure) == (expected, other)


def test_the_reason_of_a_lost_run_is_kept() -> None:
    assert judged("?", Flakiness()) == Judged(
        "s", UNKNOWN, ("INCONCLUSIVE",), reason="gone", evidence=("/there",)
    )


def test_several_scenarios_together() -> None:
    for outcomes in product((GOOD, BAD, UNKNOWN), repeat=2):
        result = together([Judged(str(number), o, ("X",)) for number, o in enumerate(outcomes)])
        assert result is (BAD if BAD in outcomes else UNKNOWN if UNKNOWN in outcomes else GOOD)
