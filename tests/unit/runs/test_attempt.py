# SPDX-License-Identifier: GPL-2.0-or-later
"""One guest from its start to its verdict, with guests that show captures of real ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from fake_guest import QUICK, CapturedShell, booted, prepared_of
from machines import observed

from harness.contract.result import RunResult, Verdict
from harness.core.errors import (
    DeadlineExpiredError,
    GuestCrashedError,
    GuestLostError,
    HarnessError,
    MomentMissedError,
)
from harness.runs.attempt import StartGuest, require_loaded, run_guest
from harness.runs.boot import BootedGuest
from harness.runs.evidence import Evidence, Timings
from harness.runs.guest_run import GuestRun, Judging
from harness.runs.minimize import loading, with_case
from harness.runs.prepare import Prepared
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.known_issues import KnownIssues, load_known_issues
from harness.scenario.module_load import Load
from harness.scenario.scenario import Policy

MODULES = ("cxl_acpi", "cxl_pci", "cxl_mem", "dax_hmem", "kmem", "dax_cxl")
ALL = Load("in_order", MODULES)
NOTHING_KNOWN = KnownIssues(issues=())


@dataclass
class Attempt:
    """A run of exact_cover whose guest shows a capture.

    Attributes:
        folder: for the evidence.
        shell: of the guest.
        prepared: the scenario.
        error: raised when the guest is used.
    """

    folder: Path
    shell: CapturedShell
    prepared: Prepared
    load: Load = ALL
    policy: Policy = "per_range"
    issues: KnownIssues = NOTHING_KNOWN

    def run(self, start: StartGuest | None = None) -> RunResult:
        judging = Judging(self.policy, self.folder / "runs", self.issues, settling=QUICK)
        before = RunResult(self.prepared.case.name, KernelRequest("debian:7.2"), self.policy)
        run = GuestRun(self.prepared, self.load, judging, before, prepare_seconds=3.0)
        return run_guest(run, start or self._start)

    @contextmanager
    def _start(self, _evidence: Evidence, _timings: Timings) -> Iterator[BootedGuest]:
        yield booted(self.shell)


def attempt(folder: Path, capture: str = "exact_cover-7.2", **more: Any) -> Attempt:
    return Attempt(folder, CapturedShell(capture, **more), prepared_of(folder / "k", capture))


def test_a_guest_that_satisfies_the_contract_passes_with_its_evidence(tmp_path: Path) -> None:
    guest = attempt(tmp_path)
    result = guest.run()
    assert (result.verdict, result.findings, result.notes) == (Verdict.PASS, (), ())
    assert [str(one.expected) for one in result.owners] == ["dax_cxl/system_ram"]
    assert (result.start, result.accel, result.load) == ("cold", "tcg", guest.load)
    assert list(result.timings) == ["prepare", "load", "observe", "total"]
    assert result.timings["prepare"] == 3.0 < result.timings["total"]
    assert guest.shell.marks.begun == [f"modprobe {name}" for name in MODULES]
    folder = Path(result.evidence)
    assert json.loads((folder / "verdict.json").read_text())["verdict"] == "PASS"
    assert (folder / "observation" / "iomem").read_text() == guest.shell.sections["iomem"]
    assert json.loads((folder / "judging.json").read_text())["step_marks"] == "secret"


def test_a_module_that_does_not_load_is_a_finding(tmp_path: Path) -> None:
    failing = {"/sbin/modprobe kmem": (1, "modprobe: no such module")}
    result = attempt(tmp_path, failing=failing).run()
    assert result.verdict is Verdict.FAIL
    (finding,) = result.findings
    assert (finding.rule, finding.text) == (
        "step",
        "modprobe kmem ended with status 1: modprobe: no such module",
    )


def _lines(text: str, pattern: str) -> str:
    return "".join(line for line in text.splitlines(True) if re.match(pattern, line))


def sections(**changes: Callable[[str], str]) -> Callable[[Attempt], None]:
    def change(guest: Attempt) -> None:
        shown = guest.shell.sections
        for name, function in changes.items():
            shown[name] = function(shown[name])

    return change


def _idle(guest: Attempt) -> None:
    """Let the guest have cxl_acpi and its own RAM, and nothing of CXL and dax."""
    guest.load = Load("in_order", ())
    shown = guest.shell.sections
    shown |= dict.fromkeys(("dax_links", "dax_values", "cxl_links", "cxl_values"), "")
    shown |= {"cxl_list": "[]\n", "daxctl_list": "[]\n", "modules": "cxl_acpi 1 0 - Live 0x0\n"}
    shown["iomem"] = _lines(shown["iomem"], r".* : System RAM$")
    shown["memory_blocks"] = _lines(shown["memory_blocks"], r"[0-9a-f]+$|.*/memory[0-7]/")


def _idle_and_nothing_expected(guest: Attempt) -> None:
    _idle(guest)
    guest.prepared = with_case(guest.prepared, loading(guest.prepared.case, ()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (sections(release=lambda _: "7.2.1\n"), "the guest runs Linux '7.2.1' instead of 7.2.13"),
        (
            sections(modules=lambda text: _lines(text, "(?!kmem )")),
            "every modprobe succeeded, but /proc/modules lacks kmem",
        ),
        (sections(dmesg=lambda text: text.replace("Linux version", "x")), ""),
        (_idle_and_nothing_expected, "cxl_acpi has found none"),
    ],
)
def test_a_guest_that_tests_nothing_or_something_else_never_passes(
    tmp_path: Path, change: Callable[[Attempt], None], reason: str
) -> None:
    guest = attempt(tmp_path)
    change(guest)
    result = guest.run()
    if reason:
        assert result.verdict is Verdict.INCONCLUSIVE
        assert reason in result.reason
    else:
        assert result.verdict is Verdict.PASS, "with modules, the boot does not count"


def test_a_module_with_another_spelling_or_built_in_is_not_missing() -> None:
    seen = replace(observed("100-1ff : System RAM"), modules=("kmem", "dax_hmem"))
    files = ("kmem", "dax_hmem", "cxl_acpi")
    require_loaded(Load("in_order", ("kmem", "dax-hmem")), files, seen)
    require_loaded(Load("in_order", ("kmem", "cxl_acpi")), ("kmem",), seen)
    with pytest.raises(GuestLostError, match="/proc/modules lacks cxl_acpi"):
        require_loaded(Load("in_order", ("kmem", "cxl_acpi")), files, seen)


@pytest.mark.parametrize(("policy", "left"), [("per_range", False), ("all_or_nothing", True)])
def test_a_region_may_be_left_or_not_as_scenario_and_policy_demand(
    tmp_path: Path, policy: Policy, left: bool
) -> None:
    guest = attempt(tmp_path, "partial_region-7.2")
    guest.policy = policy
    result = guest.run()
    assert any("region0 is left" in one.text for one in result.findings) is left


def test_findings_are_explained_by_known_issues(tmp_path: Path) -> None:
    guest = attempt(tmp_path, "partial_region-6.18")
    assert guest.run().known_issue is None
    guest = attempt(tmp_path / "again", "partial_region-6.18")
    guest.issues = load_known_issues()
    result = guest.run()
    assert result.verdict is Verdict.FAIL and result.issues
    assert result.known_issue and all(one.known for one in result.findings)


def test_a_missing_region_comes_with_the_drivers_that_are_missing(tmp_path: Path) -> None:
    guest = attempt(tmp_path)
    _idle(guest)
    guest.shell.sections["modules"] = "cxl_pci 1 0 - Live 0x0\n"
    result = guest.run()
    assert result.verdict is Verdict.FAIL, result.reason
    assert "there is no CXL root: cxl_acpi is not loaded" in result.notes


CRASHED = GuestCrashedError("an oops", hint="h", trace=("a line",), step="modprobe kmem")
MISSED = MomentMissedError("the work ran", hint="h")
LOST = GuestLostError("the guest is gone", hint="h")


@pytest.mark.parametrize(
    ("errors", "verdict", "reason", "missed"),
    [
        ([CRASHED], Verdict.FAIL, "an oops", 0),
        ([LOST], Verdict.INCONCLUSIVE, LOST.message, 0),
        ([MISSED, LOST, LOST], Verdict.INCONCLUSIVE, LOST.message, 1),
        ([MISSED, MISSED, MISSED, LOST], Verdict.INCONCLUSIVE, MISSED.message, 2),
    ],
)
def test_an_error_ends_in_a_verdict_and_a_missed_moment_is_repeated(
    tmp_path: Path, errors: list[HarnessError], verdict: Verdict, reason: str, missed: int
) -> None:
    guest = attempt(tmp_path)
    left = list(errors)

    @contextmanager
    def start(_evidence: Evidence, _timings: Timings) -> Iterator[BootedGuest]:
        fail(left.pop(0))
        yield booted(guest.shell)

    def fail(error: HarnessError) -> None:
        raise error

    result = guest.run(start)
    assert (result.verdict, result.reason) == (verdict, reason)
    assert len(result.notes) == missed
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) == len(errors) - len(left)
    # The evidence of a guest that missed the moment is kept, and named.
    for note in result.notes:
        assert "the work ran" in note and any(str(folder) in note for folder in folders)


def test_a_crash_keeps_its_step_and_trace_or_the_end_of_the_console(tmp_path: Path) -> None:
    guest = attempt(tmp_path)

    def crash(trace: tuple[str, ...]) -> RunResult:
        def start(evidence: Evidence, _timings: Timings) -> NoReturn:
            evidence.text("serial.log", "one\nharness: x [0a]\nlast words\n")
            raise GuestCrashedError("an oops", hint="h", trace=trace, step="modprobe kmem")

        return guest.run(start)

    (finding,) = crash(("a line",)).findings
    assert (finding.rule, finding.dmesg, finding.phase) == ("6", ("a line",), "modprobe kmem")
    (finding,) = crash(()).findings
    assert finding.dmesg == ("one", "", "last words")


def test_a_step_that_does_not_end_is_examined(tmp_path: Path) -> None:
    guest = attempt(tmp_path)

    def hang(command: str) -> tuple[int, str]:
        raise DeadlineExpiredError("timed out after 60 s waiting for modprobe", hint="h")

    guest.shell.answer = hang
    result = guest.run()
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "QEMU has stopped the guest" in result.reason
