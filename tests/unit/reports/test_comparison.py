# SPDX-License-Identifier: GPL-2.0-or-later
"""Two kernels side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from cli_fixtures import Harness, assert_one_message
from machines import HMEM, NOBODY, span

from harness.contract.result import Finding, OwnedRange, Piece, RunResult, Verdict
from harness.reports.comparison import Change, Row, Side, compare, comparison_lines, side_of
from harness.runs.session import Session, Skipped
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario import OwnerName, Ownership
from harness.scenario.scenario_files import Case

PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE


def result(verdict: Verdict, *owners: OwnerName, rule: str = "1", reason: str = "") -> RunResult:
    pieces = tuple(
        Piece(span(f"{number}0000000-{number}fffffff"), owner, "none", "")
        for number, owner in enumerate(owners, 1)
    )
    owned = OwnedRange("sr0", span("10000000-2fffffff"), Ownership(owner="dax_hmem"), pieces)
    return RunResult(
        scenario="s",
        request=KernelRequest("k"),
        policy="per_range",
        verdict=verdict,
        owners=(owned,) if owners else (),
        findings=(Finding(rule, "text"),) if verdict is FAIL else (),
        reason=reason,
    )


@pytest.mark.parametrize(
    ("first", "second", "change"),
    [
        (result(PASS, "dax_cxl"), result(PASS, "dax_cxl"), Change.SAME),
        (result(FAIL, "nobody"), result(FAIL, "nobody"), Change.SAME),
        (result(PASS, "dax_cxl"), result(FAIL, "nobody"), Change.REGRESSION),
        (result(FAIL, "nobody"), result(PASS, "dax_hmem"), Change.FIX),
        (result(FAIL, "nobody"), result(FAIL, "dax_cxl", "nobody"), Change.OTHER_FAILURE),
        (result(FAIL, "nobody"), result(FAIL, "nobody", rule="6"), Change.OTHER_FAILURE),
        (result(PASS, "dax_cxl"), result(PASS, "dax_hmem"), Change.OTHER_OWNER),
        (result(PASS, "dax_cxl"), result(INCONCLUSIVE, reason="lost"), Change.UNKNOWN),
        ("not about this kernel", result(PASS, "dax_cxl"), Change.UNKNOWN),
        ("not about this kernel", "nor about this one", Change.NOT_RUN),
    ],
)
def test_what_became_of_a_scenario(
    first: RunResult | str, second: RunResult | str, change: Change
) -> None:
    (row,) = compare({"s": first}, {"s": second})
    assert row.change is change
    assert row.as_json()["change"] == change.value


LOWER, UPPER = span("10000000-1fffffff"), span("20000000-2fffffff")
STRANDED = Finding(
    *("1", "sr0: stranded", LOWER), kind="owner", subject="sr0", expected=HMEM, observed=NOBODY
)
WARNED = Finding(
    "6", "a warning", kind="warning", subject="kmem dax2.0: mapping0 could not reserve region"
)
AGAIN = replace(STRANDED, rule="7", phase="reload kmem")


def broke(*findings: Finding) -> RunResult:
    return replace(result(FAIL, "nobody"), findings=findings)


@pytest.mark.parametrize(
    ("first", "second", "change"),
    [
        # Another complaint of the same rule, one more, the same rule elsewhere, another step.
        ([WARNED], [replace(WARNED, kind="kasan", subject="KASAN: x")], Change.OTHER_FAILURE),
        ([STRANDED, WARNED], [STRANDED, replace(STRANDED, rule="3")], Change.OTHER_FAILURE),
        ([STRANDED], [STRANDED, WARNED], Change.OTHER_FAILURE),
        ([STRANDED], [replace(STRANDED, range=UPPER)], Change.OTHER_FAILURE),
        ([AGAIN], [replace(AGAIN, phase="reload cxl")], Change.OTHER_FAILURE),
        # The same in another order, with other numbers, said twice, in another step of loading.
        (
            [STRANDED, WARNED],
            [replace(WARNED, subject=WARNED.subject.replace("dax2", "dax3"), text="reworded"),
             replace(WARNED, phase="modprobe kmem"), STRANDED],
            Change.SAME,
        ),
        ([AGAIN], [replace(AGAIN, iomem=("x",), dmesg=("y",))], Change.SAME),
    ],
)  # fmt: skip
def test_two_failures_are_the_same_when_all_that_broke_is(
    first: Sequence[Finding], second: Sequence[Finding], change: Change
) -> None:
    (row,) = compare({"s": broke(*first)}, {"s": broke(*second)})
    assert row.change is change


def test_a_failing_side_names_its_rules_and_what_broke() -> None:
    offline = Ownership(owner="dax_hmem", use="offline")
    use = replace(STRANDED, rule="use", kind="use", observed=offline)
    side = side_of(broke(WARNED, STRANDED, use))
    assert side.why == "rule 1, rule 6, use"
    assert list(side.failures) == [
        "rule 1: owner: expected dax_hmem, found nobody at 10000000-1fffffff",
        "rule 6: warning: kmem daxN.N: mappingN could not reserve region",
        "rule use: use: expected dax_hmem/system_ram, found dax_hmem/offline at 10000000-1fffffff",
    ]


def test_a_range_in_pieces_names_each_owner_once() -> None:
    side = side_of(result(FAIL, "dax_cxl", "nobody"))
    assert side.owners == ("sr0: dax_cxl + nobody",)
    assert side_of(result(FAIL, "nobody", "nobody")).owners == ("sr0: nobody",)


def test_the_table_marks_what_differs() -> None:
    rows = [
        Row("kept", Side(PASS, ("sr0: dax_cxl",)), Side(PASS, ("sr0: dax_cxl",))),
        Row("broken", Side(PASS, ("sr0: dax_cxl",)), Side(FAIL, ("sr0: nobody",), "rule 1")),
        Row("mended", Side(FAIL), Side(PASS)),
        Row("elsewhere", Side(None, why="not about it"), Side(PASS)),
        Row("nowhere", Side(None, why="not about it"), Side(None, why="nor this")),
    ]
    header, kept, broken, mended, elsewhere, nowhere, counts = comparison_lines(
        rows, ("old", "new")
    )
    assert header.split() == ["scenario", "old", "new"]
    assert kept.split() == ["kept", "PASS", "sr0:", "dax_cxl", "PASS", "sr0:", "dax_cxl"]
    assert broken.startswith("- broken ")
    assert broken.endswith("FAIL sr0: nobody (rule 1) regression")
    assert mended.startswith("+ mended") and mended.endswith("fix")
    assert elsewhere.startswith("? elsewhere skipped")
    assert nowhere == "not applicable to either kernel: nowhere"
    assert counts == "1 same, 1 regression, 1 fix, 1 unknown, 1 not run"


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize(
    ("new", "code"), [(PASS, 0), (FAIL, 1), (INCONCLUSIVE, 3)], ids=lambda one: str(one)
)
def test_the_command(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, new: Verdict, code: int
) -> None:
    def run_all(
        _session: Session, cases: Sequence[Case], kernel: KernelRequest
    ) -> Iterator[RunResult | Skipped]:
        for _case in cases:
            yield result(PASS if kernel.spec == "debian:6.18" else new, "dax_cxl")

    monkeypatch.setattr(Session, "run_all", run_all)
    words = ("--kernel", "debian:6.18", "--kernel", "debian:7.2", "--json", "table.json")
    ended = harness("compare", *words, "exact_cover", "no_region")
    assert ended.code == code
    assert ended.out.splitlines()[0].split() == ["scenario", "debian:6.18", "debian:7.2"]
    table = json.loads(Path("table.json").read_text())
    assert table["kernels"] == ["debian:6.18", "debian:7.2"]
    assert [row["scenario"] for row in table["rows"]] == ["exact_cover", "no_region"]
    assert table["rows"][0]["second"]["verdict"] == new.name


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize("count", [1, 3])
def test_two_kernels_are_compared(harness: Harness, count: int) -> None:
    ended = harness("compare", *("--kernel", "debian:7.2") * count, "exact_cover")
    assert_one_message(ended, f"given {count} times", "give it twice")


@pytest.mark.usefixtures("no_guest")
def test_without_building_scenarios_that_need_it_are_skipped(harness: Harness) -> None:
    ended = harness("run", "no_cxl", "--no-build")
    assert_one_message(ended, "no_cxl needs a kernel that is built with no_cxl", "--no-build")
