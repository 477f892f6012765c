# SPDX-License-Identifier: GPL-2.0-or-later
"""The bisections of a night: one commit often breaks many entries, and their time is limited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.contract.result import RunResult, Verdict
from harness.core.errors import UsageError
from harness.matrix.plan import Combination
from harness.matrix.watched_pool import Ended
from harness.nightly import bisect as night_bisect
from harness.nightly.bisect import BisectingTime
from harness.nightly.diff import BisectOutcome
from harness.nightly.history import open_history
from harness.nightly.night import Nightly, NightOptions, NightResult
from harness.nightly.repo import NightTree

# Of the branch, the oldest first.
COMMITS = [f"{number}" * 40 for number in range(9)]
SCENARIOS = ("exact_cover", "no_region", "partial_region", "two_ranges_in_region")


@dataclass(frozen=True)
class Tree(NightTree):
    """A linear history."""

    tip: int
    gone: str = ""

    def fetch(self, branch: str) -> tuple[str, str]:
        return COMMITS[self.tip], "a subject"

    def keep(self, night: int, commit: str) -> None: ...

    def has(self, commit: str) -> bool:
        return commit != self.gone

    def is_ancestor(self, old: str, new: str) -> bool:
        return True

    def count(self, old: str, new: str) -> int:
        return COMMITS.index(new) - COMMITS.index(old)

    def parent(self, commit: str) -> str | None:
        return COMMITS[COMMITS.index(commit) - 1]


class Nights:
    """Nights without guests.

    Attributes:
        broke: index of the first bad commit of each scenario.
        requested: scenario and ends of each bisection.
        lost: the scenario that cannot be judged.
        killed: the number of bisections after which the night is interrupted.
        takes: seconds that each bisection takes.
        left: seconds that each bisection had.
        minutes: for all bisections of a night.
        clock: seconds on the monotonic clock.
    """

    def __init__(self, folder: Path, broke: dict[str, int]) -> None:
        self._folder = folder
        self.broke = broke
        self.requested: list[tuple[str, int, int]] = []
        self.killed = 99
        self.takes = self.clock = 0.0
        self.left: list[float] = []
        self.minutes = 240.0
        self.notes: list[str] = []
        self.gone = ""
        self.lost = ""

    def fails(self, scenario: str, commit: str) -> bool:
        return COMMITS.index(commit) >= self.broke.get(scenario, 99)

    def bisect(
        self, entry: Combination, good: str, bad: str, _folder: Path, time: BisectingTime
    ) -> BisectOutcome:
        self.left.append(time.left())
        if len(self.requested) == self.killed:
            self.clock += self.takes / 4
            raise KeyboardInterrupt
        self.clock += self.takes
        self.requested.append((entry.scenario, COMMITS.index(good), COMMITS.index(bad)))
        if self.fails(entry.scenario, good) or not self.fails(entry.scenario, bad):
            raise UsageError("the good commit fails, or the bad one passes", hint="others")
        return BisectOutcome(COMMITS[self.broke[entry.scenario]], "s", ())

    def run(self, tip: int) -> NightResult:
        def run_job(left: Sequence[Combination], _results: Path, ended: Ended) -> None:
            for entry in left:
                failed = self.fails(entry.scenario, COMMITS[tip])
                verdict = Verdict.FAIL if failed else Verdict.PASS
                verdict = Verdict.INCONCLUSIVE if entry.scenario == self.lost else verdict
                result = RunResult(entry.scenario, entry.request, entry.policy, verdict)
                ended(entry, result.as_json(), {})

        matrix = self._folder / "m.yaml"
        matrix.write_text(f"kernels: [branch]\nscenarios: [{', '.join(SCENARIOS)}]\n")
        state = self._folder / "state"
        state.mkdir(exist_ok=True)
        tree = Tree("/linux", state / "tree", tip, self.gone)
        with open_history(state, print) as history:
            night = Nightly(
                *(state, history, tree, "1", lambda _request: None, run_job, self.bisect),
                self.notes.append,
            )
            result = night.run(NightOptions("next", matrix, bisect_minutes=self.minutes))
            night.finish(result.night, 30)
        return result


def commits_of(result: NightResult) -> dict[str, str]:
    return {key.scenario: outcome.commit[:1] for key, outcome in result.bisections.items()}


def lines_of(result: NightResult, scenario: str) -> str:
    (outcome,) = [one for key, one in result.bisections.items() if key.scenario == scenario]
    return "\n".join(outcome.lines)


@pytest.fixture
def nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nights:
    made = Nights(tmp_path, {"exact_cover": 5, "no_region": 5, "partial_region": 3})
    clock = SimpleNamespace(monotonic=lambda: made.clock)
    monkeypatch.setattr(night_bisect, "time", clock)
    made.run(0)
    return made


# The second broke with the commit of the first; the third did not, and is bisected in full.
REQUESTED = [("exact_cover", 0, 8), ("no_region", 4, 5), ("partial_region", 4, 5)]
REQUESTED += [("partial_region", 0, 8)]
FOUND = {"exact_cover": "5", "no_region": "5", "partial_region": "3"}
USED_UP = "not bisected: the time is used up, 10 minutes a night (--bisect-total-minutes)"


def test_the_commit_that_broke_another_entry_is_tried_first(nights: Nights) -> None:
    assert commits_of(nights.run(8)) == FOUND
    assert nights.requested == REQUESTED


@pytest.mark.parametrize("killed", [0, 1, 2, 3])
def test_an_interrupted_night_continues_with_the_next_bisection(
    nights: Nights, killed: int
) -> None:
    nights.killed = killed
    with pytest.raises(KeyboardInterrupt):
        nights.run(8)
    nights.killed = 99
    assert commits_of(nights.run(8)) == FOUND
    assert list(dict.fromkeys(nights.requested)) == REQUESTED
    for first in REQUESTED[:2]:
        assert nights.requested.count(first) == 1


def test_a_commit_between_other_ends_is_not_tried(nights: Nights) -> None:
    """The cause of a failure since an earlier night cannot have broken what passed after it."""
    nights.broke = {"exact_cover": 2, "two_ranges_in_region": 6}
    nights.run(4)
    nights.requested.clear()
    nights.broke["no_region"] = 6
    assert commits_of(nights.run(8)) == {"no_region": "6", "two_ranges_in_region": "6"}
    assert nights.requested == [("no_region", 4, 8), ("two_ranges_in_region", 5, 6)]


def test_a_commit_since_another_good_commit_is_not_tried(nights: Nights) -> None:
    nights.broke = {"exact_cover": 2, "no_region": 6}
    nights.lost = "exact_cover"
    nights.run(4)
    nights.lost = ""
    assert commits_of(nights.run(8)) == {"exact_cover": "2", "no_region": "6"}
    assert nights.requested == [("exact_cover", 0, 8), ("no_region", 4, 8)]


def test_all_bisections_of_a_night_share_its_time(nights: Nights) -> None:
    nights.minutes, nights.takes = 10, 400
    result = nights.run(8)
    assert nights.left == [600, 200]
    assert commits_of(result) == {**FOUND, "partial_region": ""}
    assert lines_of(result, "partial_region") == USED_UP
    # The next night has its own time.
    nights.broke["two_ranges_in_region"] = 0
    assert lines_of(nights.run(8), "two_ranges_in_region") != USED_UP


def test_trying_the_commit_of_another_entry_takes_time(nights: Nights) -> None:
    nights.broke = {"exact_cover": 5, "partial_region": 3}
    nights.minutes, nights.takes = 10, 400
    result = nights.run(8)
    assert nights.left == [600, 200]
    assert lines_of(result, "partial_region") == USED_UP


def test_an_interrupted_night_has_the_time_that_is_left(nights: Nights) -> None:
    nights.minutes, nights.takes, nights.killed = 10, 400, 1
    with pytest.raises(KeyboardInterrupt):
        nights.run(8)
    nights.killed = 99
    assert not [note for note in nights.notes if "earlier starts" in note]
    result = nights.run(8)
    assert nights.left == [600, 200, 100]
    (note,) = [note for note in nights.notes if "earlier starts" in note]
    assert note == "earlier starts of this night spent 8.3 of 10 minutes on bisections"
    assert lines_of(result, "partial_region") == USED_UP


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        ({"broke": {"no_region": 0}, "tip": 0}, "the same commit passed before"),
        ({"gone": COMMITS[0]}, f"the commit that passed, {'0' * 12}, is gone"),
    ],
)
def test_the_reason_not_to_bisect(nights: Nights, prepare: dict[str, Any], reason: str) -> None:
    nights.broke = prepare.get("broke", nights.broke)
    nights.gone = prepare.get("gone", "")
    result = nights.run(prepare.get("tip", 8))
    assert reason in lines_of(result, "no_region")
    assert nights.requested == []
