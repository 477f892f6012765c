# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import dataclasses

import pytest

from harness.contract.result import read_result
from harness.matrix.plan import Combination
from harness.nightly.diff import Change, Earlier, Line, Row, Seen, counts_of, line_of, seen_in
from harness.nightly.night import seen_at_end

BRANCH = "build:/state/trees/x@0123456789"
LINE = line_of(Combination(scenario="exact_cover", kernel=BRANCH), BRANCH)
PASS = Seen("PASS")
FAIL = Seen("FAIL", failures=("rule 1 sr0",))
OTHER = Seen("FAIL", failures=("rule 1 sr0", "rule 6"))
KNOWN = Seen("FAIL", known="a race", failures=("rule 1 sr0",))
BROKEN = Seen("UNBUILDABLE", reason="hmem.c:1: error")
LOST = Seen("INCONCLUSIVE", reason="the guest was lost")
SKIPPED = Seen("SKIPPED")


def row(now: Seen, *before: Seen) -> Row:
    """A line tonight, after nights that saw it so, the newest last."""
    earlier = [Earlier(n, f"commit{n}", seen) for n, seen in enumerate(before, start=1)]
    judged = [one for one in earlier if one.seen.judged]
    counted = [one for one in earlier if one.seen.judged or one.seen.verdict == "UNBUILDABLE"]
    return Row(LINE, now, judged[-1] if judged else None, counted[-1] if counted else None)


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
        (OTHER, (FAIL,), Change.REGRESSION),
        (FAIL, (OTHER,), Change.STILL_FAILS),
        (KNOWN, (PASS,), Change.KNOWN),
        (BROKEN, (), Change.NEW_FAILURE),
        (BROKEN, (PASS,), Change.REGRESSION),
        (BROKEN, (FAIL, LOST), Change.REGRESSION),
        (BROKEN, (PASS, BROKEN), Change.STILL_FAILS),
        (LOST, (PASS,), Change.UNTOLD),
        (SKIPPED, (), Change.SKIPPED),
        (SKIPPED, (LOST, BROKEN, SKIPPED), Change.SKIPPED),
        (SKIPPED, (PASS,), Change.LEFT),
        (SKIPPED, (FAIL, SKIPPED, LOST), Change.LEFT),
    ],
)
def test_what_has_changed(now: Seen, before: tuple[Seen, ...], change: Change) -> None:
    assert row(now, *before).change is change


@pytest.mark.parametrize(
    ("now", "before", "night"),
    [
        (FAIL, (PASS, PASS), 2),
        (FAIL, (PASS, LOST, BROKEN), 1),
        (FAIL, (FAIL,), None),
        (OTHER, (PASS, FAIL), None),
        (FAIL, (KNOWN,), None),
        (BROKEN, (PASS,), None),
        (PASS, (FAIL,), None),
    ],
)
def test_from_where_is_bisected(now: Seen, before: tuple[Seen, ...], night: int | None) -> None:
    good = row(now, *before).good
    assert (good.night if good else None) == night


def test_kernels_that_are_no_branch_are_not_bisected() -> None:
    prebuilt = dataclasses.replace(LINE, kernel="debian:7.2")
    one = dataclasses.replace(row(FAIL, PASS), line=prebuilt)
    assert one.change is Change.REGRESSION
    assert one.good is None


def test_a_line_is_the_same_whatever_the_branch_has() -> None:
    asked = {
        "configs": ("debug", "mixed"),
        "series": "patches/x",
        "qemu": "/q",
        "policy": "per_range",
    }
    one = Combination(scenario="/home/me/mine.yaml", kernel=BRANCH, **asked)  # type: ignore[arg-type]
    line = Line("/home/me/mine.yaml", "branch", "debug,mixed", "patches/x", "per_range", "/q")
    assert line_of(one, BRANCH) == line
    assert str(line) == (
        "mine.yaml on branch --config debug,mixed --series patches/x per_range qemu=/q"
    )
    assert str(LINE) == "exact_cover on branch per_range"
    assert line_of(one, "build:/elsewhere@1").kernel == BRANCH


def test_what_a_result_says() -> None:
    record = read_result(
        {
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
    )
    assert seen_in(record) == Seen("FAIL", "", ("rule 1 sr0", "rule 6"), "", "/e")


@pytest.mark.parametrize(
    ("message", "verdict"),
    [
        ({"fail_class": "NotApplicable", "fail_reason": "r"}, "SKIPPED"),
        ({"fail_class": "UNBUILDABLE", "fail_reason": "r"}, "UNBUILDABLE"),
        ({"fail_class": "INCONCLUSIVE", "fail_reason": "r"}, "INCONCLUSIVE"),
        ({"fail_class": "Defect", "fail_reason": "r"}, "INCONCLUSIVE"),
    ],
)
def test_ends_without_a_result(message: dict[str, str], verdict: str) -> None:
    assert seen_at_end(None, message) == Seen(verdict, reason="r")
    assert seen_at_end({"no": "result"}, message) == Seen(verdict, reason="r")


def test_counts() -> None:
    rows = (row(PASS), row(FAIL, PASS), row(PASS, PASS))
    assert counts_of(rows) == ((Change.REGRESSION, 1), (Change.PASSES, 2))
