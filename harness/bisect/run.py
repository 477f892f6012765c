# SPDX-License-Identifier: GPL-2.0-or-later
"""Bisection: from two commits of which one is bad to the commit that made the difference."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

from harness.bisect.probe import SKIPPED, Judgement
from harness.bisect.record import Record
from harness.bisect.search import (
    Bisected,
    Commit,
    Failures,
    Judged,
    Outcome,
    Step,
    choose,
    differing,
    together,
)
from harness.contract.result import Verdict
from harness.core.deadline import Deadline
from harness.core.errors import InconclusiveError, UnbuildableError, UsageError
from harness.scenario.kernel_request import KernelRequest

GO_ON = "start it again with the same words, and it goes on from here"


class History(Protocol):
    """What lies between two commits."""

    def commit(self, name: str) -> Commit:
        """A commit by its name."""

    def kernel(self, commit: Commit) -> KernelRequest:
        """The kernel of a commit."""

    def merge_bases(self, one: Commit, other: Commit) -> tuple[str, ...]:
        """The names of the best common ancestors."""

    def order(self, new: str, olds: Sequence[str]) -> tuple[str, ...]:
        """The names of the commits of `new` that none of `olds` has, as `choose` wants them."""

    def oldest_first(self, new: str, olds: Sequence[str]) -> tuple[str, ...]:
        """The same commits as of `order`, each behind its ancestors."""


class Judge(Protocol):
    """Says what scenarios say about a kernel; see `commit_judge.CommitJudge`."""

    def judge(
        self,
        request: KernelRequest,
        scenarios: Sequence[str],
        bad_end: Failures | None = None,
        every: bool = False,
    ) -> Judgement:
        """Build a kernel and run scenarios on it."""


class Listener(Protocol):
    """Hears how a bisection goes."""

    def note(self, text: str) -> None:
        """Something worth saying."""

    def begins(self, ends: Ends, count: int) -> None:
        """The ends exist, and `count` commits may be the first; at least 1."""

    def step(self, step: Step, again: bool) -> None:
        """A step was made; `again` when that was before an interruption."""


@dataclass(frozen=True)
class Ends:
    """The two commits to start from.

    Attributes:
        good: is said to be good.
        bad: is said to be bad.
        first_good: whether the bad one is the older one, and its fix is looked for.
    """

    good: Commit
    bad: Commit
    first_good: bool = False

    @property
    def old(self) -> Commit:
        """The older one."""
        return self.bad if self.first_good else self.good

    @property
    def new(self) -> Commit:
        """The newer one, which has what is looked for."""
        return self.good if self.first_good else self.bad

    @property
    def looking_for(self) -> Outcome:
        """What the newer one is."""
        return Outcome.GOOD if self.first_good else Outcome.BAD


class Bisection:
    """One bisection; made steps are taken from its record, so that it goes on where it stopped.

    Args:
        ends: from which it starts.
        history: what lies between them.
        judge: says what a commit is.
        scenarios: names of the scenarios that judge, at least one.
        record: of the steps so far.
        listener: hears how it goes.
        deadline: begin no step behind it.
    """

    def __init__(
        self,
        ends: Ends,
        history: History,
        judge: Judge,
        scenarios: Sequence[str],
        record: Record,
        listener: Listener,
        deadline: Deadline | None = None,
    ) -> None:
        self._ends = ends
        self._history = history
        self._judge = judge
        self._scenarios = tuple(scenarios)
        self._record = record
        self._listener = listener
        self._deadline = deadline
        self._steps: list[Step] = []
        self._bad_end: Failures | None = None
        self._since = time.monotonic()

    def run(self) -> Bisected:
        """Find the commit.

        Raises:
            UsageError: the ends do not fit together, or do not differ.
            UnbuildableError: an end does not build.
            InconclusiveError: an end could not be judged.
            DeadlineExpiredError: there is no time for another step.
            HarnessError: a step could not be made; the steps so far are kept.
        """
        ends, history = self._ends, self._history
        bases = self._related()
        order = history.order(ends.new.name, [ends.old.name])
        self._listener.begins(ends, len(order))
        self._verify_ends()
        for name in bases:
            if name != ends.old.name:
                self._verify_base(history.commit(name))
        new, olds, unknown = ends.new.name, [ends.old.name], list[str]()
        while True:
            choice = choose(history.order(new, olds), unknown)
            if choice.next is None:
                return self._ended(history.oldest_first(new, olds))
            step = self._step(history.commit(choice.next))
            if step.outcome is Outcome.UNKNOWN:
                unknown.append(choice.next)
            elif step.outcome is ends.looking_for:
                new = choice.next
            else:
                olds.append(choice.next)

    def _ended(self, left: Sequence[str]) -> Bisected:
        commits = tuple(map(self._history.commit, left))
        return Bisected(
            self._ends.good,
            self._ends.bad,
            self._ends.looking_for,
            self._scenarios,
            commits[0] if len(commits) == 1 else None,
            commits if len(commits) > 1 else (),
            tuple(self._steps),
        )

    def _related(self) -> tuple[str, ...]:
        """The merge bases of the ends, whose order must be the right one."""
        ends = self._ends
        if ends.good.name == ends.bad.name:
            raise UsageError(
                f"both ends are the same commit, {ends.good.short}",
                hint="name two commits that differ",
            )
        bases = self._history.merge_bases(ends.old, ends.new)
        if not bases:
            raise UsageError(
                f"{ends.good.short} and {ends.bad.short} have no common ancestor",
                hint="name commits of one history; a shallow clone needs git fetch --unshallow",
            )
        if ends.new.name in bases:
            raise UsageError(
                f"the {_side(ends.looking_for)} commit {ends.new.short} is an ancestor of the "
                f"{_side(_other(ends.looking_for))} one, {ends.old.short}",
                hint="to look for the commit that broke it, leave --first-good out"
                if ends.first_good
                else "to look for its fix, add --first-good; else exchange the two",
            )
        return bases

    def _verify_ends(self) -> None:
        """Make both ends steps, and keep the scenarios that differ."""
        bad = self._step(self._ends.bad, "bad end", every=True)
        good = self._step(self._ends.good, "good end", every=True)
        scenarios = differing(good, bad)
        if not scenarios:
            # Asked again, the ends are to be looked at again.
            self._record.forget()
            _refuse_ends(self._ends, good, bad)
        for name in self._scenarios:
            if name not in scenarios:
                said = f"{verdicts_text(good.of(name))} / {verdicts_text(bad.of(name))}"
                self._listener.note(f"{name} is left out: good / bad end are {said}")
        self._scenarios = scenarios
        self._bad_end = {name: bad.of(name).failures for name in scenarios}

    def _verify_base(self, commit: Commit) -> None:
        """Where the older end is no ancestor, what both have must be as the older end."""
        ends = self._ends
        step = self._step(commit, "merge base")
        if step.outcome is ends.looking_for:
            side, other = _side(ends.looking_for), _side(_other(ends.looking_for))
            raise UsageError(
                f"the merge base {commit.short} of both ends is {side} as well: the {other} end "
                f"{ends.old.short} became {other} on a branch of its own",
                hint=f"take {commit.short} and {ends.old.short} as the ends to find out where; "
                + ("leave --first-good out" if ends.first_good else "add --first-good"),
            )
        if step.outcome is Outcome.UNKNOWN:
            self._listener.note(
                f"nobody can tell what the merge base {commit.short} is; going on as if it were "
                f"as the older end"
            )

    def _step(self, commit: Commit, role: str = "", every: bool = False) -> Step:
        """Find out what a commit is, or was found to be before an interruption."""
        known = self._record.find(commit.name)
        if known is not None:
            self._steps.append(known)
            self._listener.step(known, again=True)
            self._since = time.monotonic()
            return known
        if self._deadline is not None and self._deadline.expired():
            raise self._deadline.error()
        judgement = self._judge.judge(
            self._history.kernel(commit), self._scenarios, self._bad_end, every
        )
        end = time.monotonic()
        step = Step(
            commit,
            role,
            together(judgement.judged),
            judgement.judged,
            judgement.build_seconds,
            judgement.run_seconds,
            end - self._since,
        )
        # What follows, up to the next choice, counts as the next step's.
        self._since = end
        self._record.add(step)
        self._steps.append(step)
        self._listener.step(step, again=False)
        return step


def verdicts_text(judged: Judged) -> str:
    """The verdicts of a scenario at a commit, such as `FAIL` or `3 FAIL, 7 PASS`."""
    names = tuple(dict.fromkeys(judged.verdicts))
    if len(judged.verdicts) == 1:
        return names[0]
    return ", ".join(f"{judged.verdicts.count(name)} {name}" for name in sorted(names))


def _refuse_ends(ends: Ends, good: Step, bad: Step) -> NoReturn:
    """Say why two ends cannot be bisected between."""
    rows = [
        f"  {one.scenario}: {verdicts_text(good.of(one.scenario))} at the good end "
        f"{ends.good.short}, {verdicts_text(one)} at the bad end {ends.bad.short}"
        for one in bad.judged
    ]
    unclear = [one for one in (*bad.judged, *good.judged) if one.outcome is Outcome.UNKNOWN]
    if unclear:
        message = "\n".join(["an end of the bisection could not be judged:", *rows])
        reasons = [one.reason for one in unclear if one.reason]
        if reasons:
            message += f"\n  {reasons[0].splitlines()[0]}"
        hint = "name an end that can be judged"
        if any(Verdict.UNBUILDABLE.name in one.verdicts for one in unclear):
            raise UnbuildableError(message, hint=hint)
        if any(SKIPPED in one.verdicts for one in unclear):
            raise UsageError(message, hint=hint)
        raise InconclusiveError(message, hint=f"{hint}, or try again with more --runs")
    message = "\n".join(["the ends do not differ as they should:", *rows])
    pairs = [(good.of(one.scenario).outcome, one.outcome) for one in bad.judged]
    if (Outcome.BAD, Outcome.GOOD) in pairs:
        hint = _turned_round(ends)
    elif (Outcome.BAD, Outcome.BAD) in pairs:
        age = "a newer" if ends.first_good else "an older"
        hint = f"take {age} good commit; harness compare shows two kernels side by side"
    else:
        hint = "take another bad commit, its --config, or more --runs for a failure that is rare"
    raise UsageError(message, hint=hint)


def _turned_round(ends: Ends) -> str:
    """What to type when the good end fails and the bad one does not."""
    words = f"--good {ends.bad.short} --bad {ends.good.short}"
    if ends.first_good:
        return f"the older end passes: leave --first-good out, with {words}"
    return f"the newer end passes: look for the fix, with --first-good {words}"


def _side(outcome: Outcome) -> str:
    return outcome.value


def _other(outcome: Outcome) -> Outcome:
    return Outcome.BAD if outcome is Outcome.GOOD else Outcome.GOOD
