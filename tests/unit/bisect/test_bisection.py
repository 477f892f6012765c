# SPDX-License-Identifier: GPL-2.0-or-later
"""Bisections over small git trees; the subject of a commit is the outcome of its runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_sources import git
from small_history import FakeJudge, Listener, bisection, commits, run, store, tree

from harness.bisect.judge import Outcome
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
    assert (len(result.candidates), listener.count) == (1, 64)
    assert len(result.steps) <= 2 + 6
    assert [step.role for step in result.steps[:3]] == ["bad end", "good end", ""]
    assert [step for step, _ in listener.steps] == list(result.steps)


def test_the_first_good_commit(tree: Path, store: Store) -> None:
    made = commits(tree, "bad", "bad", "bad", "good", "good")
    result = run(tree, store, "main", made[0], first_good=True)
    assert result.first is not None and result.first.name == made[3]
    assert result.looking_for is Outcome.GOOD


@pytest.mark.parametrize(
    ("subjects", "first", "last"),
    [
        ("good bad", 1, 1),
        ("good good broken lost bad bad", 2, 4),
        ("good good good broken broken good good good good good bad", 10, 10),
        ("good broken bad", 1, 2),
        ("good off bad", 1, 2),
    ],
)
def test_the_commits_that_can_be_the_first(
    tree: Path, store: Store, subjects: str, first: int, last: int
) -> None:
    made = commits(tree, *subjects.split())
    result = run(tree, store, made[0], "main")
    assert [commit.name for commit in result.candidates] == made[first : last + 1]
    assert (result.first is None) == (first < last)


def test_a_history_with_merges(tree: Path, store: Store) -> None:
    made = commits(tree, "good", "good")
    git(tree, "checkout", "-q", "-b", "topic")
    topic = commits(tree, "good,topic", "bad,first", "bad,topic")
    git(tree, "checkout", "-q", "main")
    commits(tree, "good,main", "good,main")
    git(tree, "merge", "-q", "-m", "bad,merge", "-s", "ours", "topic")
    result = run(tree, store, made[0], "main")
    assert result.first is not None and result.first.name == topic[1]


@pytest.mark.parametrize(
    ("base", "first_good", "error", "hint"),
    [
        ("good", False, "", ""),
        ("lost", False, "", ""),
        ("bad", False, "is bad as well: the good end", "add --first-good"),
        ("good", True, "is good as well: the bad end", "leave --first-good out"),
    ],
)
def test_an_older_end_on_another_branch(
    tree: Path, store: Store, base: str, first_good: bool, error: str, hint: str
) -> None:
    old, new = ("bad", "good") if first_good else ("good", "bad")
    made = commits(tree, base)
    git(tree, "checkout", "-q", "-b", "stable")
    commits(tree, f"{old},stable")
    git(tree, "checkout", "-q", "main")
    made += commits(tree, new, new)
    ends = ("main", "stable") if first_good else ("stable", "main")
    listener = Listener()
    if error:
        for _ in range(2):  # a second command has the same result
            with pytest.raises(UsageError, match=f"merge base {made[0][:12]} .*{error}") as refused:
                run(tree, store, *ends, first_good=first_good)
            assert hint in refused.value.hint
        return
    result = run(tree, store, *ends, listener=listener)
    assert result.first is not None and result.first.name == made[1]
    assert [step.role for step in result.steps][:3] == ["bad end", "good end", "merge base"]
    assert any("could not be judged" in note for note in listener.notes) == (base == "lost")


@pytest.mark.parametrize(
    ("good", "bad", "first_good", "error", "hint"),
    [
        ("bad", "bad", False, "FAIL at the good end .*FAIL at the bad end", "older good"),
        ("bad", "bad", True, "FAIL at the good end .*FAIL at the bad end", "newer good"),
        ("good", "good", False, "PASS at the good end .*PASS at the bad end", "another bad"),
        ("bad", "good", False, "FAIL at the good end .*PASS at the bad end", "--first-good --good"),
        ("bad", "good", True, "FAIL at the good end .*PASS at the bad end", "leave --first-good"),
    ],
)
def test_ends_that_do_not_differ(
    tree: Path, store: Store, good: str, bad: str, first_good: bool, error: str, hint: str
) -> None:
    older, newer = (bad, good) if first_good else (good, bad)
    made = commits(tree, older, *["good"] * 10, newer)
    ends = (made[-1], made[0]) if first_good else (made[0], made[-1])
    judge = FakeJudge(tree)
    with pytest.raises(UsageError, match=error) as refused:
        run(tree, store, *ends, first_good=first_good, judge=judge)
    assert hint in refused.value.hint
    assert len(judge.judged) == 2
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
    # The machine may have been the reason: a second command judges both again.
    for _ in range(2):
        judge = FakeJudge(tree)
        with pytest.raises(error, match=f"could not be judged:(.|\n)*{subject} here") as caught:
            run(tree, store, made[0], "main", judge=judge)
        assert type(caught.value) is error
        assert len(judge.judged) == 2


def test_ends_out_of_order_or_of_no_common_history(tree: Path, store: Store) -> None:
    made = commits(tree, "bad", "good", "good")
    git(tree, "checkout", "-q", "--orphan", "other")
    commits(tree, "bad,other")
    for ends, first_good, error, hint in (
        ((made[2], made[0]), False, "is an ancestor of", "add --first-good"),
        ((made[0], made[2]), True, "is an ancestor of", "leave --first-good out"),
        (("main", "other"), False, "no common ancestor", "one history"),
        (("main", made[2]), False, "the same commit", "that differ"),
    ):
        judge = FakeJudge(tree)
        with pytest.raises(UsageError, match=error) as refused:
            run(tree, store, *ends, first_good=first_good, judge=judge)
        assert hint in refused.value.hint
        assert judge.judged == []


def test_an_interrupted_bisection_continues(tree: Path, store: Store) -> None:
    """Wherever it is interrupted, no commit is judged twice, and the result is the same."""
    made = commits(tree, "good", *["good"] * 9, "broken", *["bad"] * 9)
    ends = (made[0], "main")
    whole = FakeJudge(tree)
    complete = bisection(tree, store, ends, judge=whole)
    expected = complete.run()
    assert expected.first is None and len(expected.candidates) == 2
    complete.forget()
    for at in range(len(whole.judged)):
        first, second, listener = FakeJudge(tree, interrupt_at=at), FakeJudge(tree), Listener()
        with pytest.raises(KeyboardInterrupt):
            bisection(tree, store, ends, judge=first).run()
        continued = bisection(tree, store, ends, judge=second, listener=listener)
        assert len(continued.steps) == at
        assert continued.run().candidates == expected.candidates
        assert first.judged + second.judged == whole.judged
        again = [again for _, again in listener.steps]
        assert again == [*[True] * at, *[False] * (len(whole.judged) - at)]
        continued.forget()


def interrupted(tree: Path, store: Store) -> tuple[list[str], Path]:
    """Make 20 commits, of which the tenth is the first bad one; interrupt after three steps.

    Returns:
        The commits, and the folder of the bisection.
    """
    made = commits(tree, *["good"] * 10, *["bad"] * 10)
    stopped = bisection(tree, store, (made[0], "main"), judge=FakeJudge(tree, interrupt_at=3))
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    return made, stopped.folder


def test_a_developer_takes_over_by_hand(tree: Path, store: Store) -> None:
    made, folder = interrupted(tree, store)
    git(folder, "bisect", "good", made[9])
    git(folder, "bisect", "skip", made[10])
    judge = FakeJudge(tree)
    result = run(tree, store, made[0], "main", judge=judge)
    assert [commit.name for commit in result.candidates] == made[10:12]
    assert len(judge.judged) <= 3


@pytest.mark.parametrize("damage", ["reset", "start", "no mark", "no next"])
def test_killed_while_git_was_running(tree: Path, store: Store, damage: str) -> None:
    """The state of git is repaired from the steps, and nothing is judged twice."""
    made, folder = interrupted(tree, store)
    state = folder / ".git"
    if damage == "reset":
        git(folder, "bisect", "reset", made[0])
    elif damage == "start":
        for path in (*(state / "refs" / "bisect").iterdir(), state / "BISECT_LOG"):
            path.unlink()
    elif damage == "no mark":
        git(folder, "bisect", "start", "--no-checkout", made[-1], made[0])
    else:
        (state / "BISECT_HEAD").unlink()
    judge = FakeJudge(tree)
    result = run(tree, store, made[0], "main", judge=judge)
    assert result.first is not None and result.first.name == made[10]
    assert len(result.steps) == len({step.commit.hash for step in result.steps})
    assert len(judge.judged) == len(result.steps) - 3


def test_damaged_steps_start_anew(tree: Path, store: Store) -> None:
    for text in ("not json", '{"form": 1}', '[{"commit": 1}]', "\udcff"):
        made, folder = interrupted(tree, store)
        (folder / "steps.json").write_bytes(text.encode(errors="surrogateescape"))
        listener = Listener()
        anew = bisection(tree, store, (made[0], "main"), listener=listener)
        assert (anew.steps, folder.exists()) == ({}, False)
        assert "starting anew" in listener.notes[0]
        anew.run()
        anew.forget()


def test_no_step_after_the_deadline(tree: Path, store: Store) -> None:
    made = commits(tree, "good", "good", "bad")
    judge = FakeJudge(tree)
    with pytest.raises(DeadlineExpiredError, match="the bisection"):
        run(tree, store, made[0], "main", judge=judge, deadline=Deadline(1e-9, "the bisection"))
    assert judge.judged == []


def test_only_scenarios_that_differ_are_used(tree: Path, store: Store) -> None:
    made = commits(tree, "good", "good", "bad:rule 6", "bad:rule 2 sr0")
    names = ("same", "exact_cover", "off")
    judge, listener = FakeJudge(tree, scenarios=names), Listener()
    judge.subject_for = lambda subject, name: {"same": "bad", "off": "skip"}.get(name, subject)
    result = run(tree, store, made[0], "main", judge=judge, listener=listener)
    _, scenarios, bad_ends = zip(*judge.judged, strict=True)
    assert scenarios == (names, names, *[("exact_cover",)] * (len(judge.judged) - 2))
    assert bad_ends[:2] == (None, None)
    assert set(map(str, bad_ends[2:])) == {str({"exact_cover": ("rule 2 sr0",)})}
    assert result.scenarios == ("exact_cover",)
    assert listener.notes == [
        "same is left out: good / bad end are FAIL / FAIL",
        "off is left out: good / bad end are SKIPPED / SKIPPED",
    ]
