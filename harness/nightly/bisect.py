# SPDX-License-Identifier: GPL-2.0-or-later
"""Bisect the regressions of a night within a limited time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import HarnessError
from harness.matrix.plan import Combination
from harness.nightly.diff import BisectOutcome, Earlier, EntryKey, Row
from harness.nightly.history import Night, NightHistory
from harness.nightly.repo import NightTree

_MOST_CANDIDATES = 2


class BisectingTime:
    """The time that a night may still spend on bisections; time spent is in its history.

    Args:
        minutes: for all bisections of the night together, > 0.
    """

    def __init__(self, history: NightHistory, night: Night, minutes: float) -> None:
        self._history = history
        self._night = night
        self._before = history.bisecting_seconds(night)
        self._start: float | None = None
        self.minutes = minutes

    def start(self) -> None:
        """Start the clock, unless it is running."""
        if self._start is None:
            self._start = time.monotonic()

    def taken(self) -> float:
        """Seconds spent so far, in earlier starts of the night too."""
        return self._before + (0 if self._start is None else time.monotonic() - self._start)

    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, 60 * self.minutes - self.taken())

    def keep(self) -> None:
        """Record the time spent so far: a kill loses only what is spent later."""
        self._history.set_bisecting_seconds(self._night, self.taken())


Bisect = Callable[[Combination, str, str, Path, BisectingTime], BisectOutcome]
"""Find the first bad commit of an entry between a good and a bad one, with evidence in a folder.

It starts no step when no time is left, and calls `keep` after each step.
"""


@dataclass(frozen=True)
class NightBisecting:
    """The bisections of one night.

    Attributes:
        note: prints progress.
        folder: for the evidence.
        minutes: for all bisections together, over all starts of the night, > 0.
    """

    night: Night
    history: NightHistory
    tree: NightTree
    bisect: Bisect
    note: Callable[[str], None]
    folder: Path
    minutes: float

    def run(self, rows: Sequence[Row], entries: Mapping[EntryKey, Combination]) -> None:
        """Bisect each regression that has a good commit and was not bisected yet."""
        done = self.history.bisections(self.night)
        todo = [(row.key, row.good) for row in rows if row.good is not None]
        time_left = BisectingTime(self.history, self.night, self.minutes)
        if time_left.taken() >= 1 and any(key not in done for key, _ in todo):
            self.note(
                f"earlier starts of this night spent {time_left.taken() / 60:.1f} of "
                f"{self.minutes:g} minutes on bisections"
            )
        # First bad commits by good commit, the latest first.
        causes: dict[str, list[str]] = {}
        for key, good in todo:
            candidates = causes.setdefault(good.commit, [])
            outcome = done.get(key)
            if outcome is None:
                outcome = self._outcome(key, good, entries[key], candidates, time_left)
                self.history.add_bisection(self.night, key, outcome)
            if outcome.commit:
                candidates[:] = dict.fromkeys([outcome.commit, *candidates])

    def _outcome(
        self,
        key: EntryKey,
        good: Earlier,
        entry: Combination,
        candidates: Sequence[str],
        time_left: BisectingTime,
    ) -> BisectOutcome:
        reason = self._why_not(good.commit, entry, time_left)
        if reason:
            return BisectOutcome("", "", (reason,))
        self.note(f"bisecting {key}")
        time_left.start()
        try:
            return self._first_bad(entry, good.commit, candidates, time_left)
        except HarnessError as error:
            return BisectOutcome("", "", tuple(str(error).splitlines()))
        finally:
            time_left.keep()

    def _why_not(self, good: str, entry: Combination, time_left: BisectingTime) -> str:
        """The reason not to bisect an entry, or empty."""
        if good == self.night.commit:
            return "not bisected: the same commit passed before, so the failure is intermittent"
        if entry.series is not None:
            return "not bisected: the kernel has a series on top of the branch"
        if not self.tree.has(good):
            return f"not bisected: the commit that passed, {good[:12]}, is gone"
        return "" if time_left.left() else _used_up(time_left)

    def _first_bad(
        self,
        entry: Combination,
        good: str,
        candidates: Sequence[str],
        time_left: BisectingTime,
    ) -> BisectOutcome:
        """Find the commit that broke an entry.

        A commit often breaks many entries: try those that broke others since the same good commit
        first, which takes two steps, with kernels that are built already.
        """
        for commit in candidates[:_MOST_CANDIDATES]:
            parent = self.tree.parent(commit)
            if parent is not None:
                with suppress(HarnessError):  # another commit broke this entry
                    outcome = self.bisect(entry, parent, commit, self.folder, time_left)
                    if outcome.commit:
                        return outcome
        if candidates and not time_left.left():
            return BisectOutcome("", "", (_used_up(time_left),))
        return self.bisect(entry, good, self.night.commit, self.folder, time_left)


def _used_up(time_left: BisectingTime) -> str:
    return (
        f"not bisected: the time is used up, {time_left.minutes:g} minutes a night "
        "(--bisect-total-minutes)"
    )
