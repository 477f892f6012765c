# SPDX-License-Identifier: GPL-2.0-or-later
"""Small git trees to bisect over; the subject of a commit is the outcome of its runs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_sources import FAKE_KERNEL, git
from fake_sources import Listener as Notes

from harness.bisect.judge import SKIPPED, CommitJudge, Failures, Judged, Judgement, Outcome
from harness.bisect.range import CommitRange, RangeOptions, find_range
from harness.bisect.run import Bisected, Bisection, Step
from harness.core.cache import Store
from harness.core.deadline import Deadline
from harness.scenario.kernel_request import KernelRequest

VERDICTS = {"good": "PASS", "bad": "FAIL", "lost": "INCONCLUSIVE", "broken": "UNBUILDABLE"}
FILES = ("Kconfig", "Makefile")
OUTCOMES = {"PASS": Outcome.GOOD, "FAIL": Outcome.BAD}


class FakeJudge(CommitJudge):
    """Ends each run with the subject of its commit: `good`, `bad:FAILURE`, `lost`, `broken`.

    Attributes:
        judged: the subjects of the commits so far, with the scenarios and the bad end's failures.
        subject_for: the subject to use for a commit's subject and a scenario.
    """

    def __init__(
        self, tree: Path, *, interrupt_at: int = -1, scenarios: Sequence[str] = ("exact_cover",)
    ) -> None:
        self.identity = ()
        self.tree = tree
        self.judged: list[tuple[str, tuple[str, ...], Failures | None]] = []
        self.scenarios = tuple(scenarios)
        self.interrupt_at = interrupt_at
        self.subject_for: Callable[[str, str], str] = lambda subject, _scenario: subject

    def judge(
        self,
        request: KernelRequest,
        scenarios: Sequence[str],
        bad_end: Failures | None = None,
        every: bool = False,
    ) -> Judgement:
        if len(self.judged) == self.interrupt_at:
            raise KeyboardInterrupt
        commit = request.spec.rpartition("@")[2]
        subject = git(self.tree, "log", "-1", "--format=%s", commit)
        self.judged.append((subject, tuple(scenarios), bad_end))
        judged = []
        for name in scenarios:
            word, _, failure = self.subject_for(subject, name).split(",")[0].partition(":")
            verdict = VERDICTS.get(word, SKIPPED)
            outcome = OUTCOMES.get(verdict, Outcome.UNKNOWN)
            failures = (failure or "rule 1",) if verdict == "FAIL" else ()
            judged.append(Judged(name, outcome, (verdict,), failures, reason=f"{word} here"))
        return Judgement(tuple(judged), 0.0, 0.0)


class Listener(Notes):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Step, bool]] = []
        self.count = -1

    def begins(self, ends: CommitRange, count: int) -> None:
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
    argv = ["git", "-C", str(tree), "fast-import", "--quiet", "--export-marks=marks"]
    subprocess.run(argv, input="\n".join((*stream, "")), text=True, check=True, cwd=tree)
    marks = sorted(line.split() for line in (tree / "marks").read_text().splitlines())
    (tree / "marks").unlink()
    git(tree, "reset", "-q", "--hard")
    return [name for _, name in sorted(marks, key=lambda mark: int(mark[0][1:]))]


def found_range(
    tree: Path, store: Store, good: str, bad: str, first_good: bool = False
) -> CommitRange:
    options = RangeOptions(str(tree), good, bad, KernelRequest("build:"), first_good)
    return find_range(options, store, Notes())


def bisection(
    tree: Path,
    store: Store,
    ends: tuple[str, str],
    *,
    first_good: bool = False,
    judge: FakeJudge | None = None,
    listener: Listener | None = None,
    deadline: Deadline | None = None,
) -> Bisection:
    return Bisection(
        found_range(tree, store, *ends, first_good),
        judge or FakeJudge(tree),
        store,
        listener or Listener(),
        deadline,
    )


def run(tree: Path, store: Store, good: str, bad: str, **options: Any) -> Bisected:
    """Run the bisection that `bisection` makes with these options."""
    return bisection(tree, store, (good, bad), **options).run()
