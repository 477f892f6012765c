# SPDX-License-Identifier: GPL-2.0-or-later
"""Drive `git bisect` in a private repository, from the ends to the first bad commit."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

import msgspec

from harness.bisect.judge import SKIPPED, CommitJudge, Failures, Judged, Outcome, together
from harness.bisect.range import Commit, CommitRange
from harness.contract.result import Verdict
from harness.core.cache import Store
from harness.core.deadline import Deadline
from harness.core.errors import InconclusiveError, UnbuildableError, UsageError
from harness.core.process import Completed
from harness.core.version import harness_version
from harness.kernels.build.config import plan_config
from harness.kernels.build.git import Repository, ask

FOLDER = "bisections"
# git does not allow "bad" for the older end.
_FIX_TERMS = {Outcome.BAD: "broken", Outcome.GOOD: "fixed", Outcome.UNKNOWN: "skip"}
_TERMS = {Outcome.BAD: "bad", Outcome.GOOD: "good", Outcome.UNKNOWN: "skip"}
_ONLY_SKIPPED_LEFT, _BAD_MERGE_BASE = 2, 3


@dataclass(frozen=True)
class Step:
    """One commit that was judged.

    Attributes:
        role: `good end`, `bad end`, `merge base`, or nothing.
        seconds: from choosing the commit to having saved its outcome.
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
        """Seconds apart from building and guests."""
        return self.seconds - self.build_seconds - self.run_seconds

    def of(self, scenario: str) -> Judged:
        """One scenario of this step."""
        return next(judged for judged in self.judged if judged.scenario == scenario)


@dataclass(frozen=True)
class Bisected:
    """The result of a bisection.

    Attributes:
        ends: the commits it started from.
        scenarios: those that differ between the ends.
        candidates: the commits that can be the first, the oldest first; only the last is known
            to have the change. More than one where the others could not be judged.
        steps: in order, the ends first.
    """

    ends: CommitRange
    scenarios: tuple[str, ...]
    candidates: tuple[Commit, ...]
    steps: tuple[Step, ...]

    @property
    def looking_for(self) -> Outcome:
        """BAD for the first bad commit, GOOD for the fix."""
        return Outcome.GOOD if self.ends.first_good else Outcome.BAD

    @property
    def first(self) -> Commit | None:
        """The commit that was looked for, None if there are several candidates."""
        return self.candidates[0] if len(self.candidates) == 1 else None


class Listener(Protocol):
    """Is notified of the progress of a bisection."""

    def note(self, text: str) -> None:
        """Report something else."""

    def begins(self, ends: CommitRange, count: int) -> None:
        """Report the start; `count` commits, at least 1, can be the first."""

    def step(self, step: Step, again: bool) -> None:
        """Report a step; `again` if it was made before an interruption."""


