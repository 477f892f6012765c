# SPDX-License-Identifier: GPL-2.0-or-later
"""One guest: a machine is started, loads and does what the scenario asks for, and is judged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from harness.contract.dmesg import without_marks
from harness.contract.driverless import driverless
from harness.contract.observation import Observation
from harness.contract.oracle import DRIVER_OPTIONS
from harness.contract.preflight import absent_windows, window_problems
from harness.contract.result import Finding, RunKernel, RunResult, Verdict
from harness.core.errors import (
    DeadlineExpiredError,
    GuestCrashedError,
    GuestLostError,
    HarnessError,
    MomentMissedError,
    PreflightError,
    UsageError,
)
from harness.core.kernel_modules import module_name
from harness.guest.modules import load_modules
from harness.guest.observe import observe, read_sections
from harness.guest.settle import Settling, observe_settled, scan_for_leaks, take_away_modules
from harness.guest.ssh import GuestShell
from harness.runs.boot import BootedGuest
from harness.runs.evidence import Evidence, new_evidence
from harness.runs.evidence_layout import JUDGING
from harness.runs.hang_diagnosis import explain_silence
from harness.runs.judged import judge_guest, judging_inputs, with_undecoded
from harness.runs.post_boot import Life, live_on
from harness.runs.prepare import Prepared, in_use
from harness.runs.timings import Timings
from harness.runs.traces import with_decoded_traces
from harness.scenario.issue_conditions import Circumstances
from harness.scenario.known_issues import KnownIssues
from harness.scenario.module_load import Load
from harness.scenario.scenario import Ownership, Policy

_TAIL_LINES = 60
_SETTLING = Settling()
_TRIES = 3

StartGuest = Callable[[Evidence, Timings], AbstractContextManager[BootedGuest]]
"""Starts a guest of a prepared scenario, ready for its steps."""


@dataclass(frozen=True)
class Judging:
    """By what guests are judged, and where that is written down.

    Attributes:
        policy: whose rules.
        evidence_root: folder in which each guest's run makes its own.
        known_issues: failures that have a reason.
        boot_seconds: how long a guest may take to become ready.
        settling: how long nothing must change before a guest is judged.
    """

    policy: Policy
    evidence_root: Path
    known_issues: KnownIssues
    boot_seconds: float = 120.0
    settling: Settling = _SETTLING


def run_guest(
    prepared: Prepared,
    load: Load,
    judging: Judging,
    result: RunResult,
    start: StartGuest,
    spent: Mapping[str, float],
) -> RunResult:
    """Start a guest, load modules in one way, do the scenario's steps, and judge.

    Whatever happens after the first evidence is written ends in a verdict. A guest that could not
    be caught in the state that a step is about tells nothing: it is done again, twice at most.

    Args:
        prepared: the scenario.
        load: what this guest loads.
        judging: by what it is judged.
        result: what is known of the run before it.
        start: starts the guest.
        spent: seconds by phase that count as this guest's, such as for getting its kernel.

    Raises:
        UsageError: the evidence cannot be written; nothing was started.
    """
    notes: tuple[str, ...] = ()
    for retried in range(_TRIES):
        ended_with, missed = _one_guest(prepared, load, judging, result, start, spent)
        ended_with = replace(ended_with, notes=(*notes, *ended_with.notes), retried=retried)
        if missed is None:
            break
        notes += (f"a guest told nothing: {missed.message}; its evidence: {ended_with.evidence}",)
        spent = {}
    return ended_with


def _one_guest(
    prepared: Prepared,
    load: Load,
    judging: Judging,
    result: RunResult,
    start: StartGuest,
    spent: Mapping[str, float],
) -> tuple[RunResult, MomentMissedError | None]:
    """One guest; its result, and what it was not caught in."""
    timings = Timings(spent)
    missed = None
    found = prepared.bootable.kernel
    evidence = new_evidence(judging.evidence_root, prepared.case.name, found.release)
    result = replace(
        result,
        kernel=RunKernel(found.release, prepared.bootable.config_sha256),
        accel=prepared.bootable.accel,
        evidence=str(evidence.folder),
        load=load,
    )
    try:
        with in_use(prepared.bootable), start(evidence, timings) as guest:
            result = replace(result, start=guest.start)
            try:
                result = _run_steps(guest, prepared, load, result, evidence, timings, judging)
            except DeadlineExpiredError as error:
                raise explain_silence(guest, error, evidence) from error
    except GuestCrashedError as error:
        result = _crashed(result, error, evidence)
    except UsageError:
        raise
    except HarnessError as error:
        missed = error if isinstance(error, MomentMissedError) else None
        result = ended(result, Verdict.INCONCLUSIVE, error)
    result = replace(result, timings=timings.seconds())
    if result.findings:
        result = with_decoded_traces(result, found, evidence)
    result = _explained(judging.known_issues, prepared, result)
    evidence.json("verdict.json", result.as_json())
    return result, missed


def ended(result: RunResult, verdict: Verdict, error: HarnessError) -> RunResult:
    """The result of a run that an error has ended."""
    where = f"{error.where}: " if error.where else ""
    return replace(result, verdict=verdict, reason=f"{where}{error.message}", hint=error.hint)


def _run_steps(
    guest: BootedGuest,
    prepared: Prepared,
    load: Load,
    result: RunResult,
    evidence: Evidence,
    timings: Timings,
    judging: Judging,
) -> RunResult:
    scenario = prepared.case.scenario
    hoped_for = prepared.expectations(judging.policy)[0].owners
    settling = judging.settling.slower(prepared.bootable.patience)
    with timings.phase("load"):
        take_away_modules(guest.shell, scenario.guest.missing)
        failed_steps = load_modules(guest.shell, load)
    wanted = tuple(
        one.range
        for one in prepared.state.judged_ranges()
        if one.name in hoped_for and hoped_for[one.name].use == "system_ram"
    )
    with timings.phase("observe"):

        def settle() -> dict[str, str]:
            return observe_settled(
                guest.shell, wanted, settling, lambda: _observe(guest.shell, evidence)
            )

        sections = settle()
        if prepared.bootable.finds_leaks:
            evidence.text("observation/kmemleak", scan_for_leaks(guest.shell))
            sections = settle()
        observation = read_sections(sections)
    guest.check()
    require_kernel(prepared.bootable.kernel.release, observation)
    if not failed_steps:
        require_loaded(load, prepared.bootable.initramfs.modules, observation)
    _require_none(window_problems(observation, prepared.state))
    observation = with_undecoded(guest, prepared, observation)
    evidence.json(JUDGING, judging_inputs(guest, prepared, observation))
    expected = prepared.expectations(judging.policy, observation.modules)
    judgement = judge_guest(guest, prepared, observation, expected[0])
    findings = (*failed_steps, *judgement.findings)
    if not findings:
        _require_none(absent_windows(observation, prepared.state))
    result = replace(
        result,
        drivers=tuple(one for one in DRIVER_OPTIONS if one in observation.modules),
        verdict=Verdict.FAIL if findings else judgement.verdict,
        owners=judgement.owners,
        findings=findings,
        notes=(
            *(f"does not count, before the first step: {one}" for one in judgement.earlier),
            *_brought_along(prepared, observation, expected[0].owners, hoped_for),
            *(driverless(observation, expected[0].owners) if findings else ()),
        ),
    )
    life = Life(
        guest,
        prepared,
        evidence,
        settling,
        observation,
        lambda so_far: _explained(judging.known_issues, prepared, so_far).known_issue is not None,
    )
    return live_on(life, result, expected[1:], timings)


def _brought_along(
    prepared: Prepared,
    observation: Observation,
    expected: Mapping[str, Ownership],
    hoped_for: Mapping[str, Ownership],
) -> tuple[str, ...]:
    """A note where modules that the scenario does not name decide who must own what."""
    if expected == hoped_for:
        return ()
    named = {module_name(one) for one in prepared.case.scenario.guest.modules}
    also = [one for one in prepared.as_run(observation.modules).guest.modules if one not in named]
    what = f"{', '.join(also)} loaded as well" if also else "the kernel's configuration"
    owners = ", ".join(f"{name} {one}" for name, one in expected.items())
    return (f"expected owners follow from what the guest has, {what}: {owners}",)


def require_loaded(load: Load, files: Collection[str], observation: Observation) -> None:
    """Refuse a guest that says that it has loaded modules, and has not.

    Raises:
        GuestLostError: it lacks some of those that it has files of.
    """
    names = dict.fromkeys(module_name(name) for name in load.modules)
    absent = [name for name in names if name in files and name not in observation.modules]
    if absent:
        raise GuestLostError(
            f"every modprobe succeeded, but /proc/modules lacks {', '.join(absent)}",
            hint="does something in the guest unload modules? see observation/ in the evidence",
        )


def require_kernel(release: str, observation: Observation) -> None:
    """Refuse a guest that runs another kernel than the one that its verdict would be about.

    Raises:
        GuestLostError: it does.
    """
    if observation.release != release:
        raise GuestLostError(
            f"the guest runs Linux {observation.release!r}, and {release} was to be tested",
            hint="is the image the one of these modules? see kernel.json in the evidence",
        )


def _require_none(problems: Sequence[str]) -> None:
    if problems:
        raise PreflightError(
            "; ".join(problems), hint="the kernel or its ACPI tables are not what was asked for"
        )


def _observe(shell: GuestShell, evidence: Evidence) -> dict[str, str]:
    sections = observe(shell)
    for name, content in sections.items():
        if name != "end":
            evidence.text(f"observation/{name}", content)
    return sections


def _crashed(result: RunResult, error: GuestCrashedError, evidence: Evidence) -> RunResult:
    try:
        serial = evidence.path("serial.log").read_text(errors="replace")
        lines = [without_marks(line) for line in serial.splitlines()]
    except OSError:
        lines = []
    finding = Finding(
        "step" if error.kind == "hang" else "6",
        error.message,
        dmesg=error.trace or tuple(lines[-_TAIL_LINES:]),
        phase=error.step or None,
        kind=error.kind,
        subject=error.subject,
    )
    return replace(
        result, verdict=Verdict.FAIL, findings=(finding,), reason=error.message, hint=error.hint
    )


def _explained(issues: KnownIssues, prepared: Prepared, result: RunResult) -> RunResult:
    """The result with the known issues of its scenario, and which of them covers each finding."""
    if result.kernel.release is None or not issues.issues:
        return result
    scenario = prepared.as_run(result.drivers)
    owners = {one.name: one.expected for one in result.owners} or prepared.expectations(
        result.policy
    )[0].owners
    case = Circumstances(scenario, prepared.state, result.policy, owners, result.load)
    release = result.kernel.release
    result = replace(
        result, issues=tuple(issue.name for issue in issues.about(case, release)), known_issue=None
    )
    if result.verdict is not Verdict.FAIL:
        return result
    covering = issues.explain(result.findings, case, release)
    findings = tuple(
        replace(finding, known=issue.name if issue else None)
        for finding, issue in zip(result.findings, covering, strict=True)
    )
    why = dict.fromkeys(issue.why.strip() for issue in covering if issue)
    return replace(
        result,
        findings=findings,
        known_issue=None if None in covering else "\n".join(why) or None,
    )
