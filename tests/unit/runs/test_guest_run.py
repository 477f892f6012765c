# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from machines import observed

from harness.contract.dmesg import StepMarks
from harness.contract.expected import Expected
from harness.contract.judge import Judgement
from harness.contract.result import Finding, RunResult, Verdict
from harness.core.errors import GuestLostError, HarnessError, MomentMissedError
from harness.machine.console_watch import CrashWatch
from harness.runs import judged
from harness.runs.guest_run import Judging, require_kernel, require_loaded, run_guest
from harness.runs.prepare import Prepared
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.known_issues import KnownIssues
from harness.scenario.module_load import Load

SEEN = replace(observed("100-1ff : System RAM"), modules=("kmem", "dax_hmem"))
NOTHING = Expected({}, False, {})


def test_a_module_that_was_loaded_and_is_not_there_is_noticed() -> None:
    files = ("kmem", "dax_hmem", "cxl_acpi")
    require_loaded(Load("in_order", ("kmem", "dax-hmem")), files, SEEN)
    with pytest.raises(GuestLostError, match="/proc/modules lacks cxl_acpi"):
        require_loaded(Load("in_order", ("kmem", "cxl_acpi")), files, SEEN)


def test_a_driver_that_is_built_in_is_no_module() -> None:
    require_loaded(Load("in_order", ("kmem", "cxl_acpi")), ("kmem",), SEEN)


def test_a_guest_with_another_kernel_is_noticed() -> None:
    require_kernel("7.2.0", SEEN)
    with pytest.raises(GuestLostError, match=r"runs Linux '7\.2\.0', and 7\.2\.1 was to be tested"):
        require_kernel("7.2.1", SEEN)


@pytest.mark.parametrize(
    ("findings", "release", "ending"),
    [
        ((), "7.2.0", "cxl_acpi has found none"),
        ((Finding("6", "an error: cxl_acpi: it failed"),), "7.2.0", Verdict.FAIL),
        ((), "7.2.1", "7.2.1 was to be tested"),
    ],
)
def test_a_machine_that_nothing_was_tested_on_never_passes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    findings: tuple[Finding, ...],
    release: str,
    ending: str | Verdict,
) -> None:
    verdict = Verdict.FAIL if findings else Verdict.PASS
    for name, value in {
        "in_use": nullcontext,
        "take_away_modules": lambda *_: None,
        "load_modules": lambda *_: (),
        "observe_settled": lambda *_: {},
        "read_sections": lambda _: replace(SEEN, modules=("cxl_acpi",)),
        "with_undecoded": lambda _guest, _prepared, seen: seen,
        "judging_inputs": lambda *_: {},
        "judge_guest": lambda *_words, **_named: Judgement(verdict, (), findings),
        "live_on": lambda _life, result, *_: result,
        "with_decoded_traces": lambda result, *_: result,
    }.items():
        monkeypatch.setattr(f"harness.runs.guest_run.{name}", value)
    made_up = SimpleNamespace  # enough of each for what is left
    state = made_up(windows=(SEEN.iomem.roots[0].range,), judged_ranges=tuple)
    prepared = made_up(
        case=made_up(name="exact_cover", scenario=made_up(guest=made_up(missing=()))),
        state=state,
        expectations=lambda *_: (NOTHING,),
        bootable=made_up(
            kernel=made_up(release=release, image=tmp_path),
            accel="tcg",
            config_sha256=None,
            patience=1.0,
            finds_leaks=False,
            initramfs=made_up(modules=("cxl_acpi",)),
        ),
    )
    guest = made_up(shell=None, start="cold", check=lambda: None)
    result = run_guest(
        cast(Prepared, prepared),
        Load("in_order", ("cxl_acpi",)),
        Judging("per_range", tmp_path, KnownIssues(issues=())),
        RunResult("exact_cover", KernelRequest("debian:7.2"), "per_range"),
        lambda *_: nullcontext(cast(Any, guest)),
        {},
    )
    if isinstance(ending, str):
        assert result.verdict is Verdict.INCONCLUSIVE and ending in result.reason
    else:
        assert result.verdict is ending


MISSED = MomentMissedError("the work ran", hint="h")
LOST = GuestLostError("the guest is gone", hint="h")


@pytest.mark.parametrize(
    ("endings", "reason", "missed"),
    [
        ([LOST], LOST.message, 0),
        ([MISSED, LOST, LOST], LOST.message, 1),
        ([MISSED, MISSED, MISSED, LOST], MISSED.message, 2),
    ],
)
def test_a_guest_that_told_nothing_is_done_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    endings: list[HarnessError],
    reason: str,
    missed: int,
) -> None:
    kernel = SimpleNamespace(release="7.2", image=tmp_path / "k" / "vmlinuz")
    bootable = SimpleNamespace(kernel=kernel, accel="tcg", config_sha256=None)
    prepared = SimpleNamespace(case=SimpleNamespace(name="exact_cover"), bootable=bootable)
    monkeypatch.setattr("harness.runs.guest_run.in_use", nullcontext)
    left = list(endings)

    @contextmanager
    def start(_evidence: object, _timings: object) -> Any:
        end()
        yield

    def end() -> None:
        raise left.pop(0)

    result = run_guest(
        cast(Prepared, prepared),
        Load("in_order", ()),
        Judging("per_range", tmp_path, KnownIssues(issues=())),
        RunResult("exact_cover", KernelRequest("debian:7.2"), "per_range"),
        start,
        {},
    )
    assert (result.verdict, result.reason) == (Verdict.INCONCLUSIVE, reason)
    assert len(result.notes) == missed
    assert result.retried == min(missed, 2)
    folders = sorted(tmp_path.iterdir())
    assert len(folders) == len(endings) - len(left)
    # What told nothing is kept, and named.
    for folder, note in zip(folders, result.notes, strict=False):
        assert "the work ran" in note and any(str(one) in note for one in folders), folder


@pytest.mark.parametrize(
    ("kind", "refused"), [("stall", True), ("hung_task", True), ("error", False)]
)
def test_what_took_too_long_by_a_fast_clock_is_no_finding(
    monkeypatch: pytest.MonkeyPatch, kind: str, refused: bool
) -> None:
    found = Judgement(Verdict.FAIL, (), (Finding("6", "x", kind=kind),))
    monkeypatch.setattr(judged, "judge", lambda *_words, **_named: found)
    monkeypatch.setattr(judged, "require_whole_log", lambda *_words, **_named: None)
    watch = CrashWatch()
    monkeypatch.setattr(CrashWatch, "clock_rate", 16.0)
    guest = SimpleNamespace(watch=watch, shell=SimpleNamespace(marks=StepMarks("0")))
    prepared = SimpleNamespace(boot_counts=False, state=None, expected_lines=lambda: ())

    def look() -> Judgement:
        return judged.judge_guest(cast(Any, guest), cast(Any, prepared), SEEN, NOTHING)

    if refused:
        with pytest.raises(GuestLostError, match=r"16\.0 times as fast"):
            look()
    else:
        assert look() is found
