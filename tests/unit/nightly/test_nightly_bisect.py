# SPDX-License-Identifier: GPL-2.0-or-later
"""Which commits a night looks at for its regressions; many lines often have one cause."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.contract.result import RunResult, Verdict
from harness.core.errors import UsageError
from harness.matrix.plan import Combination
from harness.matrix.watched_pool import Ended
from harness.nightly import bisect as night_bisecting
from harness.nightly.bisect import BisectingTime
from harness.nightly.diff import Bisecting
from harness.nightly.history import open_history
from harness.nightly.night import Asked, Nightly, NightResult
from harness.nightly.repo import NightTree

# Of the branch, the oldest first.
COMMITS = [f"{number}" * 40 for number in range(9)]
SCENARIOS = ("exact_cover", "no_region", "partial_region", "two_ranges_in_region")


class Tree(NightTree):
    """A straight history, of which the branch has so many commits."""

    def __init__(self, folder: Path, tip: int) -> None:
        super().__init__("/linux", folder)
        vars(self)["tip"] = tip

    def fetch(self, branch: str) -> tuple[str, str]:
        return COMMITS[vars(self)["tip"]], "a subject"

    def keep(self, night: int, commit: str) -> None: ...

    def has(self, commit: str) -> bool:
        return True

    def is_ancestor(self, old: str, new: str) -> bool:
        return True

    def count(self, old: str, new: str) -> int:
        return COMMITS.index(new) - COMMITS.index(old)

    def parent(self, commit: str) -> str | None:
        return COMMITS[COMMITS.index(commit) - 1]


class Saying:
    def __init__(self, noted: list[str]) -> None:
        self._noted = noted

    def note(self, text: str) -> None:
        self._noted.append(text)


class Nights:
    """Nights without guests.

    Attributes:
        broke: at which commit each scenario breaks.
        asked: the ends of each bisection, by scenario.
        killed: after how many bisections the night is cut short.
        takes: how many seconds a bisection takes.
        left: how many seconds each bisection had.
        minutes: how long all may take.
        clock: what it says.
        noted: what a night said.
    """

    def __init__(self, folder: Path, broke: dict[str, int]) -> None:
        self._folder = folder
        self.broke = broke
        self.asked: list[tuple[str, int, int]] = []
        self.killed = 99
        self.takes = self.clock = 0.0
        self.left: list[float] = []
        self.minutes = 240.0
        self.noted: list[str] = []
        (folder / "m.yaml").write_text(f"kernels: [branch]\nscenarios: [{', '.join(SCENARIOS)}]\n")

    def fails(self, scenario: str, commit: str) -> bool:
        return COMMITS.index(commit) >= self.broke.get(scenario, 99)

    def bisect(
        self, one: Combination, good: str, bad: str, _folder: Path, time: BisectingTime
    ) -> Bisecting:
        self.left.append(time.left())
        if len(self.asked) == self.killed:
            self.clock += self.takes / 4
            raise KeyboardInterrupt
        self.clock += self.takes
        ends = COMMITS.index(good), COMMITS.index(bad)
        self.asked.append((one.scenario, *ends))
        if self.fails(one.scenario, good) or not self.fails(one.scenario, bad):
            raise UsageError("the ends do not differ as they should", hint="others")
        return Bisecting(COMMITS[self.broke[one.scenario]], "s", ())

    def run(self, tip: int) -> NightResult:
        def run_job(left: Sequence[Combination], _results: Path, ended: Ended) -> None:
            for one in left:
                failed = self.fails(one.scenario, COMMITS[tip])
                verdict = Verdict.FAIL if failed else Verdict.PASS
                result = RunResult(one.scenario, one.request, one.policy, verdict)
                ended(one, result.as_json(), {})

        state = self._folder / "state"
        state.mkdir(exist_ok=True)
        with open_history(state, print) as history:
            night = Nightly(
                *(state, history, Tree(state / "tree", tip), "1", lambda _request: None),
                *(run_job, self.bisect, Saying(self.noted)),
            )
            asked = Asked("next", self._folder / "m.yaml", bisect_minutes=self.minutes)
            result = night.run(asked)
            night.finish(result.night, 30)
        return result

    def found(self, result: NightResult) -> dict[str, str]:
        return {line.scenario: came.commit[:1] for line, came in result.bisectings.items()}


@pytest.fixture
def nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nights:
    made = Nights(tmp_path, {"exact_cover": 5, "no_region": 5, "partial_region": 3})
    clock = SimpleNamespace(monotonic=lambda: made.clock)
    monkeypatch.setattr(night_bisecting, "time", clock)
    return made


# The second has the commit of the first, the third another: it takes the whole way.
ASKED = [("exact_cover", 0, 8), ("no_region", 4, 5), ("partial_region", 4, 5)]
ASKED += [("partial_region", 0, 8)]
FOUND = {"exact_cover": "5", "no_region": "5", "partial_region": "3"}


def test_the_commit_that_broke_another_line_is_tried_first(nights: Nights) -> None:
    nights.run(0)
    assert nights.found(nights.run(8)) == FOUND
    assert nights.asked == ASKED


@pytest.mark.parametrize("killed", [0, 1, 2, 3])
def test_so_does_a_night_that_goes_on(nights: Nights, killed: int) -> None:
    nights.run(0)
    nights.killed = killed
    with pytest.raises(KeyboardInterrupt):
        nights.run(8)
    nights.killed = 99
    assert nights.found(nights.run(8)) == FOUND
    assert list(dict.fromkeys(nights.asked)) == ASKED


def test_a_line_that_passed_elsewhere_is_looked_at_from_there(nights: Nights) -> None:
    """A commit that another line was broken by before this one still passed says nothing."""
    nights.broke = {"exact_cover": 2, "two_ranges_in_region": 6}
    nights.run(0)
    nights.run(4)
    nights.asked.clear()
    nights.broke["no_region"] = 6
    assert nights.found(nights.run(8)) == {"no_region": "6", "two_ranges_in_region": "6"}
    assert nights.asked == [("no_region", 4, 8), ("two_ranges_in_region", 5, 6)]


def said(result: NightResult, scenario: str) -> str:
    (came,) = [one for line, one in result.bisectings.items() if line.scenario == scenario]
    return "\n".join(came.said)


USED_UP = "not bisected: the time is used up, 10 minutes a night (--bisect-total-minutes)"


def test_all_bisections_of_a_night_share_its_time(nights: Nights) -> None:
    nights.run(0)
    nights.minutes, nights.takes = 10, 400
    result = nights.run(8)
    assert nights.left == [600, 200]
    assert nights.found(result) == {**FOUND, "partial_region": ""}
    assert said(result, "partial_region") == USED_UP
    # A night of its own has its own time.
    nights.broke["two_ranges_in_region"] = 0
    assert said(nights.run(8), "two_ranges_in_region") != USED_UP


def test_the_time_that_a_commit_of_another_line_took_counts_too(nights: Nights) -> None:
    """Its own search is not begun when trying that has used the time up."""
    nights.broke = {"exact_cover": 5, "partial_region": 3}
    nights.run(0)
    nights.minutes, nights.takes = 10, 400
    result = nights.run(8)
    assert nights.left == [600, 200]
    assert said(result, "partial_region") == USED_UP


def test_a_night_that_goes_on_has_the_time_that_is_left(nights: Nights) -> None:
    nights.run(0)
    nights.minutes, nights.takes, nights.killed = 10, 400, 1
    with pytest.raises(KeyboardInterrupt):
        nights.run(8)
    nights.killed = 99
    assert not [one for one in nights.noted if "has taken" in one]
    result = nights.run(8)
    assert nights.left == [600, 200, 100]
    assert said(result, "partial_region") == USED_UP
    (told,) = [one for one in nights.noted if "has taken" in one]
    assert told == "looking for commits has taken 8.3 minutes of this night before, of 10"
