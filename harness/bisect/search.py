# SPDX-License-Identifier: GPL-2.0-or-later
"""Bisection as values: what a commit was found to be, and which commit to look at next.

The order in which commits are worth trying is git's (`git rev-list --bisect-all`); everything here
follows from that order and from the steps so far, so that an interrupted bisection goes on by going
through the same decisions again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from harness.contract.failure_signature import failures_of
from harness.contract.result import RunResult, Verdict

_GOLDEN = (math.sqrt(5) - 1) / 2


class Outcome(Enum):
    """What a commit is."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "cannot tell"


@dataclass(frozen=True)
class Commit:
    """A commit, or a state of a series.

    Attributes:
        name: the whole hash, or the number of patches that are applied.
        short: how people read it, such as `3f2a91c04b7d` or `patch 3 of 8`.
        subject: its first line.
    """

    name: str
    short: str
    subject: str


@dataclass(frozen=True)
class Judged:
    """One scenario at one commit.

    Attributes:
        scenario: its name.
        outcome: what the scenario says that the commit is.
        verdicts: of each run; SKIPPED when the scenario is not about this kernel.
        failures: what broke in any of them, see `failures_of`.
        other_failure: it failed, and nothing of that is what broke at the bad end.
        reason: why nobody can tell, or what else is worth saying.
        evidence: the folders of the runs.
    """

    scenario: str
    outcome: Outcome
    verdicts: tuple[str, ...]
    failures: tuple[str, ...] = ()
    other_failure: bool = False
    reason: str = ""
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One commit that was looked at.

    Attributes:
        commit: which.
        role: `good end`, `bad end`, `merge base`, or nothing.
        outcome: what it is.
        judged: by scenario.
        build_seconds: to get its kernels, from checking out to having them in the store.
        run_seconds: for its guests, from their start to their verdicts.
        seconds: from choosing it to having written down what it is.
    """

    commit: Commit
    role: str
    outcome: Outcome
    judged: tuple[Judged, ...]
    build_seconds: float
    run_seconds: float
    seconds: float

    @property
    def overhead(self) -> float:
        """Seconds that went neither into building nor into guests."""
        return self.seconds - self.build_seconds - self.run_seconds

    def of(self, scenario: str) -> Judged:
        """What a scenario found here; KeyError when it was not looked at."""
        for one in self.judged:
            if one.scenario == scenario:
                return one
        raise KeyError(scenario)


def _alike(failures: Sequence[str], bad_end: Sequence[str]) -> bool:
    """Whether a run broke something that broke at the bad end, too.

    A rule without a range (a warning, mostly) can be broken for many reasons: it counts where the
    bad end has nothing better.
    """
    placed = {name for name in bad_end if " " in name.removeprefix("rule ")}
    return bool(set(failures) & (placed or set(bad_end)))


def decide(bad: int, unjudged: int, left: int, need: int) -> Outcome | None:
    """What a scenario's runs say about a commit; None while further runs can still say it.

    Args:
        bad: runs that failed.
        unjudged: runs of which nobody can tell.
        left: runs that were not made yet.
        need: how many must fail for the commit to be bad, at least 1.
    """
    if bad >= need:
        return Outcome.BAD
    if bad + unjudged + left < need:
        return Outcome.GOOD
    return None if left else Outcome.UNKNOWN


def together(judged: Sequence[Judged]) -> Outcome:
    """What several scenarios say about a commit: bad where one is, good where all are."""
    outcomes = [one.outcome for one in judged]
    for outcome in (Outcome.BAD, Outcome.UNKNOWN):
        if outcome in outcomes:
            return outcome
    return Outcome.GOOD


def judge_runs(
    scenario: str,
    results: Sequence[RunResult],
    left: int,
    need: int,
    same_as: Sequence[str] | None = None,
    strict: bool = False,
) -> Judged | None:
    """What the runs of a scenario at a commit say; None while further runs can still say it.

    Args:
        scenario: its name.
        results: of the runs so far.
        left: runs that were not made yet.
        need: how many must fail for the commit to be bad.
        same_as: what broke at the bad end, None where that is not known yet.
        strict: a run that fails otherwise than the bad end says nothing.
    """
    failed = [one for one in results if one.verdict is Verdict.FAIL]
    broke = [failures_of(one) for one in failed]
    same = [same_as is None or _alike(one, same_as) for one in broke]
    others = same.count(False) if strict else 0
    passed = sum(one.verdict is Verdict.PASS for one in results)
    lost = [one for one in results if one.verdict not in (Verdict.PASS, Verdict.FAIL)]
    outcome = decide(len(failed) - others, len(results) - passed - len(failed) + others, left, need)
    if outcome is None:
        return None
    reason = lost[0].reason if lost and outcome is Outcome.UNKNOWN else ""
    return Judged(
        scenario,
        outcome,
        tuple(one.verdict.name for one in results),
        tuple(dict.fromkeys(name for one in broke for name in one)),
        bool(same) and not any(same),
        reason,
        tuple(one.evidence for one in results if one.evidence),
    )


@dataclass(frozen=True)
class Choice:
    """What to do next: look at a commit, or end.

    Attributes:
        next: the name of the commit to look at, None at the end.
        left: the names of the commits that may be the first; one, or several at an end where the
            rest could not be judged.
    """

    next: str | None
    left: tuple[str, ...]


def choose(order: Sequence[str], unknown: Sequence[str]) -> Choice:
    """Choose the commit to look at.

    Args:
        order: names of the commits that may be the first, the one that halves them best in front,
            and the one at which the change is known to be there behind all others.
        unknown: names of commits of which nobody can tell.
    """
    open_ones = [name for name in order[:-1] if name not in unknown]
    if not open_ones:
        return Choice(None, tuple(order))
    if order[0] not in unknown:
        return Choice(order[0], tuple(order))
    # What breaks a commit often breaks its neighbours: go away from it, and not always as far.
    # Commits that halve well stay the more likely ones, as in git bisect's own way to skip.
    skipped = sum(name in unknown for name in order)
    share = (skipped * _GOLDEN) % 1.0
    return Choice(open_ones[int(len(open_ones) * share * math.sqrt(share))], tuple(order))


def steps_left(count: int) -> int:
    """About how many steps are left for this many commits that may be the first, at least 1."""
    return max(0, math.ceil(math.log2(count)))


def differing(good: Step, bad: Step) -> tuple[str, ...]:
    """The scenarios of which both ends are what they are said to be."""
    return tuple(
        one.scenario
        for one in bad.judged
        if one.outcome is Outcome.BAD and good.of(one.scenario).outcome is Outcome.GOOD
    )


@dataclass(frozen=True)
class Bisected:
    """What a bisection ended with.

    Attributes:
        good: the good end.
        bad: the bad end.
        looking_for: BAD for the first bad commit, GOOD for the fix.
        scenarios: that differ between the ends.
        first: the commit that was looked for, None where it could not be told from others.
        candidates: those, the oldest first; without `first`.
        steps: in order, the ends in front.
    """

    good: Commit
    bad: Commit
    looking_for: Outcome
    scenarios: tuple[str, ...]
    first: Commit | None
    candidates: tuple[Commit, ...]
    steps: tuple[Step, ...]

    @property
    def changed(self) -> Step:
        """The step of the earliest commit that is known to have what is looked for."""
        return [one for one in self.steps if one.outcome is self.looking_for][-1]


Failures = Mapping[str, tuple[str, ...]]
"""What broke at the bad end, by scenario."""
