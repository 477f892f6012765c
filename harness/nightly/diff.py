# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare the outcomes of a night with those of the nights before, entry by entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from harness.matrix.plan import BRANCH, NO_CONFIG, Combination
from harness.nightly.outcome import SKIPPED, Outcome


@dataclass(frozen=True, order=True)
class EntryKey:
    """A matrix entry without the commit of the branch: the same from night to night.

    Attributes:
        scenario: name, or path of its file.
        kernel: a SPEC, or `branch`.
        configs: fragments, separated by commas, or `base`.
        series: path of the patches, or empty.
        qemu: the program, or empty for the default.
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


def key_of(entry: Combination, branch: str) -> EntryKey:
    """The key of an entry.

    Args:
        branch: the SPEC of the branch's kernel in this night.
    """
    return EntryKey(
        entry.scenario,
        BRANCH if entry.kernel == branch else entry.kernel,
        ",".join(entry.configs) or NO_CONFIG,
        entry.series or "",
        entry.policy,
        entry.qemu or "",
    )


class Change(Enum):
    """The change of an entry since the nights before, in the order of a report."""

    REGRESSION = "regression"
    NEW_FAILURE = "fails when first seen"
    NOT_JUDGED = "could not be judged"
    LEFT = "no longer applies to this kernel"
    STILL_FAILS = "fails as before"
    FIXED = "fixed"
    KNOWN = "known issue"
    PASSES = "passes"
    SKIPPED = "does not apply to this kernel"


@dataclass(frozen=True)
class Earlier:
    """The outcome of an entry in an earlier night.

    Attributes:
        night: its number.
        commit: of the branch in that night.
    """

    night: int
    commit: str
    outcome: Outcome


@dataclass(frozen=True)
class Row:
    """The outcome of an entry in this night, with the earlier ones that it is compared with.

    Attributes:
        judged: the newest earlier PASS or FAIL, if any.
        before: the newest earlier PASS, FAIL or UNBUILDABLE, if any.
    """

    key: EntryKey
    now: Outcome
    judged: Earlier | None = None
    before: Earlier | None = None

    @property
    def change(self) -> Change:
        """The change since the nights before.

        Nights in which the entry could not be judged are skipped, so that a regression is not lost
        because it began in a night that failed for other reasons.
        """
        now, before = self.now, self.before
        if now.verdict == SKIPPED:
            return Change.SKIPPED if self.judged is None else Change.LEFT
        if now.passed:
            return Change.FIXED if before and not before.outcome.passed else Change.PASSES
        if now.unbuildable:
            return _failure(before, before is not None and before.outcome.unbuildable)
        if not now.failed:
            return Change.NOT_JUDGED
        if now.known:
            return Change.KNOWN
        return _failure(self.judged, self.judged is not None and self._fails_as(self.judged))

    def _fails_as(self, earlier: Earlier) -> bool:
        """True if every failure of this night was in an earlier night too, and not explained."""
        old = earlier.outcome
        return old.failed and not old.known and set(self.now.failures) <= set(old.failures)

    @property
    def good(self) -> Earlier | None:
        """The night that passed, from which to bisect; None if a bisection cannot help."""
        can_bisect = self.now.failed and self.key.kernel == BRANCH
        if not can_bisect or self.change is not Change.REGRESSION:
            return None
        return self.judged if self.judged and self.judged.outcome.passed else None


def _failure(earlier: Earlier | None, same: bool) -> Change:
    if earlier is None:
        return Change.NEW_FAILURE
    return Change.STILL_FAILS if same else Change.REGRESSION


@dataclass(frozen=True)
class BisectOutcome:
    """The outcome of bisecting a regression.

    Attributes:
        commit: the first bad commit, empty if it was not found.
        subject: of that commit.
        lines: details for the report.
    """

    commit: str
    subject: str
    lines: tuple[str, ...]


def counts_of(rows: Sequence[Row]) -> tuple[tuple[Change, int], ...]:
    """The number of rows with each change that occurs."""
    changes = [row.change for row in rows]
    return tuple((change, changes.count(change)) for change in Change if change in changes)
