# SPDX-License-Identifier: GPL-2.0-or-later
"""A bisection as text for a person, and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from harness.bisect.run import Ends, verdicts_text
from harness.bisect.search import Bisected, Commit, Judged, Outcome, Step, steps_left
from harness.scenario.kernel_request import KernelRequest

_MOST_CANDIDATES = 40


def begin_line(ends: Ends, count: int) -> str:
    """What is about to be done.

    Args:
        ends: good and bad.
        count: how many commits may be the first.
    """
    what = "first good" if ends.first_good else "first bad"
    commits = "1 commit" if count == 1 else f"{count} commits"
    return (
        f"looking for the {what} of {commits}, from {ends.old.short} to {ends.new.short}: "
        f"2 ends and about {steps_left(count)} steps"
    )


def step_lines(step: Step, again: bool = False) -> tuple[str, ...]:
    """One step, and below it what else is to be known of its scenarios.

    Args:
        step: which.
        again: it was made before an interruption.
    """
    verdicts = "; ".join(
        verdicts_text(one) if len(step.judged) == 1 else f"{one.scenario} {verdicts_text(one)}"
        for one in step.judged
    )
    head = f"{step.outcome.value} {step.commit.short} {verdicts}"
    times = f"built in {step.build_seconds:.1f} s, judged in {step.run_seconds:.1f} s"
    parts = [head, times, *([step.role] if step.role else [])]
    if again:
        parts.append("from before")
    lines = [f"{', '.join(parts)}: {step.commit.subject}"]
    for one in step.judged:
        lines += [f"    {line}" for line in _more(one)]
    return tuple(lines)


def judged_lines(judged: Sequence[Judged]) -> tuple[str, ...]:
    """What scenarios say about one kernel."""
    lines = []
    for one in judged:
        lines.append(f"{one.outcome.value} {one.scenario}: {verdicts_text(one)}")
        lines += [f"    {line}" for line in _more(one)]
        lines += [f"    evidence: {path}" for path in one.evidence]
    return tuple(lines)


def _more(judged: Judged) -> list[str]:
    lines = []
    if judged.other_failure:
        broke = ", ".join(judged.failures)
        bad = judged.outcome is Outcome.BAD
        tail = "; counts as bad, --same-failure leaves such commits out" if bad else ""
        lines.append(f"{judged.scenario} fails otherwise than the bad end: {broke}{tail}")
    elif judged.failures:
        lines.append(f"{judged.scenario}: {', '.join(judged.failures)}")
    if judged.reason:
        lines += [f"{judged.scenario}: {judged.reason}".splitlines()[0]]
    return lines


def result_lines(result: Bisected, kernel: KernelRequest | None) -> tuple[str, ...]:
    """What a bisection ended with.

    Args:
        result: of the bisection.
        kernel: of the commit that was found, for a command line that shows it.
    """
    what = f"first {result.looking_for.value} commit"
    count = len(result.steps)
    total = sum(step.seconds for step in result.steps)
    ending = f"{count} steps, {total:.1f} s"
    if result.first is not None:
        lines = [f"{what}: {_named(result.first)}", f"    {ending}"]
        if kernel is not None:
            names = " ".join(map(shlex.quote, result.scenarios))
            lines.append(f"    harness run {names} --kernel {kernel}")
        lines += [f"    evidence: {one}" for one in _evidence(result)]
        return tuple(lines)
    lines = [
        f"the {what} is one of these {len(result.candidates)}, of which only the last is known to "
        f"be {result.looking_for.value}; nobody can tell of the others:"
    ]
    shown = result.candidates
    if len(shown) > _MOST_CANDIDATES:
        shown = shown[:_MOST_CANDIDATES]
    lines += [f"    {_named(one)}" for one in shown]
    if len(result.candidates) > len(shown):
        lines.append(f"    and {len(result.candidates) - len(shown)} more, see --json")
    lines.append(f"    {ending}")
    lines.append("    hint: look at the evidence of their runs, or name ends that leave them out")
    return tuple(lines)


def _named(commit: Commit) -> str:
    name = commit.name if len(commit.name) >= 40 else commit.short
    return f"{name} {commit.subject}"


def _evidence(result: Bisected) -> tuple[str, ...]:
    return tuple(path for one in result.changed.judged for path in one.evidence[:1])


def result_json(result: Bisected) -> dict[str, Any]:
    """The object that `harness bisect --json` writes."""
    return {
        "looking_for": f"first {result.looking_for.value}",
        "good": commit_json(result.good),
        "bad": commit_json(result.bad),
        "scenarios": list(result.scenarios),
        "first": commit_json(result.first) if result.first else None,
        "candidates": [commit_json(one) for one in result.candidates],
        "steps": [_step_json(one) for one in result.steps],
    }


def commit_json(commit: Commit) -> dict[str, str]:
    """A commit in JSON."""
    return {"commit": commit.name, "short": commit.short, "subject": commit.subject}


def _step_json(step: Step) -> dict[str, Any]:
    return {
        **commit_json(step.commit),
        "role": step.role,
        "outcome": step.outcome.value,
        "scenarios": [
            {
                "scenario": one.scenario,
                "outcome": one.outcome.value,
                "verdicts": list(one.verdicts),
                "failures": list(one.failures),
                "other_failure": one.other_failure,
                "reason": one.reason,
                "evidence": list(one.evidence),
            }
            for one in step.judged
        ],
        "seconds": {
            "build": round(step.build_seconds, 3),
            "run": round(step.run_seconds, 3),
            "overhead": round(step.overhead, 3),
            "total": round(step.seconds, 3),
        },
    }
