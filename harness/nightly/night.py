# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a night: fetch a branch, build its kernels, run the matrix, compare, bisect regressions.

Every outcome is recorded in the history immediately. A night that was killed and is started again
continues with the same commit and repeats nothing.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.contract.result import Verdict
from harness.core.errors import (
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
from harness.nightly.diff import BisectOutcome, EntryKey, Row, key_of
from harness.nightly.history import Night, NightHistory
from harness.nightly.outcome import outcome_at_end, outcome_of, result_without_kernel
from harness.nightly.repo import NightTree, note_rebase
from harness.runs.prepare import request_for
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario_files import load_case

NIGHTS = "nights"
LATEST = "latest"

Build = Callable[[KernelRequest], object]
"""Build or fetch a kernel into the store."""

RunJob = Callable[[Sequence[Combination], Path, Ended], None]
"""Run entries of the matrix in a folder; an entry that is interrupted has no end."""


@dataclass(frozen=True)
class NightOptions:
    """A night as requested by the user.

    Attributes:
        matrix: a matrix file that names the kernel `branch`.
        fresh: begin a new night even if the last one can be continued.
        bisect_minutes: for all bisections of the night together, > 0.
    """

    branch: str
    matrix: Path
    fresh: bool = False
    bisect_minutes: float = 240


@dataclass(frozen=True)
class NightResult:
    """The outcome of a night.

    Attributes:
        last: the last night of the same branch, if any.
        rows: in the order of keys.
        bisections: of some of the regressions.
        spec: the SPEC of the branch's kernel.
        plan: the entries that were run, and those that were left out.
        ahead: the number of commits on the branch since the last night.
        gone: entries of the last night that are no longer in the matrix.
    """

    night: Night
    last: Night | None
    rows: tuple[Row, ...]
    bisections: Mapping[EntryKey, BisectOutcome]
    spec: str
    plan: Plan
    ahead: int
    gone: tuple[EntryKey, ...]


@dataclass(frozen=True)
class Nightly:
    """The nights of one repository.

    Attributes:
        state: the folder with the history, locked by the caller.
        harness: the version of the harness.
        note: prints progress.
    """

    state: Path
    history: NightHistory
    tree: NightTree
    harness: str
    build: Build
    run_job: RunJob
    bisect: Bisect
    note: Callable[[str], None]

    def folder(self, night: Night) -> Path:
        """The folder for reports and evidence of a night."""
        return self.state / NIGHTS / str(night.number)

    def run(self, options: NightOptions) -> NightResult:
        """Do the rest of a night; call `finish` once its report is written.

        Raises:
            UsageError: the matrix is invalid, the branch does not exist, or the host lacks
                something that guests need.
            InconclusiveError: the branch cannot be fetched, or entries were interrupted.
        """
        # Report errors in the matrix before the fetch.
        load_matrix(options.matrix, f"build:{self.tree.folder}")
        text = options.matrix.read_text(encoding="utf-8")
        night = self._unfinished(options, text) or self._begin(options.branch, text)
        spec = f"build:{self.tree.folder}@{night.commit}"
        plan = load_matrix(options.matrix, spec)
        entries = {key_of(entry, spec): entry for entry in plan.chosen}
        self.folder(night).mkdir(parents=True, exist_ok=True)
        self._run_matrix(night, entries)
        rows = self._rows(night, entries)
        NightBisecting(
            *(night, self.history, self.tree, self.bisect, self.note),
            folder=self.folder(night) / "bisect",
            minutes=options.bisect_minutes,
        ).run(rows, entries)
        last = self.history.last(night.tree, night.branch, night.number)
        gone = set(self.history.outcomes(last)) - set(entries) if last else set()
        comparable = last is not None and self.tree.has(last.commit)
        return NightResult(
            night,
            last,
            rows,
            self.history.bisections(night),
            spec,
            plan,
            self.tree.count(last.commit, night.commit) if last and comparable else 0,
            tuple(sorted(gone)),
        )

    def finish(self, night: Night, keep: int) -> None:
        """Record that a night is complete, and remove what is kept of old nights no longer.

        Args:
            keep: the number of nights that keep their folder and whole results, at least 1.
        """
        root = self.state / NIGHTS
        link = root / f"{LATEST}.new"
        link.unlink(missing_ok=True)
        link.symlink_to(str(night.number))
        os.replace(link, root / LATEST)
        numbers = self._numbers()
        # This night may have begun before others of another branch.
        for number in set(numbers[:-keep]) - {night.number}:
            shutil.rmtree(root / str(number), ignore_errors=True)
        self.history.drop_details(min(numbers[-keep:], default=night.number))
        self.history.end(night)

    def _numbers(self) -> list[int]:
        """The nights that have a folder."""
        names = (path.name for path in (self.state / NIGHTS).glob("*"))
        return sorted(int(name) for name in names if name.isdigit())

    def _unfinished(self, options: NightOptions, text: str) -> Night | None:
        """The night to continue, if any."""
        night = self.history.unfinished(self.tree.source, options.branch)
        if night is None:
            return None
        reason = ""
        if options.fresh:
            reason = "--fresh"
        elif night.matrix != text:
            reason = "the matrix has changed"
        elif night.harness != self.harness:
            reason = "the harness has changed"
        elif not self.tree.has(night.commit):
            reason = f"its commit {night.commit[:12]} is gone"
        if reason:
            self.note(f"night {night.number} was not finished and is given up: {reason}")
            return None
        done = len(self.history.outcomes(night))
        self.note(f"continuing night {night.number} at {night.commit[:12]}; results so far: {done}")
        return night

    def _begin(self, branch: str, text: str) -> Night:
        source = self.tree.source
        last = self.history.last(source, branch)
        try:
            commit, subject = self.tree.fetch(branch)
        except UsageError as error:
            if last is None:
                raise
            raise UsageError(
                f"{error.message}; night {last.number} found it at {last.commit[:12]}",
                where=error.where,
                hint=error.hint,
            ) from error
        if last is not None:
            note_rebase(self.tree, last.commit, commit, self.note)
        # A new history after a damaged one must not reuse the folders of earlier nights.
        above = max(self._numbers(), default=0)
        night = self.history.begin(
            Night(0, source, branch, text, self.harness, commit, subject, time.time()), above
        )
        self.tree.keep(night.number, commit)
        self.note(f"night {night.number}: {branch} is at {commit[:12]} {subject}")
        return night

    def _run_matrix(self, night: Night, entries: Mapping[EntryKey, Combination]) -> None:
        """Run the entries that have no outcome yet.

        Raises:
            InconclusiveError: some still have none.
        """
        done = self.history.outcomes(night)
        left = {key: entry for key, entry in entries.items() if key not in done}
        left = self._buildable(night, left)
        if not left:
            return
        keys = {entry: key for key, entry in left.items()}
        lost_host = ""

        def ended(entry: Combination, result: Mapping[str, Any] | None, message: Message) -> None:
            nonlocal lost_host
            if message.get("fail_class") == NO_HOST:
                # Not an outcome: the entry is run when the night is continued with a host.
                lost_host = f": {message.get('fail_reason', '')}"
            else:
                self.history.add(night, keys[entry], outcome_at_end(result, message), result)

        self.note(f"matrix entries to run: {len(left)} of {len(entries)}")
        self.run_job(list(left.values()), self.folder(night) / "jobs", ended)
        done = self.history.outcomes(night)
        interrupted = [entry for key, entry in left.items() if key not in done]
        if interrupted:
            raise InconclusiveError(
                f"{len(interrupted)} of {len(left)} matrix entries were interrupted, "
                f"such as {interrupted[0].name}{lost_host}",
                where=str(self.folder(night)),
                hint="start the night again: it continues with these",
            )

    def _buildable(
        self, night: Night, left: Mapping[EntryKey, Combination]
    ) -> dict[EntryKey, Combination]:
        """Build every kernel before any guest starts, and return the entries that can run.

        The others get the outcome of their kernel.
        """
        by_kernel: dict[KernelRequest, dict[EntryKey, Combination]] = {}
        for key, entry in left.items():
            request = request_for(load_case(entry.scenario), entry.request)
            by_kernel.setdefault(request, {})[key] = entry
        runnable: dict[EntryKey, Combination] = {}
        for request, entries in by_kernel.items():
            try:
                # A missing option is judged by each scenario.
                with suppress(NotConfigurableError):
                    self.build(request)
                runnable |= entries
            except (UnbuildableError, InconclusiveError) as error:
                self.note(f"{request}: {error}")
                for key, entry in entries.items():
                    result = result_without_kernel(entry, request, error)
                    self.history.add(night, key, outcome_of(result), result.as_json())
        return runnable

    def _rows(self, night: Night, entries: Mapping[EntryKey, Combination]) -> tuple[Row, ...]:
        judged = (Verdict.PASS, Verdict.FAIL)
        return tuple(
            Row(
                key,
                outcome,
                self.history.earlier(night, key, *judged),
                self.history.earlier(night, key, *judged, Verdict.UNBUILDABLE),
            )
            for key, outcome in self.history.outcomes(night).items()
            if key in entries
        )
