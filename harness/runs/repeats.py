# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare guests that were run with the same load: verdict, owners, findings and steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from harness.contract.failure_signature import failure_at
from harness.contract.result import Difference, OwnedRange, RunResult
from harness.scenario.module_load import Load

_MOST_LINES = 20

Parts = Mapping[str, tuple[str, ...]]
"""The compared lines of one guest, by part of its result."""


def compared(combined: RunResult, results: Sequence[RunResult]) -> RunResult:
    """Add the differences between guests with the same load to the result of their scenario.

    Args:
        combined: the scenario's.
        results: those of its guests, in the order of `combined.attempts`.
    """
    by_load: dict[Load, list[tuple[int, RunResult]]] = {}
    for number, result in enumerate(results, 1):
        if result.load is not None:
            by_load.setdefault(result.load, []).append((number, result))
    repeated = [guests for guests in by_load.values() if len(guests) > 1]
    found = [difference for guests in repeated for difference in _differences(guests)]
    return replace(
        combined,
        compared=sum(map(len, repeated)),
        differences=tuple(sorted(found, key=lambda one: one.guest)),
    )


def _differences(guests: Sequence[tuple[int, RunResult]]) -> Iterator[Difference]:
    """Compare each guest with most of them; with the first one if none is more frequent."""
    parts = [_parts(result) for _, result in guests]
    for name in parts[0]:
        counts = Counter(part[name] for part in parts)  # in order of appearance
        usual, count = counts.most_common(1)[0]
        for (number, result), part in zip(guests, parts, strict=True):
            if part[name] != usual:
                here, there = Counter(part[name]), Counter(usual)
                yield Difference(
                    *(number, result.evidence, name, count),
                    only_here=_shortened((here - there).elements()),
                    only_there=_shortened((there - here).elements()),
                )


def _parts(result: RunResult) -> Parts:
    steps = result.steps
    return {
        "verdict": (result.verdict.name,),
        "owners": tuple(_owners(result.owners)),
        "findings": tuple(sorted(map(failure_at, result.findings))),
        "steps": tuple(f"{step.step}: {step.outcome}" for step in steps),
        "steps' owners": tuple(
            f"{number}. {step.step}: {line}"
            for number, step in enumerate(steps, 1)
            for line in _owners(step.owners)
        ),
    }


def _owners(owners: Iterable[OwnedRange]) -> Iterator[str]:
    for owned in owners:
        for piece in owned.observed:
            node = "" if piece.node is None else f" in node {piece.node}"
            yield f"{owned.name} {piece.range} {piece.ownership}{node}"


def _shortened(lines: Iterable[str]) -> tuple[str, ...]:
    listed = tuple(lines)
    if len(listed) <= _MOST_LINES:
        return listed
    return (*listed[:_MOST_LINES], f"and {len(listed) - _MOST_LINES} more lines")
