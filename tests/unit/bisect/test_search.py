# SPDX-License-Identifier: GPL-2.0-or-later
"""What a commit is, and which one comes next."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import span

from harness.bisect.search import (
    Choice,
    Commit,
    Judged,
    Outcome,
    Step,
    choose,
    decide,
    differing,
    judge_runs,
    steps_left,
    together,
)
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
PASS = run(Verdict.PASS)
FAIL = run(Verdict.FAIL, STRANDED)
OTHER = run(Verdict.FAIL, WARNING)
LOST = run(Verdict.INCONCLUSIVE, reason="gone")


@pytest.mark.parametrize(
    ("bad", "unjudged", "left", "need", "outcome"),
    [
        (1, 0, 0, 1, BAD),
        (0, 0, 0, 1, GOOD),
        (0, 1, 0, 1, UNKNOWN),
        (0, 0, 1, 1, None),
        (3, 7, 0, 3, BAD),
        (2, 0, 0, 3, GOOD),
        (2, 1, 0, 3, UNKNOWN),
        (1, 1, 0, 3, GOOD),
        (2, 0, 1, 3, None),
        (0, 0, 2, 3, GOOD),  # two runs cannot make three failures
        (3, 0, 5, 3, BAD),
    ],
)
def test_m_of_n(bad: int, unjudged: int, left: int, need: int, outcome: Outcome | None) -> None:
    assert decide(bad, unjudged, left, need) is outcome


@given(st.lists(st.sampled_from([PASS, FAIL, LOST]), min_size=1, max_size=8), st.data())
def test_an_early_decision_is_the_one_of_all_runs(
    results: list[RunResult], data: st.DataObject
) -> None:
    """Who stops early says what all runs would have said."""
    need = data.draw(st.integers(1, len(results)))
    whole = judge_runs("s", results, 0, need)
    assert whole is not None
    for made in range(1, len(results)):
        early = judge_runs("s", results[:made], len(results) - made, need)
        assert early is None or early.outcome is whole.outcome


def test_a_known_issue_is_a_failure() -> None:
    judged = judge_runs("s", [run(Verdict.FAIL, STRANDED, known="because")], 0, 1)
    assert judged is not None and judged.outcome is BAD


def test_what_broke() -> None:
    both = Finding("3", "whole", span("18000000-27ffffff"))
    elsewhere = Finding("4", "hotplug", span("90000000-9fffffff"))
    step = Finding("step", "modprobe failed")
    result = run(Verdict.FAIL, STRANDED, STRANDED, both, elsewhere, step, WARNING)
    assert failures_of(result) == (
        *("rule 1 sr0", "rule 3 sr0 sr1", "rule 4 90000000-9fffffff", "step", "rule 6"),
    )
    edge = Finding("1", "x", span("20000000-20000000"))
    assert failures_of(run(Verdict.FAIL, edge)) == ("rule 1 sr1",)


def test_another_failure_than_the_bad_ends() -> None:
    same = ("rule 1 sr0",)
    for results, strict, outcome, other in (
        ([OTHER], False, BAD, True),
        ([OTHER], True, UNKNOWN, True),
        ([FAIL], True, BAD, False),
        ([FAIL, OTHER], True, BAD, False),
        ([run(Verdict.FAIL, WARNING, STRANDED)], True, BAD, False),
        ([PASS], True, GOOD, False),
    ):
        judged = judge_runs("s", results, 0, 1, same, strict)
        assert judged is not None
        assert (judged.outcome, judged.other_failure) == (outcome, other)
    # Where two of the same are needed, another one may be hiding the second.
    judged = judge_runs("s", [FAIL, OTHER], 0, 2, same, strict=True)
    assert judged is not None and judged.outcome is UNKNOWN
    judged = judge_runs("s", [OTHER], 0, 1, None, strict=True)
    assert judged is not None and judged.outcome is BAD, "the bad end is what it is"


def test_a_warning_alone_is_another_failure_than_a_range_with_a_warning() -> None:
    for same_as, other in (
        (("rule 1 sr0", "rule 6"), True),
        (("rule 6",), False),
        (("step", "rule 6"), False),
        (("use sr0", "rule 6"), True),
    ):
        judged = judge_runs("s", [OTHER], 0, 1, same_as)
        assert judged is not None and judged.other_failure is other


def test_a_lost_run_says_why() -> None:
    judged = judge_runs("s", [LOST], 0, 1)
    assert judged == Judged("s", UNKNOWN, ("INCONCLUSIVE",), reason="gone", evidence=("/there",))


def one(name: str, outcome: Outcome) -> Judged:
    return Judged(name, outcome, ("X",))


def test_several_scenarios_together() -> None:
    for outcomes in product((GOOD, BAD, UNKNOWN), repeat=2):
        said = together([one(str(number), o) for number, o in enumerate(outcomes)])
        assert said is (BAD if BAD in outcomes else UNKNOWN if UNKNOWN in outcomes else GOOD)


def step(**outcomes: Outcome) -> Step:
    judged = tuple(one(name, outcome) for name, outcome in outcomes.items())
    return Step(Commit("c", "c", "s"), "", together(judged), judged, 1.0, 2.0, 3.25)


def test_scenarios_that_differ() -> None:
    good = step(a=GOOD, b=BAD, c=GOOD, d=UNKNOWN, e=BAD)
    bad = step(a=BAD, b=BAD, c=GOOD, d=BAD, e=GOOD)
    assert differing(good, bad) == ("a",)


def test_a_step_survives_json() -> None:
    before = step(a=GOOD, b=UNKNOWN)
    assert msgspec.json.decode(msgspec.json.encode(before), type=Step) == before
    assert before.overhead == 0.25


def linear(first: int, last: int) -> list[str]:
    """The order of git for a straight history: the middle in front, the newest behind."""
    inner = sorted(range(first, last), key=lambda one: -min(one - first + 1, last - one))
    return [*map(str, inner), str(last)]


def test_the_end() -> None:
    assert choose(["9"], []) == Choice(None, ("9",))
    assert choose(["8", "9"], ["8"]) == Choice(None, ("8", "9"))
    assert choose(["8", "9"], []) == Choice("8", ("8", "9"))


@given(st.integers(1, 200), st.data())
def test_a_straight_history_is_bisected(count: int, data: st.DataObject) -> None:
    """The first bad commit is found, in log2 steps where every commit can be judged."""
    first_bad = data.draw(st.integers(1, count))
    broken = data.draw(st.sets(st.integers(1, count - 1), max_size=12)) if count > 1 else set()
    old, new, unknown, steps = 0, count, list[str](), 0
    while (choice := choose(linear(old + 1, new), unknown)).next is not None:
        here = int(choice.next)
        assert old < here < new and choice.next not in unknown
        steps += 1
        if here in broken:
            unknown.append(choice.next)
        elif here >= first_bad:
            new = here
        else:
            old = here
    left = {int(name) for name in choice.left}
    assert first_bad in left
    assert left - {new} <= broken
    if not broken:
        assert left == {first_bad}
        assert steps <= steps_left(count)


def test_the_number_of_steps() -> None:
    assert [steps_left(count) for count in (1, 2, 3, 4, 63, 64, 65)] == [0, 1, 2, 2, 6, 6, 7]


def test_commits_next_to_one_that_does_not_build_are_not_tried_one_by_one() -> None:
    order = linear(1, 100)
    tried = choose(order, order[:1]).next
    assert tried is not None and abs(int(tried) - int(order[0])) > 3
