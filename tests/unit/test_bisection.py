# SPDX-License-Identifier: GPL-2.0-or-later
"""Bisections over small git trees; a commit's own subject says what its runs end with."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fake_sources import FAKE_KERNEL, copy_fake, git
from fake_sources import Listener as Notes

from harness.deadline import Deadline
from harness.errors import (
    DeadlineExpiredError,
    InconclusiveError,
    UnbuildableError,
    UsageError,
)
from harness.model.bisection import Bisected, Failures, Judged, Outcome, Step
from harness.model.kernel_request import KernelRequest
from harness.runs.bisection import Bisection, Ends
from harness.runs.bisection_ends import Asked, Opened, open_bisection
from harness.runs.bisection_record import Record, open_record
from harness.runs.commit_judge import SKIPPED, Judgement
from harness.store import Store

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
        ["git", "-C", tree, "rev-parse", "-q", "--verify", "HEAD"], capture_output=True, text=True
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
    words = ["git", "-C", tree, "fast-import", "--quiet", "--export-marks=marks"]
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


def test_the_first_bad_commit(tree: Path, store: Store) -> None:
    made = commits(tree, "good", *["good"] * 36, *["bad"] * 28)
    listener = Listener()
    result = run(tree, store, made[0], "main", listener=listener)
    assert result.first is not None
    assert (result.first.name, result.first.subject) == (made[37], "bad")
    assert result.first.short == made[37][:12]
    assert (result.candidates, listener.count) == ((), 64)
    assert len(result.steps) <= 2 + 6
    assert [one.role for one in result.steps[:3]] == ["bad end", "good end", ""]
    assert result.changed.commit == result.first
    assert [one for one, _ in listener.steps] == list(result.steps)


def test_the_first_good_commit(tree: Path, store: Store) -> None:
    made = commits(tree, "bad", "bad", "bad", "good", "good")
    result = run(tree, store, "main", made[0], first_good=True)
    assert result.first is not None and result.first.name == made[3]
    assert result.looking_for is Outcome.GOOD


def test_ends_next_to_each_other(tree: Path, store: Store) -> None:
    made = commits(tree, "good", "bad")
    result = run(tree, store, made[0], made[1])
    assert result.first is not None and result.first.name == made[1]
    assert len(result.steps) == 2


def test_commits_that_cannot_be_judged(tree: Path, store: Store) -> None:
    made = commits(tree, "good", "good", "broken", "lost", "bad", "bad")
    result = run(tree, store, made[0], "main")
    assert result.first is None
    assert [one.name for one in result.candidates] == made[2:5]
    assert result.changed.commit.name == made[4]


def test_commits_that_cannot_be_judged_are_walked_round(tree: Path, store: Store) -> None:
    made = commits(tree, "good", "good", "good", "broken", "broken", *["good"] * 5, "bad")
    result = run(tree, store, made[0], "main")
    assert result.first is not None and result.first.name == made[-1]


def test_a_history_with_merges(tree: Path, store: Store) -> None:
    made = commits(tree, "good", "good")
    git(tree, "checkout", "-q", "-b", "topic")
    topic = commits(tree, "good,topic", "bad,first", "bad,topic")
    git(tree, "checkout", "-q", "main")
    commits(tree, "good,main", "good,main")
    git(tree, "merge", "-q", "-m", "bad,merge", "-s", "ours", "topic")
    result = run(tree, store, made[0], "main")
    assert result.first is not None and result.first.name == topic[1]


def test_good_on_another_branch(tree: Path, store: Store) -> None:
    made = commits(tree, "good", "good")
    git(tree, "checkout", "-q", "-b", "stable")
    commits(tree, "good,stable")
    git(tree, "checkout", "-q", "main")
    made += commits(tree, "good", "bad", "bad")
    result = run(tree, store, "stable", "main")
    assert result.first is not None and result.first.name == made[3]
    assert [one.role for one in result.steps][:3] == ["bad end", "good end", "merge base"]


@pytest.mark.parametrize(("base", "word"), [("bad", "good"), ("lost", "")])
def test_a_merge_base_that_is_not_as_the_older_end(
    tree: Path, store: Store, base: str, word: str
) -> None:
    made = commits(tree, base)
    git(tree, "checkout", "-q", "-b", "stable")
    commits(tree, "good,stable")
    git(tree, "checkout", "-q", "main")
    made += commits(tree, "bad", "bad")
    listener = Listener()
    if word:
        with pytest.raises(UsageError, match=r"merge base .* is bad as well") as refused:
            run(tree, store, "stable", "main")
        assert made[0][:12] in refused.value.message
        assert "--first-good" in refused.value.hint
    else:
        result = run(tree, store, "stable", "main", listener=listener)
        assert result.first is not None and result.first.name == made[1]
        assert any("nobody can tell what the merge base" in note for note in listener.notes)


@pytest.mark.parametrize(
    ("good", "bad", "first_good", "words", "hint"),
    [
        ("bad", "bad", False, "FAIL at the good end .*FAIL at the bad end", "older good"),
        ("bad", "bad", True, "FAIL at the good end .*FAIL at the bad end", "newer good"),
        ("good", "good", False, "PASS at the good end .*PASS at the bad end", "another bad"),
        ("bad", "good", False, "FAIL at the good end .*PASS at the bad end", "--first-good --good"),
        ("bad", "good", True, "FAIL at the good end .*PASS at the bad end", "leave --first-good"),
    ],
)
def test_ends_that_do_not_differ(
    tree: Path, store: Store, good: str, bad: str, first_good: bool, words: str, hint: str
) -> None:
    older, newer = (bad, good) if first_good else (good, bad)
    made = commits(tree, older, *["good"] * 10, newer)
    ends = (made[-1], made[0]) if first_good else (made[0], made[-1])
    judge = FakeJudge(tree)
    with pytest.raises(UsageError, match=words) as refused:
        run(tree, store, *ends, first_good=first_good, judge=judge)
    assert hint in refused.value.hint
    assert len(judge.asked) == 2
    assert not list((store.root / "bisections").iterdir())


@pytest.mark.parametrize(
    ("subject", "error"),
    [("broken", UnbuildableError), ("lost", InconclusiveError), ("other", UsageError)],
)
@pytest.mark.parametrize("end", [0, -1])
def test_an_end_that_cannot_be_judged(
    tree: Path, store: Store, subject: str, error: type[Exception], end: int
) -> None:
    subjects = ["good", "good", "bad"]
    subjects[end] = subject
    made = commits(tree, *subjects)
    with pytest.raises(error, match=f"could not be judged:(.|\n)*{subject} here") as caught:
        run(tree, store, made[0], "main")
    assert type(caught.value) is error
    # It may have been the machine: the next time it is tried again.
    judge = FakeJudge(tree)
    with pytest.raises(error):
        run(tree, store, made[0], "main", judge=judge)
    assert len(judge.asked) == 2


def test_ends_in_the_wrong_order(tree: Path, store: Store) -> None:
    made = commits(tree, "bad", "good", "good")
    for first_good, hint in ((False, "add --first-good"), (True, "leave --first-good out")):
        good, bad = (made[0], made[2]) if first_good else (made[2], made[0])
        judge = FakeJudge(tree)
        with pytest.raises(UsageError, match="is an ancestor of") as refused:
            run(tree, store, good, bad, first_good=first_good, judge=judge)
        assert hint in refused.value.hint
        assert judge.asked == []


def test_ends_of_no_common_history(tree: Path, store: Store) -> None:
    made = commits(tree, "good")
    git(tree, "checkout", "-q", "--orphan", "other")
    commits(tree, "bad")
    with pytest.raises(UsageError, match="no common ancestor"):
        run(tree, store, "main", "other")
    with pytest.raises(UsageError, match="the same commit"):
        run(tree, store, "main", made[0])


def test_an_interrupted_bisection_goes_on(tree: Path, store: Store) -> None:
    """Wherever it is interrupted, no commit is judged twice, and the same comes out."""
    made = commits(tree, "good", *["good"] * 9, "broken", *["bad"] * 9)
    whole = FakeJudge(tree)
    expected = run(tree, store, made[0], "main", judge=whole)
    assert expected.first is None and len(expected.candidates) == 2
    open_record(store, "k", "q", Notes()).forget()
    for at in range(len(whole.asked)):
        first, second, listener = FakeJudge(tree, interrupt_at=at), FakeJudge(tree), Listener()
        with pytest.raises(KeyboardInterrupt):
            run(tree, store, made[0], "main", judge=first)
        result = run(tree, store, made[0], "main", judge=second, listener=listener)
        assert first.asked + second.asked == whole.asked
        assert result.candidates == expected.candidates
        assert [again for _, again in listener.steps] == [
            *[True] * at,
            *[False] * (len(whole.asked) - at),
        ]
        open_record(store, "k", "q", Notes()).forget()


def test_no_step_behind_the_deadline(tree: Path, store: Store) -> None:
    made = commits(tree, "good", "good", "bad")
    judge = FakeJudge(tree)
    gone = Deadline(1e-9, "the bisection")
    with pytest.raises(DeadlineExpiredError, match="the bisection"):
        run(tree, store, made[0], "main", judge=judge, deadline=gone)
    assert judge.asked == []


def test_a_damaged_record_is_kept_aside(store: Store) -> None:
    for text in ("not json", '{"form": 1}', '{"form": 0, "question": "", "steps": []}'):
        path = store.folder("bisections") / "k.json"
        path.write_text(text)
        notes = Notes()
        assert open_record(store, "k", "q", notes).count == 0
        assert "begins anew" in notes.notes[0]
        assert path.with_suffix(".damaged").read_text() == text
        assert not path.exists()


def test_only_scenarios_that_differ_judge(tree: Path, store: Store) -> None:
    made = commits(tree, "good", "good", "good", "bad", "bad")
    judge, listener = FakeJudge(tree), Listener()
    judge.say = lambda subject, name: {"same": "bad", "off": "skip"}.get(name, subject)
    names = ("same", "exact_cover", "off")
    result = run(tree, store, made[0], "main", judge=judge, listener=listener, scenarios=names)
    assert judge.scenarios == [names, names, *[("exact_cover",)] * (len(judge.asked) - 2)]
    assert result.scenarios == ("exact_cover",)
    assert listener.notes == [
        "same is left out: good / bad end are FAIL / FAIL",
        "off is left out: good / bad end are SKIPPED / SKIPPED",
    ]


def test_what_broke_at_the_bad_end_is_known_to_later_steps(tree: Path, store: Store) -> None:
    made = commits(tree, "good", "good", "bad:rule 6", "bad:rule 2 sr0")
    judge = FakeJudge(tree)
    run(tree, store, made[0], "main", judge=judge)
    assert judge.bad_ends[:2] == [None, None]
    assert set(map(str, judge.bad_ends[2:])) == {str({"exact_cover": ("rule 2 sr0",)})}


def contents(tree: Path) -> dict[Path, tuple[bytes | None, int]]:
    return {
        path: (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns)
        for path in tree.rglob("*")
    }


def test_nothing_of_the_users_is_touched(tree: Path, store: Store) -> None:
    """Neither files that are not committed, nor a bisection of the user's own."""
    made = commits(tree, "good", *["good"] * 5, *["bad"] * 5)
    git(tree, "bisect", "start", made[-1], made[0])
    (tree / "notes").write_text("not committed")
    (tree / "new").write_text("nor known")
    before = contents(tree)
    run(tree, store, made[0], "main")
    assert contents(tree) == before


