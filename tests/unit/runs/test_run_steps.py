# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's first judgement, with a guest that shows what each test wants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from layouts import state_of
from machines import observed

from harness.contract.expected import Expected, expectations
from harness.contract.judge import Judgement
from harness.contract.result import Finding, RunResult, Verdict
from harness.runs import guest_run
from harness.runs.evidence import Evidence
from harness.runs.guest_run import Judging
from harness.runs.timings import Timings
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.known_issues import KnownIssues
from harness.scenario.module_load import Load
from harness.scenario.scenario import Policy
from harness.scenario.scenario_files import load_case

SEEN = observed("100-1ff : System RAM")


def first_judgement(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scenario: str,
    policy: Policy,
    judge_guest: Callable[..., Judgement],
) -> RunResult:
    """The result of a guest that shows SEEN, by this judgement of it."""
    for name, answer in {
        "take_away_modules": lambda *_: None,
        "load_modules": lambda *_: (),
        "observe_settled": lambda *_: {},
        "read_sections": lambda _: SEEN,
        "require_loaded": lambda *_: None,
        "window_problems": lambda *_: (),
        "with_undecoded": lambda _guest, _prepared, seen: seen,
        "judging_inputs": lambda *_: {},
        "judge_guest": judge_guest,
        "live_on": lambda _life, result, *_: result,
    }.items():
        monkeypatch.setattr(guest_run, name, answer)
    case = load_case(scenario)
    bootable = SimpleNamespace(
        patience=1.0,
        finds_leaks=False,
        initramfs=SimpleNamespace(modules=()),
        kernel=SimpleNamespace(release=SEEN.release),
    )
    state = state_of(case)
    prepared = SimpleNamespace(
        case=case,
        state=state,
        bootable=bootable,
        expectations=lambda policy, *_: expectations(case.scenario, state, policy),
    )
    guest = SimpleNamespace(shell=None, check=lambda: None)
    return guest_run._run_steps(
        cast(Any, guest),
        cast(Any, prepared),
        Load("in_order", ()),
        RunResult(scenario, KernelRequest("debian:7.2"), policy),
        Evidence(tmp_path),
        Timings({}),
        Judging(policy, tmp_path, KnownIssues(issues=())),
    )


@pytest.mark.parametrize(
    ("scenario", "policy", "gone"),
    [
        ("partial_region", "all_or_nothing", True),
        ("partial_region", "per_range", False),
        ("exact_cover", "all_or_nothing", False),
    ],
)
def test_whether_a_region_may_be_left_is_of_the_scenario_and_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: str, policy: Policy, gone: bool
) -> None:
    told: list[bool] = []

    def judge_guest(*_arguments: object) -> Judgement:
        told.append(cast(Expected, _arguments[-1]).no_region)
        return Judgement(Verdict.PASS, (), ())

    result = first_judgement(tmp_path, monkeypatch, scenario, policy, judge_guest)
    assert result.verdict is Verdict.PASS
    assert result.notes == ()
    assert told == [gone]


def test_a_fail_without_its_region_notes_the_drivers_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge_guest(*_arguments: object) -> Judgement:
        return Judgement(Verdict.FAIL, (), (Finding("1", "stranded"),))

    result = first_judgement(tmp_path, monkeypatch, "exact_cover", "per_range", judge_guest)
    assert "there is no CXL root: cxl_acpi is not loaded" in result.notes
