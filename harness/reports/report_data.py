# SPDX-License-Identifier: GPL-2.0-or-later
"""Arrange many results: a grid of kernels and scenarios, and groups of the same failure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from harness.contract.failure_signature import signature
from harness.contract.result import Finding, RunResult, Verdict

# Most important first.
OUTCOMES = ("FAIL", "UNBUILDABLE", "INCONCLUSIVE", "KNOWN", "PASS")
WORDS = {
    "FAIL": "✗ FAIL",
    "UNBUILDABLE": "⊘ UNBUILDABLE",
    "INCONCLUSIVE": "? INCONCLUSIVE",
    "KNOWN": "✗ known FAIL",
    "PASS": "✓ PASS",
}


def outcome_of(record: RunResult) -> str:
    """The verdict, or `KNOWN` for a FAIL that the list of known issues explains."""
    if record.verdict is Verdict.FAIL and record.known_issue:
        return "KNOWN"
    return record.verdict.name


@dataclass(frozen=True, order=True)
class KernelColumn:
    """A kernel of the grid.

    Attributes:
        spec: the request as text, without the fragments that single scenarios need.
        release: `uname -r`, empty if it was never booted.
    """

    spec: str
    release: str

    def __str__(self) -> str:
        return f"{self.spec} ({self.release})" if self.release else self.spec

    @property
    def short(self) -> str:
        """The SPEC with only the last part of the paths in it."""
        return re.sub(r"(?<![^\s:'])/?(?:[^\s'/:]+/)+(?=[^\s'/])", "…/", self.spec)


def kernel_column(record: RunResult) -> KernelColumn:
    """The column of a run: its kernel, without the configuration that its scenario needs."""
    return KernelColumn(str(replace(record.request, configs=())), record.kernel.release or "")


def configs_of(record: RunResult) -> str:
    """The configuration fragments of a run's kernel, as they are typed; empty for none."""
    return ",".join(record.request.configs)


@dataclass(frozen=True)
class Chip:
    """Runs of one cell that ended alike.

    Attributes:
        outcome: key of WORDS.
        label: distinguishes them from other runs of the job, such as by policy; may be empty.
        runs: their indices in the job.
    """

    outcome: str
    label: str
    runs: tuple[int, ...]


@dataclass(frozen=True)
class FailureGroup:
    """Runs of one scenario with the same failure.

    Attributes:
        outcome: key of WORDS.
        scenario: its name.
        text: summary of the first of them.
        kernels: their kernels.
        runs: their indices in the job.
    """

    outcome: str
    scenario: str
    text: str
    kernels: tuple[KernelColumn, ...]
    runs: tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """The content of a report about several results.

    Attributes:
        records: the results, by index.
        kernels: the columns.
        scenarios: the rows.
        cells: chips by row and column, the worst first.
        counts: number of runs by outcome, in the order of OUTCOMES.
        failures: what did not pass, new failures first.
    """

    records: tuple[RunResult, ...]
    kernels: tuple[KernelColumn, ...]
    scenarios: tuple[str, ...]
    cells: dict[tuple[str, KernelColumn], tuple[Chip, ...]]
    counts: tuple[tuple[str, int], ...]
    failures: tuple[FailureGroup, ...]


def job_of(records: Iterable[RunResult]) -> Job:
    """Arrange results."""
    listed = tuple(records)
    columns = [kernel_column(one) for one in listed]
    labels = run_labels(listed)
    cells: dict[tuple[str, KernelColumn], dict[tuple[str, str], list[int]]] = {}
    for index, (record, column) in enumerate(zip(listed, columns, strict=True)):
        cell = cells.setdefault((record.scenario, column), {})
        cell.setdefault((outcome_of(record), labels[index]), []).append(index)
    outcomes = Counter(outcome_of(one) for one in listed)
    return Job(
        records=listed,
        kernels=tuple(sorted(set(columns), key=lambda one: (_natural(one.spec), one.release))),
        scenarios=tuple(sorted({one.scenario for one in listed})),
        cells={
            place: tuple(
                Chip(outcome, label, tuple(runs))
                for (outcome, label), runs in sorted(
                    cell.items(), key=lambda item: (OUTCOMES.index(item[0][0]), item[0][1])
                )
            )
            for place, cell in cells.items()
        },
        counts=tuple((name, outcomes[name]) for name in OUTCOMES if outcomes[name]),
        failures=_failures(listed, columns),
    )


def run_labels(records: Sequence[RunResult]) -> tuple[str, ...]:
    """Label each run by what distinguishes it from others of its scenario, except the kernel."""
    aspects: tuple[Callable[[RunResult], str], ...] = (
        lambda one: one.policy,
        configs_of,
        lambda one: one.accel or "",
        lambda one: one.start or "",
    )
    by_scenario: dict[str, list[RunResult]] = {}
    for record in records:
        by_scenario.setdefault(record.scenario, []).append(record)
    distinguishing = [
        {name: len({aspect(one) for one in group}) > 1 for name, group in by_scenario.items()}
        for aspect in aspects
    ]
    return tuple(
        ", ".join(
            aspect(one)
            for aspect, differs in zip(aspects, distinguishing, strict=True)
            if differs[one.scenario] and aspect(one)
        )
        for one in records
    )


def summary_text(record: RunResult) -> str:
    """Summarize the failure in one line; empty for PASS."""
    if record.passed:
        return ""
    if record.findings and not record.attempts:
        return record.findings[0].text
    return record.reason or next((one.text for one in record.findings), "")


def telling_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Leave out kernel warnings that are already shown with a finding about a range."""
    kept = tuple(findings)
    shown = {(line, one.known is None) for one in kept if one.range for line in one.dmesg}
    return tuple(
        one
        for one in kept
        if one.rule != "6"
        or not one.dmesg
        or not {(line, one.known is None) for line in one.dmesg} <= shown
    )


def _failures(
    records: Sequence[RunResult], columns: Sequence[KernelColumn]
) -> tuple[FailureGroup, ...]:
    groups: dict[tuple[str, str, frozenset[str]], list[int]] = {}
    for index, record in enumerate(records):
        if record.passed:
            continue
        seen = signature(record.findings) or frozenset([record.reason])
        groups.setdefault((outcome_of(record), record.scenario, seen), []).append(index)
    found = [
        FailureGroup(
            outcome,
            scenario,
            summary_text(records[runs[0]]),
            tuple(sorted({columns[run] for run in runs})),
            tuple(runs),
        )
        for (outcome, scenario, _), runs in groups.items()
    ]
    return tuple(sorted(found, key=lambda one: (OUTCOMES.index(one.outcome), one.scenario)))


def _natural(text: str) -> tuple[tuple[int, str | int], ...]:
    """A key that sorts 6.9 before 6.18."""
    return tuple(
        (0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", text) if part
    )
