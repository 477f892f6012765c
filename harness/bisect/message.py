# SPDX-License-Identifier: GPL-2.0-or-later
"""The text and the JSON of a bisection."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any

import msgspec

from harness.bisect.judge import Judged, Outcome
from harness.bisect.range import Commit, CommitRange
from harness.bisect.run import Bisected, Step, verdicts_text

_MOST_CANDIDATES = 40


def begin_line(ends: CommitRange, count: int) -> str:
    """The first line.

    Args:
        ends: good and bad.
        count: how many commits can be the first, at least 1.
    """
    what = "first good" if ends.first_good else "first bad"
    commits = "1 commit" if count == 1 else f"{count} commits"
    return (
        f"looking for the {what} of {commits}, from {ends.old.short} to {ends.new.short}: "
        f"2 ends and about {math.ceil(math.log2(count))} steps"
    )


def step_lines(step: Step, again: bool = False) -> tuple[str, ...]:
    """A line for a step, and below it the failures and reasons of its scenarios.

    Args:
        step: the step.
        again: it was made before an interruption.
    """
    verdicts = "; ".join(
        verdicts_text(judged)
        if len(step.judged) == 1
        else f"{judged.scenario} {verdicts_text(judged)}"
        for judged in step.judged
    )
    parts = [
        f"{step.outcome.value} {step.commit.short} {verdicts}",
        f"built in {step.build_seconds:.1f} s, judged in {step.run_seconds:.1f} s",
        *([step.role] if step.role else []),
        *(["from before"] if again else []),
    ]
    details = [f"    {line}" for judged in step.judged for line in _details(judged)]
    return (f"{', '.join(parts)}: {step.commit.subject}", *details)


def judged_lines(judged: Sequence[Judged]) -> tuple[str, ...]:
    """The outcomes of scenarios on one kernel."""
    lines = []
    for scenario in judged:
        lines.append(f"{scenario.outcome.value} {scenario.scenario}: {verdicts_text(scenario)}")
        lines += [f"    {line}" for line in _details(scenario)]
        lines += [f"    evidence: {path}" for path in scenario.evidence]
    return tuple(lines)


def _details(judged: Judged) -> list[str]:
    lines, failures = [], ", ".join(judged.failures)
    if judged.other_failure:
        bad = judged.outcome is Outcome.BAD
        tail = "; counts as bad, --same-failure leaves such commits out" if bad else ""
        lines.append(f"{judged.scenario} fails differently from the bad end: {failures}{tail}")
    elif failures:
        lines.append(f"{judged.scenario}: {failures}")
    if judged.reason:
        lines.append(f"{judged.scenario}: {judged.reason}".splitlines()[0])
    return lines


def result_lines(result: Bisected, run_command: bool = True) -> tuple[str, ...]:
    """The result, with the command that runs the scenarios on the first commit."""
    what = f"first {result.looking_for.value} commit"
    total = sum(step.seconds for step in result.steps)
    ending = f"    {len(result.steps)} steps, {total:.1f} s"
    first = result.first
    if first is not None:
        lines = [f"{what}: {_named(first)}", ending]
        if run_command:
            names = " ".join(map(shlex.quote, result.scenarios))
            lines.append(f"    harness run {names} --kernel {result.ends.kernel(first)}")
        steps = [step for step in result.steps if step.commit.hash == first.hash]
        lines += [
            f"    evidence: {path}"
            for step in steps
            for judged in step.judged
            for path in judged.evidence[:1]
        ]
        return tuple(lines)
    count = len(result.candidates)
    lines = [
        f"the {what} is one of these {count}; only the last is known to be "
        f"{result.looking_for.value}, the others could not be judged:"
    ]
    lines += [f"    {_named(commit)}" for commit in result.candidates[:_MOST_CANDIDATES]]
    if count > _MOST_CANDIDATES:
        lines.append(f"    and {count - _MOST_CANDIDATES} more, see --json")
    hint = "    hint: look at the evidence of their runs, or name ends that leave them out"
    return (*lines, ending, hint)


def _named(commit: Commit) -> str:
    return f"{commit.hash if commit.patches is None else commit.short} {commit.subject}"


def result_json(result: Bisected) -> dict[str, Any]:
    """The object that `harness bisect --json` writes."""
    candidates = () if result.first else result.candidates
    return {
        "looking_for": f"first {result.looking_for.value}",
        "good": _commit_json(result.ends.good),
        "bad": _commit_json(result.ends.bad),
        "scenarios": list(result.scenarios),
        "first": _commit_json(result.first) if result.first else None,
        "candidates": [_commit_json(commit) for commit in candidates],
        "steps": [_step_json(step) for step in result.steps],
    }


def _commit_json(commit: Commit) -> dict[str, str]:
    return {"commit": commit.name, "short": commit.short, "subject": commit.subject}


def _step_json(step: Step) -> dict[str, Any]:
    seconds = {
        "build": step.build_seconds,
        "run": step.run_seconds,
        "overhead": step.overhead,
        "total": step.seconds,
    }
    return {
        **_commit_json(step.commit),
        "role": step.role,
        "outcome": step.outcome.value,
        "scenarios": msgspec.to_builtins(step.judged),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
