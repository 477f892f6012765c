# SPDX-License-Identifier: GPL-2.0-or-later
"""Differences between guests with the same load."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from machines import CXL, HMEM, NOBODY, span

from harness.contract.result import (
    Difference,
    Finding,
    OwnedRange,
    Piece,
    RunResult,
    StepOutcome,
    Verdict,
)
from harness.reports.terminal import result_lines
from harness.runs.combine import combine
from harness.runs.repeats import compared
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.module_load import Load

SR, LOWER = span("110000000-18fffffff"), span("110000000-14fffffff")
LOAD = Load("in_order", ("cxl_acpi", "kmem"))
PIECE = Piece(SR, "dax_hmem", "system_ram", "hmem.2 > dax2.0 > kmem", 1)
OWNED = OwnedRange("sr0", SR, HMEM, (PIECE,))
ERROR = Finding("6", "x", kind="error", subject="kmem dax2.0: error -16", phase="modprobe kmem")
STRANDED = Finding("1", "x", SR, kind="owner", subject="sr0", expected=HMEM, observed=NOBODY)
STEP = StepOutcome("reload kmem", "held", (OWNED,))
GUEST = RunResult(
    *("partial_region", KernelRequest("debian:7.2"), "per_range", Verdict.FAIL),
    owners=(OWNED,),
    findings=(ERROR, STRANDED),
    steps=(STEP,),
    load=LOAD,
)


def differences(*results: RunResult) -> tuple[Difference, ...]:
    numbered = [replace(one, evidence=f"/e/{n}") for n, one in enumerate(results, 1)]
    combined = compared(combine(numbered, 1.0), numbered)
    assert combined.compared == len(results)
    return combined.differences


def other(part: str, **fields: Any) -> Any:
    """A guest that differs from GUEST in one part."""
    return pytest.param(part, replace(GUEST, **fields), id=f"{part} {list(fields)}")


def owned(piece: Piece) -> tuple[OwnedRange, ...]:
    return (replace(OWNED, observed=(piece,)),)


@pytest.mark.parametrize(
    ("part", "guest"),
    [
        other("verdict", verdict=Verdict.INCONCLUSIVE),
        other("owners", owners=()),
        other("owners", owners=owned(replace(PIECE, owner="dax_cxl"))),
        other("owners", owners=owned(replace(PIECE, use="offline"))),
        other("owners", owners=owned(replace(PIECE, node=0))),
        other("owners", owners=owned(replace(PIECE, range=LOWER))),
        other("findings", findings=(STRANDED,)),
        other("findings", findings=(ERROR, ERROR, STRANDED)),
        other("findings", findings=(ERROR, replace(STRANDED, range=LOWER))),
        other("findings", findings=(ERROR, replace(STRANDED, expected=CXL))),
        other("findings", findings=(replace(ERROR, subject="kmem dax2.0: error -12"), STRANDED)),
        other("steps", steps=(replace(STEP, outcome="broke"),)),
        other("steps' owners", steps=(replace(STEP, owners=owned(replace(PIECE, node=0))),)),
    ],
)
def test_a_guest_that_differs_in_one_part(part: str, guest: RunResult) -> None:
    (found,) = differences(GUEST, guest, GUEST)
    assert (found.guest, found.evidence, found.part, found.others) == (2, "/e/2", part, 2)
    assert found.only_here or found.only_there


def test_device_numbers_times_phases_and_words_are_no_difference() -> None:
    again = replace(
        GUEST,
        owners=owned(replace(PIECE, via="hmem.1 > dax1.0 > kmem")),
        findings=(
            replace(STRANDED, text="y", iomem=("z",)),
            replace(ERROR, subject="kmem dax1.0: error -16", phase="modprobe dax_hmem"),
        ),
        timings={"total": 9.0},
        start="warm",
    )
    assert differences(GUEST, again) == ()


def test_without_a_majority_the_first_guest_is_the_usual_one() -> None:
    (found,) = differences(GUEST, replace(GUEST, findings=(STRANDED,)))
    assert (found.guest, found.others, found.only_here) == (2, 1, ())
    assert found.only_there == ("rule 6: error: kmem daxN.N: error -16",)


def test_many_lines_are_shortened() -> None:
    many = tuple(replace(ERROR, subject=f"kmem: error -{n}") for n in range(1, 30))
    (found,) = differences(GUEST, replace(GUEST, findings=(*GUEST.findings, *many)), GUEST)
    assert len(found.only_here) == 21 and found.only_here[-1].endswith(" more lines")


def test_only_guests_that_loaded_the_same_are_compared() -> None:
    parallel = replace(GUEST, load=Load("at_once", LOAD.modules), owners=())
    unloaded = replace(GUEST, load=None)
    results = [GUEST, parallel, replace(unloaded, findings=()), unloaded]
    combined = compared(combine(results, 1.0), results)
    assert (combined.compared, combined.differences) == (0, ())
    results = [GUEST, parallel, GUEST, replace(parallel, owners=(OWNED,))]
    combined = compared(combine(results, 1.0), results)
    assert combined.compared == 4
    assert [(found.guest, found.part) for found in combined.differences] == [(4, "owners")]


def test_it_is_shown_and_written() -> None:
    long = tuple(f"line {number}" for number in range(5))
    found = Difference(2, "/evidence/two", "owners", 3, long, ("region0",))
    shown = replace(GUEST, compared=4, differences=(found,))
    text = "\n".join(result_lines(shown))
    assert "guest 2 differs, see /evidence/two" in text
    assert "in owners, from 3 others:" in text
    assert "+ line 2" in text and "and 2 more lines" in text and "- region0" in text
    written = json.loads(json.dumps(shown.as_json()))
    assert written["compared"] == 4
    assert written["differences"] == [
        {
            "guest": 2,
            "evidence": "/evidence/two",
            "part": "owners",
            "others": 3,
            "only_here": list(long),
            "only_there": ["region0"],
        }
    ]
    same = "\n".join(result_lines(replace(GUEST, compared=4)))
    assert "4 guests with the same verdict, owners, findings and steps" in same
    assert "with the same verdict" not in "\n".join(result_lines(GUEST))
