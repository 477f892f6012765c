# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a scenario's steps after boot, and judge the guest after each once its owners settle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from harness.contract.expected import Expected
from harness.contract.module_holders import HeldError, check_unloadable, workable_orders
from harness.contract.observation import Observation
from harness.contract.result import Finding, RunResult, StepOutcome, Verdict
from harness.guest.post_boot import (
    RegionMakeup,
    StepDone,
    StepError,
    binding_command,
    commands_of,
    read_module_holders,
    read_region_makeup,
    region_over,
    reload_commands,
    run_commands,
    run_while_pending,
)
from harness.runs.guest_run import RunningGuest
from harness.scenario.post_boot_steps import GuestStep

# Rules whose violation after a step means that the outcome has changed: rule 7.
_OUTCOME = ("1", "2", "3", "5", "node", "use")


@dataclass(frozen=True)
class _Action:
    """A step, or one of the orders of a step that stands for several."""

    step: GuestStep
    title: str
    order: tuple[str, ...] = ()


@dataclass
class _Progress:
    """The state of a guest between its steps.

    Attributes:
        observation: the last one.
        reported: findings so far, which are not reported again.
        makeups: of regions that steps have destroyed, by decoder.
    """

    observation: Observation
    reported: set[tuple[object, ...]]
    makeups: dict[str, RegionMakeup | None] = field(default_factory=dict)


def run_steps(
    running: RunningGuest,
    result: RunResult,
    expected: Sequence[Expected],
    observation: Observation,
) -> RunResult:
    """Run the steps of `guest.then`, judging after each, up to the first that breaks the contract.

    A guest that has broken the contract before gets no step, known kernel messages aside.

    Args:
        running: a guest whose owners have settled.
        result: the judgement so far.
        expected: what is expected after each step.
        observation: of the guest before the first step.

    Raises:
        GuestCrashedError: the guest's kernel crashed, with the step.
        GuestLostError: the guest is gone.
        DeadlineExpiredError: a step does not end, or the owners never settle.
    """
    steps = running.run.prepared.case.scenario.guest.then
    if not steps:
        return result
    progress = _Progress(observation, set(map(_identity, result.findings)))
    done: list[StepOutcome] = []
    with running.timings.phase("steps"):
        for step, after in zip(steps, expected, strict=True):
            if not _goes_on(running, result):
                done.append(StepOutcome(str(step), "not_done"))
                continue
            for outcome in _outcomes(running, progress, step, after, len(done)):
                done.append(outcome)
                result = replace(result, findings=(*result.findings, *outcome.findings))
                if not _goes_on(running, result):
                    break
    verdict = Verdict.FAIL if result.findings else result.verdict
    return replace(result, verdict=verdict, steps=tuple(done))


def _goes_on(running: RunningGuest, result: RunResult) -> bool:
    """True if the next step makes sense: nothing is broken except by known kernel messages.

    A range with another owner than expected ends the steps, known or not.
    """
    if not result.findings:
        return result.verdict is Verdict.PASS
    if any(finding.rule != "6" for finding in result.findings):
        return False
    explained = running.run.explained(replace(result, verdict=Verdict.FAIL))
    return explained.known_issue is not None


def _identity(finding: Finding) -> tuple[object, ...]:
    return (finding.rule, finding.text, finding.range, finding.dmesg)


def _outcomes(
    running: RunningGuest, progress: _Progress, step: GuestStep, expected: Expected, before: int
) -> Iterator[StepOutcome]:
    """The outcome of each action of a step."""
    try:
        actions = _actions(running, step)
    except HeldError as error:
        finding = Finding("step", f"{step}: {error}", kind="module_held", subject=str(step))
        yield StepOutcome(str(step), "broke", (), (finding,))
        return
    is_last = step is running.run.prepared.case.scenario.guest.then[-1]
    for number, action in enumerate(actions, before + 1):
        folder = f"step-{number:02d}-{step.verb}"
        problem = _run(running, progress, action, folder)
        running.guest.check()
        progress.observation = running.observe(
            expected.owners, folder, leaks=is_last and action is actions[-1]
        )
        judgement = running.judge(progress.observation, expected)
        new = [one for one in judgement.findings if _identity(one) not in progress.reported]
        progress.reported.update(map(_identity, new))
        findings = (
            *([problem] if problem else []),
            *(_after_step(finding, number, action.title) for finding in new),
        )
        yield StepOutcome(
            action.title, "broke" if findings else "held", judgement.owners, findings, folder
        )


def _after_step(finding: Finding, number: int, step: str) -> Finding:
    rule = "7" if finding.rule in _OUTCOME else finding.rule
    text = f"after step {number}, {step}: {finding.text}"
    return replace(finding, rule=rule, text=text, phase=finding.phase or step)


def _actions(running: RunningGuest, step: GuestStep) -> tuple[_Action, ...]:
    """A step's actions.

    Raises:
        HeldError: a module that the step unloads is in use.
    """
    if step.reload_every_order is not None:
        holders = read_module_holders(running.guest.shell)
        orders = workable_orders(step.reload_every_order, holders)
        return tuple(_Action(step, f"reload {', '.join(order)}", order) for order in orders)
    if step.reload is not None or (step.unload is not None and step.fails is None):
        check_unloadable(step.modules(), read_module_holders(running.guest.shell))
    return (_Action(step, str(step), step.reload or ()),)


def _run(
    running: RunningGuest, progress: _Progress, action: _Action, folder: str
) -> Finding | None:
    """Run an action and record its commands; returns what failed."""
    try:
        done = _run_commands(running, progress, action)
    except StepError as error:
        text = f"{action.title}: {error}"
        done = StepDone("", Finding("step", text, kind="impossible", subject=action.title))
    running.evidence.text(f"{folder}/commands", f"{action.title}\n\n{done.transcript}")
    return done.problem


def _run_commands(running: RunningGuest, progress: _Progress, action: _Action) -> StepDone:
    shell, step, state = running.guest.shell, action.step, running.run.prepared.state
    if step.while_pending is not None:
        return run_while_pending(shell, [binding_command(one) for one in step.while_pending])
    if step.destroy_region is not None:
        region = region_over(step.destroy_region, state, progress.observation)
        progress.makeups[step.destroy_region] = read_region_makeup(shell, region)
    if action.order:
        return run_commands(shell, reload_commands(action.order, progress.observation))
    return run_commands(shell, commands_of(step, progress.observation, state, progress.makeups))
