# SPDX-License-Identifier: GPL-2.0-or-later
"""Small git trees to bisect over; a commit's own subject says what its runs end with."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fake_sources import FAKE_KERNEL, git
from fake_sources import Listener as Notes

from harness.bisect.ends import Asked, Opened, open_bisection
from harness.bisect.probe import SKIPPED, Judgement
from harness.bisect.record import Record, open_record
from harness.bisect.run import Bisection, Ends
from harness.bisect.search import Bisected, Failures, Judged, Outcome, Step
from harness.core.cache import Store
from harness.core.deadline import Deadline
from harness.scenario.kernel_request import KernelRequest

VERDICTS = {"good": "PASS", "bad": "FAIL", "lost": "INCONCLUSIVE", "broken": "UNBUILDABLE"}
FILES = ("Kconfig", "Makefile")
OUTCOMES = {"PASS": Outcome.GOOD, "FAIL": Outcome.BAD}


class FakeJudge:
    """Ends each run as the subject of its commit says: `good`, `bad:FAILURE`, `lost`, `broken`.

    Attributes:
        asked: the subjects of the commits so far.
    """

    def __init__(self, tree: Path, *, interrupt_at: int = -1) -> None:
        self.tree = tree
        self.asked: list[str] = []
        self.scenarios: list[tuple[str, ...]] = []
        self.bad_ends: list[Failures | None] = []
        self.interrupt_at = interrupt_at
        self.say: Callable[[str, str], str] = lambda subject, _scenario: subject

    def judge(
        self,
        request: KernelRequest,
        scenarios: Sequence[str],
        bad_end: Failures | None = None,
        every: bool = False,
    ) -> Judgement:
        if len(self.asked) == self.interrupt_at:
            raise KeyboardInterrupt
        commit = request.spec.rpartition("@")[2]
        subject = git(self.tree, "log", "-1", "--format=%s", commit)
        self.asked.append(subject)
        self.scenarios.append(tuple(scenarios))
        self.bad_ends.append(bad_end)
        judged = []
        for name in scenarios:
            word, _, failure = self.say(subject, name).split(",")[0].partition(":")
            verdict = VERDICTS.get(word, SKIPPED)
            outcome = OUTCOMES.get(verdict, Outcome.UNKNOWN)
            broke = (failure or "rule 1",) if verdict == "FAIL" else ()
            judged.append(Judged(name, outcome, (verdict,), broke, reason=f"{word} here"))
        return Judgement(tuple(judged), 0.0, 0.0)


class Listener(Notes):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Step, bool]] = []
        self.count = -1

    def begins(self, ends: Ends, count: int) -> None:
        self.count = count

    def step(self, step: Step, again: bool) -> None:
        self.steps.append((step, again))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A git tree without commits."""
    git(tmp_path, "init", "-q", "-b", "main", "linux")
    return tmp_path / "linux"


def commits(tree: Path, *subjects: str) -> list[str]:
    """Commit on top, one for each subject; their hashes."""
    branch = git(tree, "symbolic-ref", "HEAD")
    begun = subprocess.run(
        ["git", "-C", str(tree), "rev-parse", "-q", "--verify", "HEAD"],
        capture_output=True,
        text=True,
    )
    parent = begun.stdout.strip()
    names = [*FILES] if not parent else []
    stream = []
    for number, subject in enumerate(subjects, start=1):
        stream += [f"commit {branch}", f"mark :{number}", "committer A <a@localhost> 0 +0000"]
        stream += [f"data {len(subject)}", subject]
        stream += [f"from {parent}"] if parent and number == 1 else []
        for name in names if number == 1 else []:
            text = (FAKE_KERNEL / name).read_text()
            stream += [f"M 100644 inline {name}", f"data {len(text.encode())}", text]
        content = f"{subject} {number} {parent}"
        stream += ["M 100644 inline notes", f"data {len(content)}", content]
    words = ["git", "-C", str(tree), "fast-import", "--quiet", "--export-marks=marks"]
    subprocess.run(words, input="\n".join((*stream, "")), text=True, check=True, cwd=tree)
    marks = sorted(line.split() for line in (tree / "marks").read_text().splitlines())
    (tree / "marks").unlink()
    git(tree, "reset", "-q", "--hard")
    return [name for _, name in sorted(marks, key=lambda one: int(one[0][1:]))]


def opened(tree: Path, store: Store, good: str, bad: str, first_good: bool = False) -> Opened:
    asked = Asked(str(tree), good, bad, KernelRequest("build:"), first_good)
    return open_bisection(asked, store, Notes())


def run(
    tree: Path,
    store: Store,
    good: str,
    bad: str,
    *,
    first_good: bool = False,
    judge: FakeJudge | None = None,
    listener: Listener | None = None,
    scenarios: Sequence[str] = ("exact_cover",),
    record: Record | None = None,
    deadline: Deadline | None = None,
) -> Bisected:
    begun = opened(tree, store, good, bad, first_good)
    return Bisection(
        begun.ends,
        begun.history,
        judge or FakeJudge(tree),
        scenarios,
        record or open_record(store, "k", "q", Notes()),
        listener or Listener(),
        deadline,
    ).run()
