# SPDX-License-Identifier: GPL-2.0-or-later
"""Nights as values: what a night saw, line by line, and what has changed since an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from harness.contract.failure_signature import failures_of
from harness.contract.result import RunResult, Verdict
from harness.matrix.plan import BRANCH, NO_CONFIG, Combination

SKIPPED = "SKIPPED"
_JUDGED = (Verdict.PASS.name, Verdict.FAIL.name)


@dataclass(frozen=True, order=True)
class Line:
    """What is compared from night to night: a combination, whatever commit the branch has.

    Attributes:
        scenario: its name, or the path of its file.
        kernel: a SPEC, or `branch`.
        configs: fragments with commas between, or `base`.
        series: patches, or empty.
        policy: whose rules are judged.
        qemu: the program, or empty for the usual one.
    """

    scenario: str
    kernel: str
    configs: str
    series: str
    policy: str
    qemu: str

    def __str__(self) -> str:
        words = [Path(self.scenario).name, "on", self.kernel]
        if self.configs != NO_CONFIG:
            words += ["--config", self.configs]
        if self.series:
            words += ["--series", self.series]
        words.append(self.policy)
        return " ".join([*words, *([f"qemu={self.qemu}"] if self.qemu else [])])


def line_of(one: Combination, branch: str) -> Line:
    """The line of a combination.

    Args:
        one: the combination.
        branch: the SPEC that the branch has that night.
    """
    return Line(
        one.scenario,
        BRANCH if one.kernel == branch else one.kernel,
        ",".join(one.configs) or NO_CONFIG,
        one.series or "",
        one.policy,
        one.qemu or "",
    )


@dataclass(frozen=True)
class Seen:
    """What one night saw of a line.

    Attributes:
        verdict: the name of a verdict, or SKIPPED where the kernel is not what it is about.
        known: why the failure is known, or empty.
        failures: what broke, as `failures_of` gives it.
        reason: for other verdicts than PASS and FAIL, why.
        evidence: the folder of the run.
    """

    verdict: str
    known: str = ""
    failures: tuple[str, ...] = ()
    reason: str = ""
    evidence: str = ""

    @property
    def judged(self) -> bool:
        """Whether the contract was seen to hold or to be broken."""
        return self.verdict in _JUDGED

    @property
    def fails(self) -> bool:
        """Whether it failed, and nobody knows why."""
        return self.verdict == Verdict.FAIL.name and not self.known

    def __str__(self) -> str:
        return f"{self.verdict} (known)" if self.known else self.verdict


def seen_in(record: RunResult) -> Seen:
    """What a result says."""
    return Seen(
        record.verdict.name,
        record.known_issue or "",
        failures_of(record),
        record.reason,
        record.evidence,
    )


class Change(Enum):
    """What a line is beside the nights before, in the order in which people want to hear of it."""

    REGRESSION = "regression"
    NEW_FAILURE = "fails when first seen"
    UNTOLD = "could not be judged"
    LEFT = "does not concern this kernel any more"
    STILL_FAILS = "fails as before"
    FIXED = "fixed"
    KNOWN = "known issue"
    PASSES = "passes"
    SKIPPED = "does not concern this kernel"


@dataclass(frozen=True)
class Earlier:
    """The newest night before this one that saw a line so that it counts.

    Attributes:
        night: its number.
        commit: of the branch, that night.
        seen: what it saw.
    """

    night: int
    commit: str
    seen: Seen


@dataclass(frozen=True)
class Row:
    """A line tonight, and before.

    Attributes:
        line: which.
        now: what tonight saw.
        judged: the newest earlier PASS or FAIL, None where there is none.
        before: the newest earlier PASS, FAIL or UNBUILDABLE, None where there is none.
    """

    line: Line
    now: Seen
    judged: Earlier | None = None
    before: Earlier | None = None

    @property
    def change(self) -> Change:
        """What has changed.

        A night that could judge nothing of the line is looked through, so that no regression is
        lost because the night in which it began was a bad one.
        """
        if self.now.verdict == SKIPPED:
            return Change.SKIPPED if self.judged is None else Change.LEFT
        if self.now.verdict == Verdict.PASS.name:
            worse = self.before is not None and self.before.seen.verdict != Verdict.PASS.name
            return Change.FIXED if worse else Change.PASSES
        if self.now.verdict == Verdict.UNBUILDABLE.name:
            return self._unbuildable()
        if self.now.verdict != Verdict.FAIL.name:
            return Change.UNTOLD
        if self.now.known:
            return Change.KNOWN
        if self.judged is None:
            return Change.NEW_FAILURE
        old = self.judged.seen
        same = old.fails and set(self.now.failures) <= set(old.failures)
        return Change.STILL_FAILS if same else Change.REGRESSION

    def _unbuildable(self) -> Change:
        if self.before is None:
            return Change.NEW_FAILURE
        same = self.before.seen.verdict == Verdict.UNBUILDABLE.name
        return Change.STILL_FAILS if same else Change.REGRESSION

    @property
    def good(self) -> Earlier | None:
        """The night to bisect from, None where bisecting cannot find out anything."""
        passed = self.judged is not None and self.judged.seen.verdict == Verdict.PASS.name
        wanted = self.change is Change.REGRESSION and self.now.fails and passed
        return self.judged if wanted and self.line.kernel == BRANCH else None


@dataclass(frozen=True)
class Bisecting:
    """What came of looking for the commit of a regression.

    Attributes:
        commit: the first bad commit, empty where it was not found.
        subject: of that commit.
        said: lines for people.
    """

    commit: str
    subject: str
    said: tuple[str, ...]


def counts_of(rows: Sequence[Row]) -> tuple[tuple[Change, int], ...]:
    """How many rows there are of each change; without those that nothing is of."""
    changes = [row.change for row in rows]
    return tuple((change, changes.count(change)) for change in Change if change in changes)
