# SPDX-License-Identifier: GPL-2.0-or-later
"""Bisections over small git trees; a commit's own subject says what its runs end with."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_sources import Listener as Notes
from fake_sources import git
from small_history import FakeJudge, Listener, commits, run, store, tree

from harness.bisect.record import open_record
from harness.bisect.search import Outcome
from harness.core.cache import Store
from harness.core.deadline import Deadline
from harness.core.errors import (
    DeadlineExpiredError,
    InconclusiveError,
    UnbuildableError,
    UsageError,
)

__all__ = ["store", "tree"]


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
