# SPDX-License-Identifier: GPL-2.0-or-later
"""The shortest load that shows a failure: the same failure, not just any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from machines import CXL, span

from harness.contract.result import Finding, OwnedRange, Piece, RunResult, Verdict
from harness.runs import minimize
from harness.runs.combine import combine
from harness.runs.prepare import Prepared
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.module_load import Load
from harness.scenario.scenario_files import load_case

LOAD = ("cxl_acpi", "dax_hmem", "kmem", "dax_cxl")
LOWER, UPPER = span("110000000-14fffffff"), span("150000000-18fffffff")

Fails = Callable[[Sequence[str]], Sequence[Finding]]


def owned(name: str, where: Any, owner: Any = "dax_cxl") -> OwnedRange:
    return OwnedRange(name, where, CXL, (Piece(where, owner, "none", "made"),))


def result(load: Load, findings: Sequence[Finding], owner: str = "dax_cxl") -> RunResult:
    return RunResult(
        "exact_cover",
        KernelRequest("debian:7.2"),
        "per_range",
        verdict=Verdict.FAIL if findings else Verdict.PASS,
        owners=(owned("sr0", LOWER, owner), owned("sr1", UPPER, owner)),
        findings=tuple(findings),
        load=load,
    )


@pytest.fixture
def shortest(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fails], tuple[str, ...]]:
    prepared = cast(Prepared, SimpleNamespace(case=load_case("exact_cover")))
    monkeypatch.setattr(minimize, "with_case", lambda one, _case: one)

    def shorten(fails: Fails) -> tuple[str, ...]:
        """The shortest load, of a guest that fails as a function of its modules says."""
        first = Load("in_order", LOAD)
        failed = combine([result(first, fails(LOAD)), result(first, (), "nobody")], 1.0)
        assert any(one.kind == "different_outcomes" for one in failed.findings)
        return minimize.shortest_failing(
            failed, prepared, lambda _prepared, load: result(load, fails(load.modules))
        ).modules

    return shorten


def test_a_failure_of_rule_7_alone_is_not_any_failure(shortest: Any) -> None:
    again = Finding("7", "after step 1, reload kmem: sr0: stranded", LOWER)
    other = Finding("1", "sr0: stranded", LOWER)

    def fails(load: Sequence[str]) -> Sequence[Finding]:
        return [again] if {"kmem", "dax_hmem"} <= set(load) else [other]

    assert shortest(fails) == ("dax_hmem", "kmem")


def test_the_same_rule_must_be_broken_for_the_same_range(shortest: Any) -> None:
    def fails(load: Sequence[str]) -> Sequence[Finding]:
        return [Finding("1", "stranded", LOWER if "cxl_acpi" in load else UPPER)]

    assert shortest(fails) == ("cxl_acpi",)


def test_more_than_the_failure_may_break_and_numbers_may_differ(shortest: Any) -> None:
    def fails(load: Sequence[str]) -> Sequence[Finding]:
        warning = Finding("6", "x", kind="warning", subject=f"kmem dax{len(load)}.0: x")
        more = [] if "dax_cxl" in load else [Finding("2", "not his", UPPER)]
        return [Finding("1", f"stranded in {len(load)} pieces", LOWER), warning, *more]

    assert shortest(fails) == ()


def test_a_warning_that_is_another_is_another_failure(shortest: Any) -> None:
    def fails(load: Sequence[str]) -> Sequence[Finding]:
        said = "could not reserve region" if "kmem" in load else "probe failed with error -12"
        subject = f"kmem dax{len(load)}.0: {said}"
        return [Finding("6", "a warning", phase="modprobe x", kind="warning", subject=subject)]

    assert shortest(fails) == ("kmem",)
