# SPDX-License-Identifier: GPL-2.0-or-later
"""One run: a machine is started, its guest does the scenario's steps, and is judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from harness.errors import (
    GuestCrashedError,
    HarnessError,
    InconclusiveError,
    PreflightError,
    UnbuildableError,
    UsageError,
)
from harness.guest.observe import observe, read_sections
from harness.guest.ssh import GuestShell
from harness.guest.steps import (
    Settling,
    load_module,
    observe_settled,
    scan_for_leaks,
    take_away_modules,
)
from harness.kernels.stored import kernel_in_use
from harness.model.judge import judge
from harness.model.kernel_request import KernelRequest, as_request
from harness.model.known_issues import KnownIssues
from harness.model.preflight import window_problems
from harness.model.scenario import Policy
from harness.model.verdict import Finding, RunResult, Verdict
from harness.runs.booted_guest import BootedGuest, booted_guest
from harness.runs.catalogue import Case
from harness.runs.evidence import Evidence, new_evidence
from harness.runs.prepare import Host, Prepared, prepare_case, request_for
from harness.runs.timings import Timings

_TAIL_LINES = 60
_SETTLING = Settling()


def run_scenario(
    host: Host,
    case: Case,
    kernel: str | KernelRequest,
    policy: Policy,
    evidence_root: Path,
    known_issues: KnownIssues,
    *,
    boot_seconds: float = 120.0,
    settling: Settling = _SETTLING,
) -> RunResult:
    """Run a scenario on a kernel and judge it.

    Whatever happens after the first evidence is written ends in a verdict.

    Args:
        host: this machine.
        case: the scenario.
        kernel: the kernel that is asked for; what the scenario needs built is added to it.
        policy: whose rules are judged.
        evidence_root: folder in which the run's own folder is made.
        known_issues: failures that have a reason.
        boot_seconds: how long the guest may take to become ready.
        settling: how long nothing must change before the guest is judged.

    Raises:
        UsageError: the input is wrong, or this machine lacks something; nothing was started.
    """
    timings = Timings()
    request = request_for(case, as_request(kernel))
    result = RunResult(scenario=case.name, kernel_spec=str(request), policy=policy)
    try:
        with timings.phase("prepare"):
            prepared = prepare_case(host, case, request)
    except UnbuildableError as error:
        return _ended(result, Verdict.UNBUILDABLE, error)
    except InconclusiveError as error:
        return _ended(result, Verdict.INCONCLUSIVE, error)
    found = prepared.bootable.kernel
    evidence = new_evidence(evidence_root, case.name, found.release)
    result = replace(
        result,
        kernel_release=found.release,
        config_sha256=prepared.bootable.config_sha256,
        accel=prepared.bootable.accel,
        evidence=str(evidence.folder),
    )
    try:
        with (
            kernel_in_use(found),
            booted_guest(host, prepared, evidence, timings, boot_seconds) as guest,
        ):
            result = _run_steps(guest, prepared, result, evidence, timings, settling)
    except GuestCrashedError as error:
        result = _crashed(result, error, evidence)
    except UsageError:
        raise
    except HarnessError as error:
        result = _ended(result, Verdict.INCONCLUSIVE, error)
    result = replace(result, timings=timings.seconds())
    result = replace(result, known_issue=_known(known_issues, result))
    evidence.json("verdict.json", result.as_json())
    return result


def _run_steps(
    guest: BootedGuest,
    prepared: Prepared,
    result: RunResult,
    evidence: Evidence,
    timings: Timings,
    settling: Settling,
) -> RunResult:
    scenario = prepared.case.scenario
    expected = scenario.expect.owners(result.policy)
    settling = settling.slower(prepared.bootable.patience)
    failed_steps: list[Finding] = []
    with timings.phase("load"):
        take_away_modules(guest.shell, scenario.guest.missing)
        for name in scenario.guest.load:
            problem = load_module(guest.shell, name)
            if problem is not None:
                failed_steps.append(Finding("step", problem))
    wanted = tuple(
        one.range
        for one in prepared.state.named_ranges()
        if one.name in expected and expected[one.name].use == "system_ram"
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
    problems = window_problems(observation, prepared.state)
    if problems:
        raise PreflightError(
            "; ".join(problems), hint="the kernel or its ACPI tables are not what was asked for"
        )
    judgement = judge(observation, prepared.state, expected, scenario.expect.dmesg)
    findings = (*failed_steps, *judgement.findings)
    return replace(
        result,
        verdict=Verdict.FAIL if findings else judgement.verdict,
        owners=judgement.owners,
        findings=findings,
    )


def _observe(shell: GuestShell, evidence: Evidence) -> dict[str, str]:
    sections = observe(shell)
    for name, content in sections.items():
        if name != "end":
            evidence.text(f"observation/{name}", content)
    return sections


def _crashed(result: RunResult, error: GuestCrashedError, evidence: Evidence) -> RunResult:
    try:
        lines = evidence.path("serial.log").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    finding = Finding("6", error.message, None, (), tuple(lines[-_TAIL_LINES:]))
    return replace(
        result, verdict=Verdict.FAIL, findings=(finding,), reason=error.message, hint=error.hint
    )


def _ended(result: RunResult, verdict: Verdict, error: HarnessError) -> RunResult:
    where = f"{error.where}: " if error.where else ""
    return replace(result, verdict=verdict, reason=f"{where}{error.message}", hint=error.hint)


def _known(issues: KnownIssues, result: RunResult) -> str | None:
    if result.verdict is not Verdict.FAIL or result.kernel_release is None:
        return None
    explained = issues.explain(
        result.scenario, result.kernel_release, result.policy, result.findings
    )
    return "\n".join(issue.why.strip() for issue in explained) or None
