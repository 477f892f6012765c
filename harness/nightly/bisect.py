# SPDX-License-Identifier: GPL-2.0-or-later
"""Looking for the commits that broke what a night saw break, for no longer than it may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.core.errors import HarnessError
from harness.matrix.plan import Combination
from harness.nightly.diff import Bisecting, Line, Row
from harness.nightly.history import Night, NightHistory
from harness.nightly.repo import NightTree

_MOST_TRIED = 2


class BisectingTime:
    """How long a night may still look for commits. What it has taken is in the history at once.

    Args:
        history: of all nights.
        night: which.
        minutes: how long all bisections of the night may take together, > 0.
    """

    def __init__(self, history: NightHistory, night: Night, minutes: float) -> None:
        self._history = history
        self._night = night
        self.minutes = minutes
        self._since: float | None = None

    def taken(self) -> float:
        """Seconds that were taken so far, by starts before this one too."""
        running = 0.0 if self._since is None else time.monotonic() - self._since
        return self._history.bisecting_seconds(self._night) + running

    def left(self) -> float:
        """Seconds, never negative."""
        return max(0.0, 60 * self.minutes - self.taken())

    def keep(self) -> None:
        """Write down what has passed: a kill loses what comes after."""
        if self._since is not None:
            now = time.monotonic()
            self._history.add_bisecting_seconds(self._night, now - self._since)
            self._since = now

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time passes within the block."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self.keep()
            self._since = None


Bisect = Callable[[Combination, str, str, Path, BisectingTime], Bisecting]
"""Looks for the first bad commit of a combination between a good and a bad one; in a folder.

It begins no step behind the time that is left, and keeps what has passed after each step.
"""


class NightBisecting:
    """Looks for the commits of one night's regressions.

    Args:
        night: which.
        history: of all nights.
        tree: the repository.
        bisect: looks for one commit.
        note: hears how it goes.
        folder: for the evidence.
        minutes: how long it may take altogether, however often the night is started, > 0.
    """

    def __init__(
        self,
        night: Night,
        history: NightHistory,
        tree: NightTree,
        bisect: Bisect,
        note: Callable[[str], None],
        folder: Path,
        minutes: float,
    ) -> None:
        self._night = night
        self._history = history
        self._tree = tree
        self._bisect = bisect
        self._note = note
        self._folder = folder
        self._time = BisectingTime(history, night, minutes)

    def run(self, rows: Sequence[Row], by_line: Mapping[Line, Combination]) -> None:
        """Look for the commit of each row that has a good end and was not looked at yet."""
        made = self._history.bisectings(self._night)
        causes: dict[str, list[str]] = {}
        if self._time.taken() >= 1 and any(row.good and row.line not in made for row in rows):
            self._note(
                f"looking for commits has taken {self._time.taken() / 60:.1f} minutes of this "
                f"night before, of {self._time.minutes:g}"
            )
        for row in rows:
            if row.good is None:
                continue
            found = causes.setdefault(row.good.commit, [])
            came = made.get(row.line)
            if came is None:
                came = self._look(row, row.good.commit, by_line[row.line], found)
                self._history.add_bisecting(self._night, row.line, came)
            if came.commit:
                found[:] = [came.commit, *(one for one in found if one != came.commit)]

    def _look(self, row: Row, good: str, one: Combination, found: Sequence[str]) -> Bisecting:
        why = ""
        if good == self._night.commit:
            why = "the same commit passed before: it does not always fail"
        elif one.series is not None:
            why = "with a series on top, nothing is bisected"
        elif not self._tree.has(good):
            why = f"{good[:12]}, which passed, is gone"
        elif not self._time.left():
            why = self._used_up()
        if why:
            return Bisecting("", "", (why,))
        self._note(f"looking for the commit that broke {row.line}")
        try:
            with self._time.running():
                return self._first_bad(one, good, found)
        except HarnessError as error:
            return Bisecting("", "", tuple(str(error).splitlines()))

    def _used_up(self) -> str:
        return (
            f"not bisected: the time is used up, {self._time.minutes:g} minutes a night "
            "(--bisect-total-minutes)"
        )

    def _first_bad(self, one: Combination, good: str, found: Sequence[str]) -> Bisecting:
        """Look for the commit that broke a line, at those first that broke others since `good`.

        One commit often breaks many lines: its kernels are built, and two steps tell.
        """
        for commit in found[:_MOST_TRIED]:
            parent = self._tree.parent(commit)
            if parent is not None:
                with suppress(HarnessError):  # it is another one
                    came = self._bisect(one, parent, commit, self._folder, self._time)
                    if came.commit:
                        return came
        if found and not self._time.left():
            return Bisecting("", "", (self._used_up(),))
        return self._bisect(one, good, self._night.commit, self._folder, self._time)
