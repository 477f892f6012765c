# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare the results of the same scenarios on two kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from harness.contract.failure_signature import failure_at
from harness.contract.result import RunResult, Verdict
from harness.platform.json_values import to_json


class Change(Enum):
    """The change of a scenario's result from the first kernel to the second."""

    SAME = "same"
    REGRESSION = "regression"
    FIX = "fix"
    OTHER_OWNER = "other owner"
    OTHER_FAILURE = "other failure"
    UNKNOWN = "unknown"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Side:
    """One kernel's part of a row.

    Attributes:
        verdict: None for a scenario that does not apply to this kernel.
        owners: the owners of each range, such as `sr0: dax_cxl/system_ram`.
        why: for other verdicts than PASS, the broken rules or the reason.
        evidence: the run's folder, empty without a run.
        failures: signature and range of each finding, sorted.
    """

    verdict: Verdict | None
    owners: tuple[str, ...] = ()
    why: str = ""
    evidence: str = ""
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One scenario on both kernels."""

    scenario: str
    first: Side
    second: Side

    @property
    def change(self) -> Change:
        """The change; UNKNOWN unless both verdicts are PASS or FAIL."""
        if self.first.verdict is None and self.second.verdict is None:
            return Change.NOT_RUN
        judged = (Verdict.PASS, Verdict.FAIL)
        if self.first.verdict not in judged or self.second.verdict not in judged:
            return Change.UNKNOWN
        if self.first.verdict is not self.second.verdict:
            better = self.second.verdict is Verdict.PASS
            return Change.FIX if better else Change.REGRESSION
        if self.first.owners != self.second.owners:
            failed = self.first.verdict is Verdict.FAIL
            return Change.OTHER_FAILURE if failed else Change.OTHER_OWNER
        if self.first.failures != self.second.failures:
            return Change.OTHER_FAILURE
        return Change.SAME

    def as_json(self) -> dict[str, Any]:
        """The object in the file that `--json` writes."""
        raw: dict[str, Any] = to_json(self)
        return {**raw, "change": self.change.value}


def side_of(result: RunResult) -> Side:
    """Make a result one side of a row."""
    owners = []
    for owned in result.owners:
        found = dict.fromkeys(str(piece.ownership) for piece in owned.observed)
        owners.append(f"{owned.name}: {' + '.join(found)}")
    names = sorted({finding.rule_name for finding in result.findings})
    why = ", ".join(names) or result.reason
    failures = sorted({failure_at(finding) for finding in result.findings})
    return Side(result.verdict, tuple(owners), why, result.evidence, tuple(failures))


def compare(
    first: Mapping[str, RunResult | str], second: Mapping[str, RunResult | str]
) -> tuple[Row, ...]:
    """Make a row for every scenario, by name.

    Args:
        first: results of the first kernel by scenario, or the reason why there is no result.
        second: results of the second kernel, with the same scenarios.
    """

    def side(result: RunResult | str) -> Side:
        return Side(None, why=result) if isinstance(result, str) else side_of(result)

    return tuple(Row(name, side(first[name]), side(second[name])) for name in first)


MARKS = {
    Change.SAME: " ",
    Change.REGRESSION: "-",
    Change.FIX: "+",
    Change.OTHER_OWNER: "~",
    Change.OTHER_FAILURE: "~",
    Change.UNKNOWN: "?",
    Change.NOT_RUN: "",
}


def comparison_lines(rows: Sequence[Row], kernels: tuple[str, str]) -> tuple[str, ...]:
    """Format a table with a line for each scenario that was run, and the number of each change.

    Args:
        rows: the scenarios.
        kernels: the names of the two kernels.
    """
    table = [("", "scenario", *kernels, "")]
    for row in rows:
        if row.change is Change.NOT_RUN:
            continue
        change = "" if row.change is Change.SAME else row.change.value
        cells = (_cell(row.first), _cell(row.second))
        table.append((MARKS[row.change], row.scenario, *cells, change))
    widths = [max(len(line[column]) for line in table) for column in range(5)]
    lines = [
        " ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    left_out = [row.scenario for row in rows if row.change is Change.NOT_RUN]
    if left_out:
        lines.append(f"not applicable to either kernel: {', '.join(left_out)}")
    counts = Counter(row.change for row in rows)
    lines.append(", ".join(f"{counts[one]} {one.value}" for one in Change if counts[one]))
    return tuple(lines)


def _cell(side: Side) -> str:
    if side.verdict is None:
        return "skipped"
    if not side.owners:
        return side.verdict.name
    return f"{side.verdict.name} {', '.join(side.owners)}" + (f" ({side.why})" if side.why else "")
