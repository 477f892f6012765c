# SPDX-License-Identifier: GPL-2.0-or-later
"""Run one guest from its start to its verdict."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

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
from harness.core.kernel import Kernel
from harness.core.kernel_modules import module_name
from harness.guest.modules import load_modules, remove_modules
from harness.runs.boot import BootedGuest
from harness.runs.evidence import JUDGING, Evidence, Timings, new_evidence
from harness.runs.guest_run import GuestRun, RunningGuest
from harness.runs.hang_diagnosis import explain_silence
from harness.runs.post_boot import run_steps
from harness.runs.prepare import Prepared
from harness.scenario.module_load import Load
from harness.scenario.scenario import Ownership

_TAIL_LINES = 60
_TRIES = 3
_DECODED = "decoded.txt"

StartGuest = Callable[[Evidence, Timings], AbstractContextManager[BootedGuest]]
"""Starts a guest of a prepared scenario, ready for its steps."""


def run_guest(run: GuestRun, start: StartGuest) -> RunResult:
    """Start a guest, load modules, do the scenario's steps, and judge.

    Everything that happens after the first evidence is written ends in a verdict. A guest that
    missed a transient state that a step needs is repeated, at most twice.

    Raises:
        UsageError: the evidence cannot be written; nothing was started.
    """
    notes: tuple[str, ...] = ()
    for retried in range(_TRIES):
        result, missed = _one_guest(run, start)
        result = replace(result, notes=(*notes, *result.notes), retried=retried)
        if missed is None:
            break
        notes += (f"repeated with a new guest: {missed.message}; evidence: {result.evidence}",)
        run = replace(run, prepare_seconds=0.0)
    return result


def _one_guest(run: GuestRun, start: StartGuest) -> tuple[RunResult, MomentMissedError | None]:
    """The result of one guest, and the transient state that it missed."""
    timings = Timings({"prepare": run.prepare_seconds})
    missed = None
    bootable = run.prepared.bootable
    kernel = bootable.kernel
    evidence = new_evidence(run.judging.evidence_root, run.prepared.case.name, kernel.release)
    result = replace(
        run.before,
        kernel=RunKernel(kernel.release, bootable.config_sha256),
        accel=bootable.accel,
        evidence=str(evidence.folder),
        load=run.load,
    )
    try:
        with start(evidence, timings) as guest:
            result = replace(result, start=guest.start)
            try:
                result = _run_steps(RunningGuest(run, guest, evidence, timings), result)
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
        result = with_decoded_traces(result, kernel, evidence)
    result = run.explained(result)
    evidence.json("verdict.json", result.as_json())
    return result, missed


def ended(result: RunResult, verdict: Verdict, error: HarnessError) -> RunResult:
    """The result of a run that an error has ended."""
    where = f"{error.where}: " if error.where else ""
    return replace(result, verdict=verdict, reason=f"{where}{error.message}", hint=error.hint)


def _run_steps(running: RunningGuest, result: RunResult) -> RunResult:
    """Load the modules, judge, and do the scenario's further steps."""
    prepared, shell = running.run.prepared, running.guest.shell
    before_load = prepared.expectations(result.policy)[0].owners
    with running.timings.phase("load"):
        remove_modules(shell, prepared.case.scenario.guest.missing)
        failed_steps = load_modules(shell, running.run.load)
    with running.timings.phase("observe"):
        observation = running.observe(before_load, "observation")
    require_kernel(prepared.bootable.kernel.release, observation)
    if not failed_steps:
        require_loaded(running.run.load, prepared.bootable.initramfs.modules, observation)
    _refuse(window_problems(observation, prepared.state))
    running.evidence.json(JUDGING, running.judging_inputs(observation))
    first, *later = prepared.expectations(result.policy, observation.modules)
    judgement = running.judge(observation, first)
    findings = (*failed_steps, *judgement.findings)
    if not findings:
        _refuse(absent_windows(observation, prepared.state))
    result = replace(
        result,
        drivers=tuple(name for name in DRIVER_OPTIONS if name in observation.modules),
        verdict=Verdict.FAIL if findings else judgement.verdict,
        owners=judgement.owners,
        findings=findings,
        notes=(
            *(f"ignored, before the first step: {one}" for one in judgement.earlier),
            *_loaded_besides(prepared, observation, first.owners, before_load),
            *(driverless(observation, first.owners, prepared.state) if findings else ()),
        ),
    )
    return run_steps(running, result, later, observation)


def _loaded_besides(
    prepared: Prepared,
    observation: Observation,
    expected: Mapping[str, Ownership],
    before_load: Mapping[str, Ownership],
) -> tuple[str, ...]:
    """A note where modules that the scenario does not name change the expected owners."""
    if expected == before_load:
        return ()
    named = {module_name(name) for name in prepared.case.scenario.guest.modules}
    loaded = prepared.as_run(observation.modules).guest.modules
    besides = [name for name in loaded if name not in named]
    cause = f"{', '.join(besides)} loaded as well" if besides else "the kernel's configuration"
    owners = ", ".join(f"{name} {owner}" for name, owner in expected.items())
    return (f"expected owners because of what the guest has ({cause}): {owners}",)


def require_loaded(load: Load, files: Collection[str], observation: Observation) -> None:
    """Refuse a guest in which modprobe succeeded and the module is not loaded.

    Raises:
        GuestLostError: a module with a file in the guest is not in its /proc/modules.
    """
    names = dict.fromkeys(module_name(name) for name in load.modules)
    absent = [name for name in names if name in files and name not in observation.modules]
    if absent:
        raise GuestLostError(
            f"every modprobe succeeded, but /proc/modules lacks {', '.join(absent)}",
            hint="does something in the guest unload modules? see observation/ in the evidence",
        )


def require_kernel(release: str, observation: Observation) -> None:
    """Refuse a guest that runs another kernel than the requested one.

    Raises:
        GuestLostError: its release differs.
    """
    if observation.release != release:
        raise GuestLostError(
            f"the guest runs Linux {observation.release!r} instead of {release}",
            hint="does the image belong to these modules? see kernel.json in the evidence",
        )


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise PreflightError(
            "; ".join(problems), hint="the kernel or its ACPI tables differ from the requested ones"
        )


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


def with_decoded_traces(result: RunResult, kernel: Kernel, evidence: Evidence) -> RunResult:
    """Decode the traces of all findings into them and into `decoded.txt`, or note why not."""
    # Not imported for a run without a trace, as nearly all are.
    from harness.kernels.build.decode_trace import NotDecodableError, decode_trace, has_code

    findings: list[Finding] = []
    decoded: list[str] = []
    for finding in result.findings:
        lines = [line for text in finding.dmesg for line in text.splitlines()]
        if finding.rule in ("6", "step") and has_code(lines):
            try:
                finding = replace(finding, decoded=decode_trace(kernel, lines))
            except NotDecodableError as error:
                why = f"traces of {kernel.spec} are not decoded: {error.message} ({error.hint})"
                evidence.text(_DECODED, f"{why}\n")
                return replace(result, notes=(*result.notes, why))
            decoded += [finding.text, *finding.decoded, ""]
        findings.append(finding)
    if decoded:
        evidence.text(_DECODED, "\n".join(decoded))
    return replace(result, findings=tuple(findings))
