# SPDX-License-Identifier: GPL-2.0-or-later
"""`harness bisect` on builds of the fake kernel; the verdict of a guest depends on its source."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from bisect_fixtures import Guests, builder, guests, made_tree, tree
from cli_fixtures import Harness, assert_one_message
from fake_sources import HMEM, Builder, edit, format_patch, git, git_fake

from harness.bisect import run as bisect_run
from harness.contract.result import Verdict

__all__ = ["builder", "guests", "made_tree", "tree"]

pytestmark = pytest.mark.usefixtures("room", "no_guest")


def compiled(builder: Builder) -> dict[str, int]:
    """The number of files compiled for each kernel of the store, by its SPEC."""
    counts = {}
    for path in builder.store.root.glob("kernels/*/manifest.json"):
        manifest = json.loads(path.read_text())
        counts[manifest["spec"]] = manifest["build"]["compiled"]
    return counts


BISECT = ("bisect", "--accel", "tcg", "exact_cover", "--tree")


def test_the_first_bad_commit(
    harness: Harness, guests: Guests, builder: Builder, tree: Path
) -> None:
    (tree / HMEM).write_text("not committed")
    before = git(tree, "status", "--porcelain"), git(tree, "reflog"), git(tree, "for-each-ref")
    ended = harness(*BISECT, tree, "--good", "v0", "--bad", "main", "--json", "steps.json")
    assert ended.code == 0, ended.err
    first = git(tree, "rev-parse", "main~3")
    lines = ended.out.splitlines()
    assert lines[0].startswith("looking for the first bad of 8 commits, from ")
    assert lines[0].endswith(": 2 ends and about 3 steps")
    assert re.match(
        r"bad [0-9a-f]{12} FAIL, built in [0-9.]+ s, judged in [0-9.]+ s, bad end: ", lines[1]
    )
    assert lines[2] == "    exact_cover: rule 1"
    assert f"first bad commit: {first} dax: hmem: change 5" in lines
    assert f"    harness run exact_cover --kernel build:{tree}@{first}" in lines
    result = json.loads(Path("steps.json").read_text())
    steps = result["steps"]
    assert (result["first"]["commit"], result["candidates"]) == (first, [])
    assert [step["outcome"] for step in steps][:2] == ["bad", "good"]
    assert 4 <= len(steps) <= 5
    assert all(step["seconds"]["total"] >= step["seconds"]["build"] for step in steps)
    assert set(result) == {
        *("looking_for", "good", "bad", "scenarios", "first", "candidates", "steps"),
    }
    assert set(steps[0]) == {
        *("commit", "short", "subject", "role", "outcome", "scenarios", "seconds"),
    }
    (at_bad_end,) = steps[0]["scenarios"]
    assert (at_bad_end.pop("evidence"), at_bad_end) == (
        [],
        {
            "scenario": "exact_cover",
            "outcome": "bad",
            "verdicts": ["FAIL"],
            "failures": ["rule 1"],
            "other_failure": False,
            "reason": "",
        },
    )
    assert set(steps[0]["seconds"]) == {"build", "run", "overhead", "total"}
    assert before == (
        *(git(tree, "status", "--porcelain"), git(tree, "reflog"), git(tree, "for-each-ref")),
    )
    assert not list(builder.store.root.glob("bisections/*"))


def test_steps_build_incrementally(
    harness: Harness, guests: Guests, builder: Builder, tree: Path
) -> None:
    assert harness(*BISECT, tree, "--good", "v0", "--bad", "main").code == 0
    bad = git(tree, "rev-parse", "main")
    counts = compiled(builder)
    whole = counts.pop(f"build:{tree}@{bad}")
    assert whole > 1
    assert set(counts.values()) == {1}
    assert len(list(builder.store.root.glob("outputs/*"))) == 1


def test_the_fix(harness: Harness, guests: Guests, tree: Path) -> None:
    edit(tree, "/* stranded */", "/* found */")
    git(tree, "commit", "-q", "-a", "-m", "dax: hmem: fix")
    ended = harness(*BISECT, tree, "--good", "main", "--bad", "main~3", "--first-good")
    assert ended.code == 0, ended.err
    assert re.search(r"^first good commit: [0-9a-f]{40} dax: hmem: fix$", ended.out, re.M)


def test_commits_that_do_not_build(harness: Harness, guests: Guests, tree: Path) -> None:
    git(tree, "checkout", "-q", "-b", "broken", "main~5")
    edit(tree, "int hmem_three", "#error no\nint hmem_three")
    git(tree, "commit", "-q", "-a", "-m", "break the build")
    edit(tree, "/* Two. */", "/* Two. */\n/* stranded */")
    git(tree, "commit", "-q", "-a", "-m", "strand")
    edit(tree, "#error no\n", "")
    git(tree, "commit", "-q", "-a", "-m", "mend the build")
    ended = harness(*BISECT, tree, "--good", "v0", "--bad", "broken", "--json", "steps.json")
    assert ended.code == 3
    tail = ended.out.partition("the first bad commit is one of these 3; ")[2].splitlines()
    assert [line.split(None, 1)[1] for line in tail[1:4]] == [
        *("break the build", "strand", "mend the build"),
    ]
    assert "UNBUILDABLE" in ended.out and "error: #error no" not in ended.err
    result = json.loads(Path("steps.json").read_text())
    assert result["first"] is None and len(result["candidates"]) == 3


@pytest.mark.parametrize("at", [1, 3])
def test_interrupted_and_started_again(
    harness: Harness, guests: Guests, tree: Path, at: int
) -> None:
    whole = guests.answer
    words = (*BISECT, tree, "--good", "v0", "--bad", "main")
    guests.answer = lambda text, count: KeyboardInterrupt() if count == at else whole(text, count)
    ended = harness(*words)
    assert (ended.code, "run the same command to continue" in ended.err) == (130, True)
    runs = guests.count
    ended = harness(*words)
    assert ended.code == 0 and "dax: hmem: change 5" in ended.out.splitlines()[-3]
    assert f"steps made: {at}" in ended.err
    assert ended.out.count("from before") == at
    assert guests.count + at - 1 <= 5 + runs
    # A finished bisection starts anew.
    assert "from before" not in harness(*words).out


@pytest.mark.parametrize("change", ["--runs", "--fresh", "version"])
def test_steps_of_another_bisection_are_not_used(
    harness: Harness,
    guests: Guests,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    """Another version of the harness may judge the same guest differently."""
    whole = guests.answer
    words = (*BISECT, tree, "--good", "main~4", "--bad", "main")
    guests.answer = lambda text, count: KeyboardInterrupt() if count == 2 else whole(text, count)
    assert harness(*words).code == 130
    guests.answer = whole
    with monkeypatch.context() as patch:
        if change == "version":
            patch.setattr(bisect_run, "harness_version", lambda: "1+other")
        more = {"--runs": ("--runs", "2"), "--fresh": ("--fresh",)}.get(change, ())
        ended = harness(*words, *more)
    assert ended.code == 0
    assert "from before" not in ended.out
    # Its own steps are kept, unless they were to be forgotten.
    assert ("from before" in harness(*words).out) == (change != "--fresh")


def test_flaky(harness: Harness, guests: Guests, tree: Path) -> None:
    """Bad: two of three runs fail. Good: one of three does."""
    order = {True: "FPF", False: "PFP"}
    seen: dict[str, int] = {}

    def answer(text: str, _count: int) -> Verdict:
        number = seen[text] = seen.get(text, 0) + 1
        letter = order["stranded" in text][number - 1]
        return Verdict.FAIL if letter == "F" else Verdict.PASS

    guests.answer = answer
    words = (*BISECT, tree, "--good", "v0", "--bad", "main", "-j", "1")
    ended = harness(*words, "--runs", "3", "--need", "2")
    assert ended.code == 0, ended.err
    assert "dax: hmem: change 5" in ended.out.splitlines()[-3]
    assert "2 FAIL, 1 PASS" in ended.out
    assert "1 FAIL, 2 PASS" in ended.out


def test_no_run_after_the_outcome_is_known(harness: Harness, guests: Guests, tree: Path) -> None:
    words = (*BISECT, tree, "--good", "main~1", "--bad", "main", "-j", "1")
    guests.answer = lambda text, _: Verdict.FAIL if "number 8" in text else Verdict.PASS
    assert harness(*words, "--runs", "10", "--need", "3").code == 0
    assert guests.count == 3 + 8


def test_a_failure_of_another_kind(harness: Harness, guests: Guests, tree: Path) -> None:
    def answer(text: str, _count: int) -> Verdict:
        guests.rule = "6" if "number 8" not in text else "1"
        return Verdict.FAIL if "number 3" in text else Verdict.PASS

    guests.answer = answer
    words = (*BISECT, tree, "--good", "v0", "--bad", "main")
    ended = harness(*words)
    assert "dax: hmem: change 3" in ended.out.splitlines()[-3]
    assert "exact_cover fails differently from the bad end: rule 6; counts as bad" in ended.out
    ended = harness(*words, "--same-failure")
    assert ended.code == 3
    assert "one of these 6" in ended.out


def test_ends_that_do_not_differ(harness: Harness, guests: Guests, tree: Path) -> None:
    ended = harness(*BISECT, tree, "--good", "main~1", "--bad", "main")
    assert ended.code == 2
    assert "FAIL at the good end" in ended.err and "take an older good commit" in ended.err


def test_a_bad_end_that_does_not_build(harness: Harness, guests: Guests, tree: Path) -> None:
    edit(tree, "int hmem_three", "#error no\nint hmem_three")
    git(tree, "commit", "-q", "-a", "-m", "break")
    ended = harness(*BISECT, tree, "--good", "v0", "--bad", "main")
    assert ended.code == 4
    assert "UNBUILDABLE at the bad end" in ended.err


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--good", "v0"), "--bad is not given"),
        (("--bad", "v0"), "--good is not given"),
        (("--good", "v0", "--bad", "mian"), "close names: main"),
        (("--good", "v0", "--bad", "v0"), "the same commit"),
        (("--good", "main", "--bad", "v0"), "add --first-good"),
        (("--good", "v0", "--bad", "main", "--runs", "2", "--need", "3"), "--runs 3 --need 3"),
        (("--good", "v0", "--bad", "main", "--series", "nowhere"), "nowhere"),
        (("--good", "v0", "--bad", "main", "--json", "nowhere/x"), "nowhere/x"),
    ],
)
def test_bad_input(
    harness: Harness, guests: Guests, tree: Path, words: Sequence[str], error: str
) -> None:
    assert_one_message(harness(*BISECT, tree, *words), error)
    assert guests.count == 0


def test_no_tree(harness: Harness, guests: Guests) -> None:
    words = ("--good", "a", "--bad", "b")
    assert_one_message(harness(*BISECT, "/nowhere", *words), "there is no folder /nowhere")
    assert_one_message(harness(*BISECT, "debian:7.2", *words), "debian:7.2 has no history")


def test_a_second_bisection_of_the_tree(
    harness: Harness, guests: Guests, builder: Builder, tree: Path
) -> None:
    words = (*BISECT, tree, "--good", "v0", "--bad", "main")
    nested = []

    def answer(_text: str, _count: int) -> BaseException:
        nested.append(harness(*BISECT, tree, "--good", "v0", "--bad", "main~1"))
        return KeyboardInterrupt()

    guests.answer = answer
    assert harness(*words).code == 130
    assert_one_message(nested[0], f"another harness is bisecting {tree}")


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Six patches; the fourth strands memory."""
    work = git_fake(tmp_path / "work-tree")
    folder = tmp_path / "series"
    folder.mkdir()
    for number in range(1, 7):
        text = "stranded" if number == 4 else f"number {number}"
        name = (HMEM, "drivers/dax/kmem.c")[number % 2]
        edits = {name: ("GPL-2.0-or-later", f"GPL-2.0-or-later\n/* {text} */")}
        patch = format_patch(work, edits, f"dax: patch {number}")
        (folder / f"{number:04}-x.patch").write_bytes(patch)
    return folder