def test_a_bare_repository_will_do(tree: Path, store: Store, tmp_path: Path) -> None:
    made = commits(tree, "good", "good", "bad", "bad")
    git(tmp_path, "clone", "-q", "--bare", str(tree), "bare.git")
    result = run(tmp_path / "bare.git", store, made[0], "main", judge=FakeJudge(tree))
    assert result.first is not None and result.first.name == made[2]


def test_a_shallow_clone(tree: Path, store: Store, tmp_path: Path) -> None:
    """Its history ends; what lies within can be bisected."""
    made = commits(tree, "good", "good", "good", "bad", "bad")
    git(tmp_path, "clone", "-q", "--depth", "4", f"file://{tree}", "shallow")
    result = run(tmp_path / "shallow", store, made[2], "main", judge=FakeJudge(tree))
    assert result.first is not None and result.first.name == made[3]
    with pytest.raises(UsageError, match="has no"):
        run(tmp_path / "shallow", store, made[0], "main")


@pytest.mark.parametrize("option", ["--good", "--bad"])
def test_a_commit_that_is_not_there(tree: Path, store: Store, option: str) -> None:
    commits(tree, "good", "bad")
    for ref in ("mian", "0123456789" * 4, ""):
        ends = {"good": "main", "bad": "main"} | {option[2:]: ref}
        with pytest.raises(UsageError, match="has no") as refused:
            opened(tree, store, **ends)
        assert refused.value.where == f"{option} {ref}"
        if ref == "mian":
            assert "close names: main" in refused.value.hint


def test_a_tree_that_is_none(tree: Path, store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        opened(tmp_path / "nowhere", store, "main", "main")
    plain = copy_fake(tmp_path / "plain")
    with pytest.raises(UsageError, match="not the top of a git tree"):
        opened(plain, store, "main", "main")
    asked = Asked("debian:7.2", "a", "b", KernelRequest("build:"))
    with pytest.raises(UsageError, match="has no history"):
        open_bisection(asked, store, Notes())
    for good, bad, option in ((None, "main", "--good"), ("main", None, "--bad")):
        with pytest.raises(UsageError, match=f"{option} is not given"):
            open_bisection(Asked(str(tree), good, bad, KernelRequest("build:")), store, Notes())


def test_one_bisection_of_a_tree_at_a_time(store: Store) -> None:
    """The second says so at once."""
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with store.lock("bisect-x", what="bisecting x", wait=False):
            inside.set()
            assert done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(20)
    with (
        pytest.raises(UsageError, match="another harness is bisecting x"),
        store.lock("bisect-x", what="bisecting x", wait=False),
    ):
        pytest.fail("two at once")
    done.set()
    thread.join()
    with store.lock("bisect-x", what="bisecting x", wait=False):
        pass