class Bisection:
    """One bisection, which can be interrupted at any time and continued later.

    Its folder is a git repository in which `git bisect` runs without checking anything out, and
    which borrows all objects. The marks are in git's own log; what they are based on is saved in
    `steps.json`. A developer can mark commits there by hand.

    Args:
        ends: the commits to start from.
        judge: judges single commits.
        store: keeps the folder; hold a lock for the source while using it.
        listener: is notified of the steps.
        deadline: start no step after it.

    Attributes:
        folder: named after everything that the outcomes depend on.
        steps: made so far, by hash.
    """

    def __init__(
        self,
        ends: CommitRange,
        judge: CommitJudge,
        store: Store,
        listener: Listener,
        deadline: Deadline | None = None,
    ) -> None:
        parts = (ends.source.name, ends.good.hash, ends.bad.hash, str(ends.first_good))
        builds = (plan_config(ends.request.configs).text, ends.request.toolchain)
        key = json.dumps([*parts, *builds, harness_version(), *judge.scenarios, *judge.identity])
        self.folder = store.folder(FOLDER) / hashlib.sha256(key.encode()).hexdigest()[:24]
        self._ends = ends
        self._judge = judge
        self._listener = listener
        self._deadline = deadline
        self._repository = Repository(self.folder / ".git")
        self._terms = _FIX_TERMS if ends.first_good else _TERMS
        self._looking_for = Outcome.GOOD if ends.first_good else Outcome.BAD
        self._since = time.monotonic()
        self.steps = self._read_steps()

    def forget(self) -> None:
        """Drop the folder: the next bisection of these ends starts anew."""
        self.steps.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self) -> Bisected:
        """Find the commit.

        Raises:
            UsageError: the ends are not in order, or do not differ.
            UnbuildableError: an end does not build.
            InconclusiveError: an end could not be judged.
            DeadlineExpiredError: there is no time for another step.
            HarnessError: a step could not be made; the steps so far are kept.
        """
        ends = self._ends
        self._prepare()
        bases = self._merge_bases()
        range_of = (ends.new.hash, f"^{ends.old.hash}")
        self._listener.begins(ends, int(self._git("rev-list", "--count", *range_of).stdout))
        for step in self.steps.values():
            self._listener.step(step, again=True)
        bad = self._step(ends.bad, "bad end", every=True)
        good = self._step(ends.good, "good end", every=True)
        scenarios = self._differing(good, bad)
        bad_end = {name: bad.of(name).failures for name in scenarios}
        self._start()
        while not self._ended():
            commit = self._head()
            role = "merge base" if commit.hash in bases else ""
            step = self._step(commit, role, scenarios, bad_end)
            if role and step.outcome is Outcome.UNKNOWN:
                self._listener.note(
                    f"the merge base {commit.short} could not be judged; assuming that it is "
                    f"{self._terms[_other(self._looking_for)]}, as the older end"
                )
            self._bisect(self._terms[step.outcome], commit.hash)
        left = self._git("log", "--bisect", "--topo-order", "--reverse", "--format=%H").stdout
        candidates = tuple(map(ends.commit, left.split()))
        return Bisected(ends, scenarios, candidates, tuple(self.steps.values()))

    def _prepare(self) -> None:
        """Make the repository, with the history as it is in the user's tree."""
        self._repository.prepare(self._ends.source.repository.folder / "objects")
        if self._ends.tree is not None:
            words = ("rev-parse", "--path-format=absolute", "--git-path", "shallow")
            shallow = Path(ask(self._ends.tree, *words).stdout.rstrip("\n"))
            if shallow.is_file():
                shutil.copyfile(shallow, self._repository.folder / "shallow")
        # git bisect requires a HEAD.
        self._git("update-ref", "--no-deref", "HEAD", self._ends.new.hash)

    def _git(self, *words: str, statuses: Sequence[int] = (0,)) -> Completed:
        # Not in the current folder: git must never write files there.
        done = self._repository.git(*words, files=self.folder, check=False)
        if done.status not in statuses:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise UsageError(
                f"git {words[0]} failed: {lines[0] if lines else f'status {done.status}'}",
                where=str(self._ends.tree or self.folder),
                hint="see git fsck; a shallow clone needs git fetch --unshallow",
            )
        return done

    def _merge_bases(self) -> tuple[str, ...]:
        """The merge bases of the ends, apart from the older end; check the order of both."""
        ends = self._ends
        if ends.good.hash == ends.bad.hash:
            hint = "name two commits that differ"
            raise UsageError(f"both ends are the same commit, {ends.good.short}", hint=hint)
        words = ("merge-base", "--all", ends.old.hash, ends.new.hash)
        bases = self._git(*words, statuses=(0, 1)).stdout.split()
        if not bases:
            raise UsageError(
                f"{ends.good.short} and {ends.bad.short} have no common ancestor",
                hint="name commits of one history; a shallow clone needs git fetch --unshallow",
            )
        if ends.new.hash in bases:
            raise UsageError(
                f"the {self._looking_for.value} commit {ends.new.short} is an ancestor of the "
                f"{_other(self._looking_for).value} one, {ends.old.short}",
                hint="to look for the commit that broke it, leave --first-good out"
                if ends.first_good
                else "to look for its fix, add --first-good; else exchange the two",
            )
        return tuple(name for name in bases if name != ends.old.hash)

    def _start(self) -> None:
        """Start git bisect, or continue it: a killed one may not have chosen its next commit."""
        # Without BISECT_HEAD, git would check the next commit out.
        begun = self._repository.line("rev-parse", "--verify", "--quiet", "BISECT_HEAD")
        if not begun or self._bisect("next", statuses=(0, 1, _ONLY_SKIPPED_LEFT)).status == 1:
            terms = self._terms
            new, old = self._looking_for, _other(self._looking_for)
            words = ("--no-checkout", f"--term-new={terms[new]}", f"--term-old={terms[old]}")
            self._bisect("start", *words, self._ends.new.hash, self._ends.old.hash)

    def _bisect(self, *words: str, statuses: Sequence[int] = (0, _ONLY_SKIPPED_LEFT)) -> Completed:
        done = self._git("bisect", *words, statuses=(*statuses, _BAD_MERGE_BASE))
        if done.status == _BAD_MERGE_BASE:
            new, old = self._looking_for.value, _other(self._looking_for).value
            base, end = self._head().short, self._ends.old.short
            option = "leave --first-good out" if self._ends.first_good else "add --first-good"
            raise UsageError(
                f"the merge base {base} of both ends is {new} as well: the {old} end {end} "
                f"became {old} on a branch of its own",
                hint=f"take {base} and {end} as the ends to find out where; {option}",
            )
        return done

    def _head(self) -> Commit:
        """The commit that git has chosen."""
        return self._ends.commit(self._git("rev-parse", "--verify", "BISECT_HEAD").stdout.strip())

    def _ended(self) -> bool:
        log = (self._repository.folder / "BISECT_LOG").read_text()
        last = log.rstrip().rpartition("\n")[2]
        return last.startswith(("# first ", "# possible first "))

    def _step(
        self,
        commit: Commit,
        role: str,
        scenarios: Sequence[str] = (),
        bad_end: Failures | None = None,
        every: bool = False,
    ) -> Step:
        """Judge a commit, unless that was done before an interruption."""
        known = self.steps.get(commit.hash)
        if known is not None:
            return known
        if self._deadline is not None and self._deadline.expired():
            raise self._deadline.error()
        judgement = self._judge.judge(
            self._ends.kernel(commit), scenarios or self._judge.scenarios, bad_end, every
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
        # Marking it and choosing the next commit counts for the next step.
        self._since = end
        self.steps[commit.hash] = step
        partial = self.folder / "steps.part"
        partial.write_bytes(msgspec.json.encode(list(self.steps.values())))
        partial.replace(self.folder / "steps.json")
        self._listener.step(step, again=False)
        return step

    def _read_steps(self) -> dict[str, Step]:
        """Read the steps made before an interruption; start anew if the file is damaged."""
        try:
            data = (self.folder / "steps.json").read_bytes()
            return {step.commit.hash: step for step in msgspec.json.decode(data, type=list[Step])}
        except FileNotFoundError:
            pass
        except ValueError as error:  # also the errors of msgspec
            self._listener.note(
                f"the steps of an interrupted bisection in {self.folder} are damaged ({error}); "
                "starting anew"
            )
            shutil.rmtree(self.folder)
        return {}

    def _differing(self, good: Step, bad: Step) -> tuple[str, ...]:
        """The scenarios that pass at the good end and fail at the bad end, at least one."""
        pairs = [(good.of(judged.scenario), judged) for judged in bad.judged]
        expected = (Outcome.GOOD, Outcome.BAD)
        differ = [
            at_bad.scenario
            for at_good, at_bad in pairs
            if (at_good.outcome, at_bad.outcome) == expected
        ]
        if not differ:
            self.forget()  # A second try judges the ends again.
            _refuse_ends(self._ends, pairs)
        for at_good, at_bad in pairs:
            if at_bad.scenario not in differ:
                verdicts = f"{verdicts_text(at_good)} / {verdicts_text(at_bad)}"
                self._listener.note(f"{at_bad.scenario} is left out: good / bad end are {verdicts}")
        return tuple(differ)


def verdicts_text(judged: Judged) -> str:
    """The verdicts of a scenario at a commit, such as `FAIL` or `3 FAIL, 7 PASS`."""
    if len(judged.verdicts) == 1:
        return judged.verdicts[0]
    names = sorted(set(judged.verdicts))
    return ", ".join(f"{judged.verdicts.count(name)} {name}" for name in names)


def _refuse_ends(ends: CommitRange, pairs: Sequence[tuple[Judged, Judged]]) -> NoReturn:
    """Explain why there is nothing to bisect between two ends.

    Args:
        ends: both.
        pairs: each scenario at the good and at the bad end.
    """
    rows = [
        f"  {good.scenario}: {verdicts_text(good)} at the good end {ends.good.short}, "
        f"{verdicts_text(bad)} at the bad end {ends.bad.short}"
        for good, bad in pairs
    ]
    unclear = [
        judged for pair in pairs for judged in reversed(pair) if judged.outcome is Outcome.UNKNOWN
    ]
    if unclear:
        message = "\n".join(["an end of the bisection could not be judged:", *rows])
        reasons = [judged.reason for judged in unclear if judged.reason]
        if reasons:
            message += f"\n  {reasons[0].splitlines()[0]}"
        hint = "name an end that can be judged"
        verdicts = {name for judged in unclear for name in judged.verdicts}
        if Verdict.UNBUILDABLE.name in verdicts:
            raise UnbuildableError(message, hint=hint)
        if SKIPPED in verdicts:
            raise UsageError(message, hint=hint)
        raise InconclusiveError(message, hint=f"{hint}, or try again with more --runs")
    outcomes = [(good.outcome, bad.outcome) for good, bad in pairs]
    if (Outcome.BAD, Outcome.GOOD) in outcomes:
        exchanged = f"--good {ends.bad.short} --bad {ends.good.short}"
        hint = f"the newer end passes: look for the fix, with --first-good {exchanged}"
        if ends.first_good:
            hint = f"the older end passes: leave --first-good out, with {exchanged}"
    elif (Outcome.BAD, Outcome.BAD) in outcomes:
        age = "a newer" if ends.first_good else "an older"
        hint = f"take {age} good commit; harness compare shows two kernels side by side"
    else:
        hint = "take another bad commit, its --config, or more --runs for a failure that is rare"
    raise UsageError("\n".join(["the ends do not differ as they should:", *rows]), hint=hint)


def _other(outcome: Outcome) -> Outcome:
    return Outcome.BAD if outcome is Outcome.GOOD else Outcome.GOOD