def test_over_a_series(
    harness: Harness, guests: Guests, builder: Builder, series: Path, tmp_path: Path
) -> None:
    tree = git_fake(tmp_path / "linux")
    ended = harness(*BISECT, tree, "--series", series)
    assert ended.code == 0, ended.err
    assert "first bad commit: patch 4 of 6 dax: patch 4" in ended.out
    assert f"--series {series} --upto 4" in ended.out
    assert "good the base PASS" in ended.out
    # Both ends and at most three steps: each compiles only the files that differ from before.
    first, *others = sorted(compiled(builder).values(), reverse=True)
    assert first == 4 and max(others) <= 2 and 3 <= len(others) <= 4


def test_over_a_series_with_wrong_ends(
    harness: Harness, guests: Guests, series: Path, tmp_path: Path
) -> None:
    tree = git_fake(tmp_path / "linux")
    ended = harness(*BISECT, tree, "--series", series, "--good", "main", "--bad", "main")
    assert_one_message(ended, "--bad is the source with the whole series")
    ended = harness(*BISECT, tree, "--series", series, "--first-good")
    assert ended.code == 2 and "leave --first-good out" in ended.err
    ended = harness(*BISECT, "debian:7.2", "--series", series, "--good", "main")
    assert_one_message(ended, "debian:7.2 has no commits")


def test_a_series_of_which_a_patch_does_not_apply(
    harness: Harness, guests: Guests, series: Path, tmp_path: Path
) -> None:
    tree = git_fake(tmp_path / "linux")
    (series / "0003-x.patch").unlink()
    ended = harness(*BISECT, tree, "--series", series)
    assert ended.code == 4
    assert "does not apply" in ended.err


def test_patches_that_change_nothing(
    harness: Harness, guests: Guests, series: Path, tmp_path: Path
) -> None:
    """The one that changes the source is found, not one of those that leave it as it is."""
    tree = git_fake(tmp_path / "linux")
    for number in (5, 6):
        shutil.copy(series / "0004-x.patch", series / f"000{number}-x.patch")
    ended = harness(*BISECT, tree, "--series", series)
    assert "first bad commit: patch 4 of 6 dax: patch 4" in ended.out, ended.err
