# SPDX-License-Identifier: GPL-2.0-or-later
"""The change of a matrix entry since the nights before, and what its outcome is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.contract.result import read_result
from harness.matrix.plan import Combination
from harness.nightly.diff import Change, Earlier, EntryKey, Row, counts_of, key_of
from harness.nightly.outcome import Outcome, outcome_at_end, outcome_of

BRANCH = "build:/state/trees/x@0123456789"
KEY = key_of(Combination(scenario="exact_cover", kernel=BRANCH), BRANCH)
PASS = Outcome("PASS")
FAIL = Outcome("FAIL", failures=("rule 1 sr0",))
MORE = Outcome("FAIL", failures=("rule 1 sr0", "rule 6"))
KNOWN = Outcome("FAIL", known="a race", failures=("rule 1 sr0",))
BROKEN = Outcome("UNBUILDABLE", reason="hmem.c:1: error")
LOST = Outcome("INCONCLUSIVE", reason="the guest was lost")
SKIPPED = Outcome("SKIPPED")


def row(now: Outcome, *before: Outcome, key: EntryKey = KEY) -> Row:
    """An entry in this night, after these outcomes in the nights before, the newest last."""
    earlier = [Earlier(n, f"commit{n}", outcome) for n, outcome in enumerate(before, start=1)]
    judged = [one for one in earlier if one.outcome.passed or one.outcome.failed]
    counted = [one for one in earlier if one in judged or one.outcome.unbuildable]
    return Row(key, now, judged[-1] if judged else None, counted[-1] if counted else None)


@pytest.mark.parametrize(
    ("now", "before", "change"),
    [
        (PASS, (), Change.PASSES),
        (PASS, (PASS,), Change.PASSES),
        (PASS, (FAIL,), Change.FIXED),
        (PASS, (BROKEN,), Change.FIXED),
        (PASS, (KNOWN,), Change.FIXED),
        (FAIL, (), Change.NEW_FAILURE),
        (FAIL, (LOST, SKIPPED), Change.NEW_FAILURE),
        (FAIL, (PASS,), Change.REGRESSION),
        (FAIL, (PASS, LOST), Change.REGRESSION),
        (FAIL, (PASS, BROKEN), Change.REGRESSION),
        (FAIL, (KNOWN,), Change.REGRESSION),
        (FAIL, (PASS, FAIL), Change.STILL_FAILS),
        (MORE, (FAIL,), Change.REGRESSION),
        (FAIL, (MORE,), Change.STILL_FAILS),
        (KNOWN, (PASS,), Change.KNOWN),
        (BROKEN, (), Change.NEW_FAILURE),
        (BROKEN, (PASS,), Change.REGRESSION),
        (BROKEN, (FAIL, LOST), Change.REGRESSION),
        (BROKEN, (PASS, BROKEN), Change.STILL_FAILS),
        (LOST, (PASS,), Change.NOT_JUDGED),
        (SKIPPED, (), Change.SKIPPED),
        (SKIPPED, (LOST, BROKEN, SKIPPED), Change.SKIPPED),
        (SKIPPED, (PASS,), Change.LEFT),
        (SKIPPED, (FAIL, SKIPPED, LOST), Change.LEFT),
    ],
)
def test_change(now: Outcome, before: tuple[Outcome, ...], change: Change) -> None:
    assert row(now, *before).change is change


@pytest.mark.parametrize(
    ("now", "before", "night"),
    [
        (FAIL, (PASS, PASS), 2),
        (FAIL, (PASS, LOST, BROKEN), 1),
        (FAIL, (FAIL,), None),
        (MORE, (PASS, FAIL), None),
        (FAIL, (KNOWN,), None),
        (BROKEN, (PASS,), None),
        (KNOWN, (PASS,), None),
        (PASS, (FAIL,), None),
    ],
)
def test_the_good_end_of_a_bisection(
    now: Outcome, before: tuple[Outcome, ...], night: int | None
) -> None:
    good = row(now, *before).good
    assert (good.night if good else None) == night


def test_only_kernels_of_the_branch_are_bisected() -> None:
    prebuilt = row(FAIL, PASS, key=replace(KEY, kernel="debian:7.2"))
    assert (prebuilt.change, prebuilt.good) == (Change.REGRESSION, None)


def test_a_key_does_not_depend_on_the_commit() -> None:
    entry = Combination(
        scenario="/home/me/mine.yaml",
        kernel=BRANCH,
        configs=("debug", "mixed"),
        series="patches/x",
        qemu="/q",
    )
    key = EntryKey("/home/me/mine.yaml", "branch", "debug,mixed", "patches/x", "per_range", "/q")
    assert key_of(entry, BRANCH) == key
    assert str(key) == (
        "mine.yaml on branch --config debug,mixed --series patches/x per_range qemu=/q"
    )
    assert str(KEY) == "exact_cover on branch per_range"
    assert key_of(entry, "build:/elsewhere@1").kernel == BRANCH


def test_counts() -> None:
    rows = (row(PASS), row(FAIL, PASS), row(PASS, PASS))
    assert counts_of(rows) == ((Change.REGRESSION, 1), (Change.PASSES, 2))


def failing_result() -> dict[str, Any]:
    return {
        "scenario": "exact_cover",
        "request": {"spec": BRANCH},
        "policy": "per_range",
        "verdict": "FAIL",
        "known_issue": None,
        "evidence": "/e",
        "owners": [
            {"name": "sr0", "range": "100-1ff", "expected": {"owner": "dax_cxl"}},
            {"name": "sr1", "range": "200-2ff", "expected": {"owner": "dax_cxl"}},
        ],
        "findings": [
            {"rule": "1", "text": "a", "range": "180-1ff"},
            {"rule": "1", "text": "b", "range": "100-17f"},
            {"rule": "6", "text": "c"},
        ],
    }


def test_the_outcome_of_a_result() -> None:
    expected = Outcome("FAIL", "", ("rule 1 sr0", "rule 6"), "", "/e")
    assert outcome_of(read_result(failing_result())) == expected
    assert outcome_at_end(failing_result(), {"fail_reason": "FAIL"}) == expected


@pytest.mark.parametrize("result", [None, {"no": "result"}])
@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("NotApplicable", "SKIPPED"),
        ("UNBUILDABLE", "UNBUILDABLE"),
        ("INCONCLUSIVE", "INCONCLUSIVE"),
        ("Defect", "INCONCLUSIVE"),
    ],
)
def test_the_outcome_of_an_entry_without_a_result(
    result: dict[str, str] | None, kind: str, verdict: str
) -> None:
    end = outcome_at_end(result, {"fail_class": kind, "fail_reason": "r"})
    assert end == Outcome(verdict, reason="r")
