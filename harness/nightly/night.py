# SPDX-License-Identifier: GPL-2.0-or-later
"""A night: fetch a branch, build its kernels, run the matrix, compare, bisect what is new.

All that a night found out is in its history at once. Killed at any point and started again, it
goes on with the same commit, and what was done is not done again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.contract.result import NotAResultError, RunResult, Verdict, read_result
from harness.core.errors import (
    HarnessError,
    InconclusiveError,
    NotConfigurableError,
    UnbuildableError,
    UsageError,
)
from harness.matrix.entry import Message
from harness.matrix.matrix_file import load_matrix
from harness.matrix.plan import Combination, Plan
from harness.matrix.watched_pool import Ended
from harness.matrix.worker_messages import NO_HOST
from harness.nightly.bisect import Bisect, NightBisecting
from harness.nightly.diff import SKIPPED, Bisecting, Line, Row, Seen, line_of, seen_in
from harness.nightly.history import Night, NightHistory
from harness.nightly.repo import NightTree, rebased
from harness.runs.prepare import request_for
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario_files import load_case

NIGHTS = "nights"
LATEST = "latest"

Build = Callable[[KernelRequest], object]
"""Gets a kernel into the store."""

RunJob = Callable[[Sequence[Combination], Path, Ended], None]
"""Runs combinations, in a folder; a combination that was cut short is not heard of."""


class Listener(Protocol):
    """Hears how a night goes."""

    def note(self, text: str) -> None:
        """Something worth saying."""


@dataclass(frozen=True)
class Asked:
    """A night as a user asks for it.

    Attributes:
        branch: which branch.
        matrix: the matrix file, which names the kernel `branch`.
        fresh: begin anew, whatever was left unfinished.
        bisect_minutes: how long all bisections together may take, > 0; a night that is started
            again has what is left of it.
    """

    branch: str
    matrix: Path
    fresh: bool = False
    bisect_minutes: float = 240


@dataclass(frozen=True)
class NightResult:
    """What a night saw.

    Attributes:
        night: which.
        last: the night of the same branch before, None where there was none.
        rows: by line.
        bisectings: what came of looking for commits, for some of the regressions.
        spec: the SPEC of the branch's kernel.
        plan: what was run, and what was left out.
        ahead: how many commits the branch has that it did not have in the last night.
        gone: lines of the last night that the matrix does not have any more.
    """

    night: Night
    last: Night | None
    rows: tuple[Row, ...]
    bisectings: Mapping[Line, Bisecting]
    spec: str
    plan: Plan
    ahead: int
    gone: tuple[Line, ...]


class Nightly:
    """The nights of one repository.

    Args:
        state: the folder with the history; hold its lock.
        history: of all nights.
        tree: the repository.
        harness: the version of the harness.
        build: gets a kernel into the store.
        run_job: runs combinations.
        bisect: looks for a commit.
        listener: hears how it goes.
    """

    def __init__(
        self,
        state: Path,
        history: NightHistory,
        tree: NightTree,
        harness: str,
        build: Build,
        run_job: RunJob,
        bisect: Bisect,
        listener: Listener,
    ) -> None:
        self._state = state
        self._history = history
        self._tree = tree
        self._harness = harness
        self._build = build
        self._run_job = run_job
        self._bisect = bisect
        self._listener = listener

    def folder(self, night: Night) -> Path:
        """Where a night's reports and evidence are."""
        return self._state / NIGHTS / str(night.number)

    def run(self, asked: Asked) -> NightResult:
        """Do what is left of a night; `finish` comes after its report is written.

        Raises:
            UsageError: the matrix is wrong, there is no such branch, or the machine cannot do it.
            InconclusiveError: the branch cannot be fetched.
        """
        text = _matrix_text(asked.matrix)
        # What is wrong with it is said before the fetch.
        load_matrix(asked.matrix, f"build:{self._tree.folder}")
        night = self._unfinished(asked, text) or self._begin(asked, text)
        spec = f"build:{self._tree.folder}@{night.commit}"
        plan = load_matrix(asked.matrix, spec)
        self.folder(night).mkdir(parents=True, exist_ok=True)
        self._run_matrix(night, plan.chosen, spec)
        NightBisecting(
            *(night, self._history, self._tree, self._bisect, self._listener.note),
            *(self.folder(night) / "bisect", asked.bisect_minutes),
        ).run(
            self._rows(night, plan.chosen, spec), {line_of(one, spec): one for one in plan.chosen}
        )
        return self._result(night, plan, spec)

    def finish(self, night: Night, keep: int) -> None:
        """Remove folders and whole results of old nights, and say that one is complete.

        Args:
            night: which.
            keep: how many nights keep their evidence, at least 1.
        """
        root = self._state / NIGHTS
        link = root / f"{LATEST}.new"
        link.unlink(missing_ok=True)
        link.symlink_to(str(night.number))
        os.replace(link, root / LATEST)
        # Another branch may have had nights since this one began.
        numbers = self._numbers()
        for number in set(numbers[:-keep]) - {night.number}:
            shutil.rmtree(root / str(number), ignore_errors=True)
        self._history.shorten(min(numbers[-keep:], default=night.number))
        self._history.end(night)

    def _numbers(self) -> list[int]:
        """The nights that have a folder."""
        names = (one.name for one in (self._state / NIGHTS).glob("*"))
        return sorted(int(name) for name in names if name.isdigit())

    def _unfinished(self, asked: Asked, text: str) -> Night | None:
        night = self._history.unfinished(self._tree.source, asked.branch)
        if night is None:
            return None
        why = ""
        if asked.fresh:
            why = "as asked"
        elif night.matrix != text:
            why = "the matrix is another one now"
        elif night.harness != self._harness:
            why = "the harness is another one now"
        elif not self._tree.has(night.commit):
            why = f"its commit {night.commit[:12]} is gone"
        if why:
            self._listener.note(f"night {night.number} was not finished and is given up: {why}")
            return None
        done = len(self._history.seen(night))
        self._listener.note(
            f"going on with night {night.number} at {night.commit[:12]}; results so far: {done}"
        )
        return night

    def _begin(self, asked: Asked, text: str) -> Night:
        source, branch = self._tree.source, asked.branch
        last = self._history.last(source, branch)
        try:
            commit, subject = self._tree.fetch(branch)
        except UsageError as error:
            if last is None:
                raise
            raise UsageError(
                f"{error.message}; night {last.number} still saw it, at {last.commit[:12]}",
                where=error.where,
                hint=error.hint,
            ) from error
        if last is not None:
            rebased(self._tree, last.commit, commit, self._listener.note)
        # A new history, after a damaged one, must not take the folders of nights that were.
        above = max(self._numbers(), default=0)
        night = self._history.begin(source, branch, text, self._harness, commit, subject, above)
        self._tree.keep(night.number, commit)
        self._listener.note(f"night {night.number}: {branch} is at {commit[:12]} {subject}")
        return night

    def _run_matrix(self, night: Night, chosen: Sequence[Combination], spec: str) -> None:
        seen = self._history.seen(night)
        left = [one for one in chosen if line_of(one, spec) not in seen]
        left = self._buildable(night, left, spec)
        if not left:
            return

        why = ""

        def ended(one: Combination, result: Mapping[str, Any] | None, message: Message) -> None:
            nonlocal why
            if message.get("fail_class") == NO_HOST:
                # Not a word about this combination: it is to be run once a host is there again.
                why = f": {message.get('fail_reason', '')}"
                return
            self._history.add(night, line_of(one, spec), seen_at_end(result, message), result)

        self._listener.note(f"combinations to run: {len(left)} of {len(chosen)}")
        self._run_job(left, self.folder(night) / "jobs", ended)
        seen = self._history.seen(night)
        lost = [one for one in left if line_of(one, spec) not in seen]
        if lost:
            raise InconclusiveError(
                f"{len(lost)} of {len(left)} combinations came to no end, "
                f"such as {lost[0].name}{why}",
                where=str(self.folder(night)),
                hint="start it again: it goes on from here",
            )

    def _buildable(self, night: Night, left: Sequence[Combination], spec: str) -> list[Combination]:
        """Build every kernel once, before any guest; what does not build is not run."""
        by_kernel: dict[KernelRequest, list[Combination]] = {}
        for one in left:
            request = request_for(load_case(one.scenario), one.request)
            by_kernel.setdefault(request, []).append(one)
        runnable = []
        for request, combinations in by_kernel.items():
            try:
                self._build(request)
            except NotConfigurableError:
                pass  # what that means is for each scenario to say
            except (UnbuildableError, InconclusiveError) as error:
                self._listener.note(f"{request}: {error}")
                for one in combinations:
                    result = _unbuilt(one, request, error)
                    seen = seen_in(result)
                    self._history.add(night, line_of(one, spec), seen, result.as_json())
                continue
            runnable += combinations
        return runnable

    def _rows(self, night: Night, chosen: Sequence[Combination], spec: str) -> tuple[Row, ...]:
        wanted = {line_of(one, spec) for one in chosen}
        return tuple(
            Row(
                line,
                seen,
                self._history.earlier(night, line, judged=True),
                self._history.earlier(night, line, judged=False),
            )
            for line, seen in self._history.seen(night).items()
            if line in wanted
        )

    def _result(self, night: Night, plan: Plan, spec: str) -> NightResult:
        last = self._history.last(night.tree, night.branch, night.number)
        rows = self._rows(night, plan.chosen, spec)
        gone = set(self._history.seen(last)) - {row.line for row in rows} if last else set()
        known = last is not None and self._tree.has(last.commit)
        return NightResult(
            night,
            last,
            rows,
            self._history.bisectings(night),
            spec,
            plan,
            self._tree.count(last.commit, night.commit) if last and known else 0,
            tuple(sorted(gone)),
        )


def seen_at_end(result: Mapping[str, Any] | None, message: Message) -> Seen:
    """What the end of a combination says about its line."""
    if result is not None:
        with suppress(NotAResultError):
            return seen_in(read_result(result))
    reason = str(message.get("fail_reason", ""))
    kind = message.get("fail_class", "")
    if kind == "NotApplicable":
        return Seen(SKIPPED, reason=reason)
    unbuildable = kind == Verdict.UNBUILDABLE.name
    verdict = Verdict.UNBUILDABLE if unbuildable else Verdict.INCONCLUSIVE
    return Seen(verdict.name, reason=reason or "it ended without a result")


def _unbuilt(one: Combination, request: KernelRequest, error: HarnessError) -> RunResult:
    unbuildable = isinstance(error, UnbuildableError)
    return RunResult(
        load_case(one.scenario).name,
        request,
        one.policy,
        verdict=Verdict.UNBUILDABLE if unbuildable else Verdict.INCONCLUSIVE,
        reason=error.message if error.where is None else f"{error.where}: {error.message}",
        hint=error.hint,
    )


def _matrix_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        load_matrix(path)  # says what is wrong
        raise
