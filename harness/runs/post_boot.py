# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's life after boot: the scenario's further steps, each judged once its owners settle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from harness.contract.expected import Expected
from harness.contract.module_holders import HeldError, check_unloadable, workable_orders
from harness.contract.observation import Observation
from harness.contract.result import Finding, RunResult, StepOutcome, Verdict
from harness.guest.observe import observe, read_sections
from harness.guest.post_boot import (
    StepDone,
    read_module_holders,
    read_region_makeup,
    run_commands,
    run_while_pending,
)
from harness.guest.post_boot_plan import (
    Command,
    RegionMakeup,
    StepError,
    binding_command,
    commands_of,
    region_over,
    reload_commands,
)
from harness.guest.settle import Settling, observe_settled, scan_for_leaks
from harness.runs.boot import BootedGuest
from harness.runs.evidence import Evidence
from harness.runs.judged import judge_guest, with_undecoded
from harness.runs.prepare import Prepared
from harness.runs.timings import Timings
from harness.scenario.post_boot_steps import GuestStep

# Rules whose break after a step means that the outcome is no longer the same.
_OUTCOME = ("1", "2", "3", "5", "node", "use")


@dataclass
class Life:
    """A guest whose steps are done one after the other.

    Attributes:
        guest: the guest.
        prepared: the scenario.
        evidence: each step gets a folder in it.
        settling: how long nothing must change before the guest is judged.
        observation: what was observed last.
        is_known: whether known issues explain every finding of a result.
        reported: what was found before, which is not found again.
        makeups: of regions that steps have destroyed, by decoder.
    """

    guest: BootedGuest
    prepared: Prepared
    evidence: Evidence
    settling: Settling
    observation: Observation
    is_known: Callable[[RunResult], bool]
    reported: set[tuple[object, ...]] = field(default_factory=set)
    makeups: dict[str, RegionMakeup | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Act:
    """A step, or one of the orders that it stands for."""

    step: GuestStep
    title: str
    order: tuple[str, ...] = ()


def live_on(
    life: Life, result: RunResult, expected: Sequence[Expected], timings: Timings
) -> RunResult:
    """Do the steps of `guest.then`, judging after each, up to the first after which it is broken.

    Nothing is done to a guest that had broken the contract before, except by known messages.

    Args:
        life: a guest whose owners have settled.
        result: the judgement so far.
        expected: what must be so after each step.
        timings: gets the phase `steps`.

    Raises:
        GuestCrashedError: the guest's kernel broke; it knows in which step.
        GuestLostError: the guest is gone.
        DeadlineExpiredError: a step does not end, or its owners never settle.
    """
    steps = life.prepared.case.scenario.guest.then
    if not steps:
        return result
    life.reported.update(map(_identity, result.findings))
    done: list[StepOutcome] = []
    with timings.phase("steps"):
        for step, after in zip(steps, expected, strict=True):
            if not _goes_on(result, life.is_known):
                done.append(StepOutcome(str(step), "not_done"))
                continue
            for outcome in _outcomes(life, step, after, len(done)):
                done.append(outcome)
                result = replace(result, findings=(*result.findings, *outcome.findings))
                if not _goes_on(result, life.is_known):
                    break
    verdict = Verdict.FAIL if result.findings else result.verdict
    return replace(result, verdict=verdict, steps=tuple(done))


def _goes_on(result: RunResult, is_known: Callable[[RunResult], bool]) -> bool:
    """Whether the guest is still what the next step is about.

    It is where nothing is broken but by kernel messages that are known. A range with another owner
    than expected ends the steps, known or not.
    """
    if not result.findings:
        return result.verdict is Verdict.PASS
    return all(one.rule == "6" for one in result.findings) and is_known(
        replace(result, verdict=Verdict.FAIL)
    )


def _identity(finding: Finding) -> tuple[object, ...]:
    return (finding.rule, finding.text, finding.range, finding.dmesg)


def _outcomes(
    life: Life, step: GuestStep, expected: Expected, before: int
) -> Iterator[StepOutcome]:
    """The outcome of a step; of several, for one that stands for several orders."""
    try:
        acts = _acts(life, step)
    except HeldError as error:
        finding = Finding("step", f"{step}: {error}", kind="module_held", subject=str(step))
        yield StepOutcome(str(step), "broke", (), (finding,))
        return
    is_last = step is life.prepared.case.scenario.guest.then[-1]
    for number, act in enumerate(acts, before + 1):
        ends = is_last and act is acts[-1]
        yield _outcome(life, act, expected, number, ends=ends)


def _acts(life: Life, step: GuestStep) -> tuple[_Act, ...]:
    if step.reload_every_order is not None:
        holders = read_module_holders(life.guest.shell)
        orders = workable_orders(step.reload_every_order, holders)
        return tuple(_Act(step, f"reload {', '.join(order)}", order) for order in orders)
    if step.reload is not None or (step.unload is not None and step.fails is None):
        check_unloadable(step.modules(), read_module_holders(life.guest.shell))
    return (_Act(step, str(step), step.reload or ()),)


def _outcome(life: Life, act: _Act, expected: Expected, number: int, *, ends: bool) -> StepOutcome:
    folder = f"step-{number:02d}-{act.step.verb}"
    try:
        done = _do(life, act)
    except StepError as error:
        text = f"{act.title}: {error}"
        done = StepDone("", Finding("step", text, kind="impossible", subject=act.title))
    life.evidence.text(f"{folder}/commands", f"{act.title}\n\n{done.transcript}")
    findings = [done.problem] if done.problem else []
    wanted = tuple(
        one.range
        for one in life.prepared.state.judged_ranges()
        if one.name in expected.owners and expected.owners[one.name].use == "system_ram"
    )
    life.guest.check()

    def settle() -> dict[str, str]:
        return observe_settled(
            life.guest.shell, wanted, life.settling, lambda: _observe(life, folder)
        )

    sections = settle()
    if ends and life.prepared.bootable.finds_leaks:
        life.evidence.text(f"{folder}/kmemleak", scan_for_leaks(life.guest.shell))
        sections = settle()
    life.guest.check()
    life.observation = with_undecoded(life.guest, life.prepared, read_sections(sections))
    judgement = judge_guest(life.guest, life.prepared, life.observation, expected)
    new = [one for one in judgement.findings if _identity(one) not in life.reported]
    life.reported.update(map(_identity, new))
    findings += [
        replace(
            one,
            rule="7" if one.rule in _OUTCOME else one.rule,
            text=f"after step {number}, {act.title}: {one.text}",
            phase=one.phase or act.title,
        )
        for one in new
    ]
    return StepOutcome(
        act.title,
        "broke" if findings else "held",
        judgement.owners,
        tuple(findings),
        folder,
    )


def _do(life: Life, act: _Act) -> StepDone:
    shell, step = life.guest.shell, act.step
    if step.while_pending is not None:
        return run_while_pending(shell, [binding_command(one) for one in step.while_pending])
    if step.destroy_region is not None:
        region = region_over(step.destroy_region, life.prepared.state, life.observation)
        life.makeups[step.destroy_region] = read_region_makeup(shell, region)
    return run_commands(shell, _commands(life, act))


def _commands(life: Life, act: _Act) -> tuple[Command, ...]:
    if act.order:
        return reload_commands(act.order, life.observation)
    return commands_of(act.step, life.observation, life.prepared.state, life.makeups)


def _observe(life: Life, folder: str) -> dict[str, str]:
    sections = observe(life.guest.shell)
    for name, content in sections.items():
        if name != "end":
            life.evidence.text(f"{folder}/{name}", content)
    return sections
