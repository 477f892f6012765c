# SPDX-License-Identifier: GPL-2.0-or-later
"""Two kernels side by side: what each scenario ended with on both, and what that change is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from harness.contract.failure_signature import signature
from harness.contract.result import Finding, RunResult, Verdict


class Change(Enum):
    """What became of a scenario from the first kernel to the second."""

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
        verdict: how the scenario ended, or None when it is not about this kernel.
        owners: who owned each range, `sr0: dax_cxl/system_ram`; several where it is in pieces.
        why: for other verdicts than PASS, the broken rules or the reason.
        evidence: the run's folder, empty without a run.
        failures: what broke, after boot or after a step, each with its rule and range and without
            what differs from run to run; sorted.
    """

    verdict: Verdict | None
    owners: tuple[str, ...] = ()
    why: str = ""
    evidence: str = ""
    failures: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The object that the result file has for this side."""
        return {
            "verdict": self.verdict.name if self.verdict else None,
            "owners": list(self.owners),
            "why": self.why,
            "evidence": self.evidence,
            "failures": list(self.failures),
        }


@dataclass(frozen=True)
class Row:
    """One scenario on both kernels."""

    scenario: str
    first: Side
    second: Side

    @property
    def change(self) -> Change:
        """What became of it; UNKNOWN when one of the two has no verdict of PASS or FAIL."""
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
        """The object that the result file has for this row."""
        return {
            "scenario": self.scenario,
            "change": self.change.value,
            "first": self.first.as_json(),
            "second": self.second.as_json(),
        }


def side_of(result: RunResult) -> Side:
    """A result as one side of a row."""
    owners = []
    for one in result.owners:
        found = [str(piece.ownership) for piece in one.observed]
        owners.append(f"{one.name}: {' + '.join(dict.fromkeys(found))}")
    why = result.reason
    if result.findings:
        rules = sorted({one.rule for one in result.findings})
        why = ", ".join(f"rule {rule}" if rule.isdigit() else rule for rule in rules)
    failures = sorted({failure for one in result.findings for failure in _failures(one)})
    return Side(result.verdict, tuple(owners), why, result.evidence, tuple(failures))


def _failures(finding: Finding) -> tuple[str, ...]:
    place = f" at {finding.range}" if finding.range else ""
    return tuple(f"{what}{place}" for what in signature([finding]))


def compare(
    first: Mapping[str, RunResult | str], second: Mapping[str, RunResult | str]
) -> tuple[Row, ...]:
    """A row for every scenario, by name.

    Args:
        first: results of the first kernel by scenario; a text says why there is none.
        second: the same of the second kernel, with the same scenarios.
    """

    def side(result: RunResult | str) -> Side:
        return Side(None, why=result) if isinstance(result, str) else side_of(result)

    return tuple(Row(name, side(first[name]), side(second[name])) for name in first)
