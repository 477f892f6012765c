# SPDX-License-Identifier: GPL-2.0-or-later
"""`ci/nightly` as a program: nights of a branch that moves, kills, and what is wrong around it."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fake_sources import edit, git, git_fake, stub_tools

PROGRAM = Path(__file__).with_name("fake_nightly.py")
SECONDS = 300
MATRIX = "kernels: [branch]\nscenarios: [exact_cover, partial_region]\n"


class Room:
    """A tree whose branch nights look at, and their state."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tree = git_fake(root / "linux")
        git(self.tree, "branch", "cxl/next")
        git(self.tree, "checkout", "-q", "cxl/next")
        self.state = root / "state"
        self.matrix = root / "matrix.yaml"
        self.matrix.write_text(MATRIX)
        tools = stub_tools(root / "tools" / "bin")
        self.environment = os.environ | {
            "HARNESS_STORE": str(root / "store"),
            "HARNESS_EVIDENCE": str(root / "evidence"),
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": f"{PROGRAM.parents[2]}:{PROGRAM.parent}",
        }

    def commit(self, *texts: str) -> str:
        """Add a commit for each text, which the kernel then has; the last one's name."""
        for text in texts:
            edit(self.tree, "/* Two. */", f"/* Two. */\n/* {text} */")
            git(self.tree, "commit", "-q", "-a", "-m", f"change: {text}")
        return git(self.tree, "rev-parse", "HEAD")

    def argv(self, *words: object, tree: object = None) -> list[str]:
        fixed = ["--tree", tree or self.tree, "--matrix", self.matrix, "--state", self.state]
        return [sys.executable, str(PROGRAM), *map(str, fixed), *map(str, words)]

    def night(self, *words: object, tree: object = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*words, tree=tree),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def latest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            (self.state / "nights" / "latest" / "night.json").read_text()
        )
        return found

    def unfinished(self) -> bool:
        """Whether the second night is still to be done."""
        return len(self.rows_of("select id from nights where ended is not null")) < 2

    def rows(self) -> list[tuple[Any, ...]]:
        """What all nights found out, without times and folders."""
        return [
            *self.rows_of(
                "select id, branch, commit_name, subject, ended is not null, given_up from nights"
            ),
            *self.rows_of(
                "select night, line, verdict, known, failures, reason from results"
                " order by night, line"
            ),
            *self.rows_of(
                "select night, line, commit_name, subject from bisections order by night, line"
            ),
        ]

    def rows_of(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.state / "history.sqlite")) as connection:
            return connection.execute(query).fetchall()


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def changes(night: dict[str, Any]) -> dict[str, str]:
    return {row["scenario"]: row["change"] for row in night["rows"]}


def assert_refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 2) -> None:
    """It ended with one message and a hint, which contain these words."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("  hint: ") == 1
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr


def test_nights_of_a_branch(room: Room) -> None:
    first = room.commit("one", "two")
    done = room.night()
    assert done.returncode == 0, done.stderr
    assert "the first night of this branch" in done.stdout
    assert changes(room.latest()) == {"exact_cover": "passes", "partial_region": "passes"}

    bad = room.commit("three", "stranded")
    last = room.commit("four", "five", "six")
    done = room.night()
    assert done.returncode == 1, done.stderr
    night = room.latest()
    assert (night["night"], night["commit"], night["new_commits"]) == (2, last, 5)
    assert night["last"] == {"night": 1, "commit": first}
    assert set(changes(night).values()) == {"regression"}
    for row in night["rows"]:
        assert row["before"] == {"night": 1, "commit": first, "verdict": "PASS"}
        assert row["first_bad"]["commit"] == bad
    assert done.stdout.count(f"first bad commit: {bad} change: stranded") == 2

    # The night after, nothing is new: no regression, and nothing is bisected.
    done = room.night()
    assert done.returncode == 0, done.stderr
    assert set(changes(room.latest()).values()) == {"fails as before"}
    assert not [row for row in room.latest()["rows"] if row["first_bad"]]

    # A night that can judge nothing hides no change, and is no success.
    edit(room.tree, "/* stranded */", "/* lost */")
    git(room.tree, "commit", "-q", "-a", "-m", "change: lost")
    done = room.night()
    assert done.returncode == 3, done.stderr
    assert set(changes(room.latest()).values()) == {"could not be judged"}

    edit(room.tree, "/* lost */", "/* found */")
    git(room.tree, "commit", "-q", "-a", "-m", "change: found")
    done = room.night()
    assert done.returncode == 0, done.stderr
    assert set(changes(room.latest()).values()) == {"fixed"}
    for name in ("summary.txt", "report.html", "results.json", "junit.xml"):
        assert (room.state / "nights" / "latest" / name).stat().st_size > 0
    assert "2 fixed" in (room.state / "nights" / "latest" / "report.html").read_text()


def test_what_does_not_build_is_a_regression_and_is_not_run(room: Room) -> None:
    room.commit("one")
    assert room.night().returncode == 0
    edit(room.tree, "/* one */", "#error no")
    git(room.tree, "commit", "-q", "-a", "-m", "break the build")
    done = room.night()
    assert done.returncode == 1, done.stderr
    (one, other) = room.latest()["rows"]
    assert (one["verdict"], one["change"]) == ("UNBUILDABLE", "regression")
    assert "no" in one["reason"]
    # Built once, not for each scenario.
    assert len(list((room.root / "store").glob("outputs/*"))) == 1
    assert done.stderr.count("hint:") == 1
    assert other["first_bad"] is None
    done = room.night()
    assert done.returncode == 0
    assert set(changes(room.latest()).values()) == {"fails as before"}


def test_killed_at_five_points(room: Room, tmp_path: Path) -> None:
    room.commit("one", "two", "three")
    assert room.night().returncode == 0
    room.commit("four", "stranded", "five")
    room.environment["NIGHT_PAUSE"] = "0.1"
    # The same night without a kill, beside it.
    other = Room(tmp_path / "other")
    other.environment = room.environment | {"HARNESS_STORE": str(other.root / "store")}
    git(other.tree, "fetch", "-q", str(room.tree), "cxl/next")
    git(other.tree, "reset", "-q", "--hard", "FETCH_HEAD~3")
    assert other.night().returncode == 0
    git(other.tree, "reset", "-q", "--hard", "FETCH_HEAD")
    begin = time.monotonic()
    assert other.night().returncode == 1
    whole = time.monotonic() - begin

    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    print(f"seed {seed}, a whole night takes {whole:.1f} s")
    killed = 0
    while killed < 5:
        with subprocess.Popen(
            room.argv(), env=room.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as program:
            try:
                program.wait(chance.uniform(0, whole / 4))
                break
            except subprocess.TimeoutExpired:
                program.send_signal(signal.SIGKILL)
                killed += 1
    assert killed >= 3
    if room.unfinished():
        assert room.night().returncode == 1
    assert room.rows() == other.rows()


def test_a_branch_that_is_rebased(room: Room) -> None:
    room.commit("one", "two")
    assert room.night().returncode == 0
    git(room.tree, "reset", "-q", "--hard", "HEAD~1")
    bad = room.commit("stranded")
    room.commit("other")
    done = room.night()
    assert done.returncode == 1, done.stderr
    assert "the branch was rebased: " in done.stderr
    assert room.latest()["rows"][0]["first_bad"]["commit"] == bad


def test_a_passing_commit_that_is_gone(room: Room) -> None:
    room.commit("one", "two")
    assert room.night().returncode == 0
    git(room.tree, "reset", "-q", "--hard", "HEAD~1")
    room.commit("stranded")
    git(room.tree, "reflog", "expire", "--expire=now", "--all")
    git(room.tree, "gc", "-q", "--prune=now")
    done = room.night()
    assert done.returncode == 1, done.stderr
    assert "the branch was rebased, and " in done.stderr
    assert "which passed, is gone" in done.stdout


def test_a_branch_that_vanished(room: Room) -> None:
    assert_refused(room.night("--branch", "cxl/nxt"), "there is no branch cxl/nxt", "cxl/next")
    room.commit("one")
    assert room.night().returncode == 0
    git(room.tree, "branch", "-m", "cxl/fixes")
    before = room.rows()
    done = room.night()
    assert_refused(done, "there is no branch cxl/next", "night 1 still saw it", "cxl/fixes")
    assert room.rows() == before


def test_a_damaged_history(room: Room) -> None:
    room.commit("one")
    assert room.night().returncode == 0
    path = room.state / "history.sqlite"
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"x" * 4096
    for damaged in (bytes(content), b"no database at all" * 300):
        path.write_bytes(damaged)
        done = room.night()
        assert done.returncode == 0, done.stderr
        assert "is damaged" in done.stderr
        assert "the first night of this branch" in done.stdout
    # The nights before keep their reports, and the last is not the first to go.
    assert sorted(one.name for one in (room.state / "nights").iterdir()) == [
        "1",
        "2",
        "3",
        "latest",
    ]
    assert room.latest()["night"] == 3
    kept = sorted(room.state.glob("history.sqlite.damaged-*"))
    assert [one.read_bytes() for one in kept] == [bytes(content), b"no database at all" * 300]


def test_the_history_of_a_newer_harness(room: Room) -> None:
    assert room.night().returncode == 0
    path = room.state / "history.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma user_version = 99")
    before = path.read_bytes()
    assert_refused(room.night(), "written by a newer harness", "--state")
    assert path.read_bytes() == before


def test_two_at_once(room: Room) -> None:
    room.environment["NIGHT_PAUSE"] = "1"
    with subprocess.Popen(
        room.argv(), env=room.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as first:
        assert first.stderr is not None
        first.stderr.readline()
        assert_refused(room.night(), "another harness is running a night in")
        first.communicate(timeout=SECONDS)
    assert first.returncode == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kernels: [branch]\nplanets: [mars]\n", ("matrix.yaml:2", "planets")),
        ("kernels: [debian:7.2]\n", ("matrix.yaml:1: kernels", "must name the kernel 'branch'")),
    ],
)
def test_a_wrong_matrix(room: Room, text: str, words: tuple[str, ...]) -> None:
    room.matrix.write_text(text)
    assert_refused(room.night(), *words)
    assert not (room.state / "nights").exists()


def test_a_matrix_of_configurations(room: Room) -> None:
    """A matrix is looked at before the fetch, when nobody knows the commit yet."""
    room.matrix.write_text(
        "kernels: [branch]\nconfigs: [debug]\nscenarios: [exact_cover]\n"
        "policies: [all_or_nothing]\n"
    )
    done = room.night(tree=room.root / "nowhere")
    assert_refused(done, "there is no folder")
    done = room.night("--branch", "no/such")
    assert_refused(done, "there is no branch no/such")


def test_trees_that_are_none(room: Room) -> None:
    assert_refused(room.night(tree=room.root / "nowhere"), "there is no folder")
    (room.root / "plain").mkdir()
    assert_refused(room.night(tree=room.root / "plain"), "it is no git tree")
    url = f"file://{room.root}/nowhere.git"
    assert_refused(room.night(tree=url), "git cannot fetch", url, code=3)


def test_a_branch_behind_a_url(room: Room) -> None:
    last = room.commit("one")
    done = room.night(tree=f"file://{room.tree}")
    assert done.returncode == 0, done.stderr
    assert room.latest()["commit"] == last


def test_another_matrix_gives_up_what_was_not_finished(room: Room) -> None:
    room.commit("one")
    (room.root / "KILL_AT").write_text("1")
    assert room.night().returncode == -signal.SIGKILL
    room.matrix.write_text(MATRIX.replace(", partial_region", ""))
    done = room.night()
    assert done.returncode == 0, done.stderr
    assert "night 1 was not finished and is given up: the matrix is another one" in done.stderr
    assert room.latest()["night"] == 2


def test_what_a_night_saw_that_was_given_up_is_told_by_the_next(room: Room) -> None:
    first = room.commit("one")
    assert room.night().returncode == 0
    bad = room.commit("stranded")
    (room.root / "KILL_AT").write_text("1")
    assert room.night().returncode == -signal.SIGKILL
    assert len(room.rows_of("select * from results where night = 2 and verdict = 'FAIL'")) == 1
    done = room.night("--fresh")
    assert done.returncode == 1, done.stderr
    assert "night 2 was not finished and is given up: as asked" in done.stderr
    for row in room.latest()["rows"]:
        assert row["change"] == "regression"
        assert row["before"] == {"night": 1, "commit": first, "verdict": "PASS"}
        assert row["first_bad"]["commit"] == bad


def test_what_was_done_is_not_done_again(room: Room) -> None:
    room.commit("one")
    (room.root / "KILL_AT").write_text("1")
    assert room.night().returncode == -signal.SIGKILL
    room.commit("stranded")  # the night goes on with the commit that it began with
    done = room.night()
    assert done.returncode == 0, done.stderr
    assert "going on with night 1 at" in done.stderr
    assert "results so far: 1" in done.stderr
    assert changes(room.latest()) == {"exact_cover": "passes", "partial_region": "passes"}


def test_old_evidence_is_removed(room: Room) -> None:
    for _ in range(3):
        assert room.night("--keep", "2").returncode == 0
    assert sorted(one.name for one in (room.state / "nights").iterdir()) == ["2", "3", "latest"]
    assert len([row for row in room.rows() if row[1] == "cxl/next"]) == 3


def test_the_night_that_ends_keeps_its_report_whatever_other_branches_had_since(room: Room) -> None:
    git(room.tree, "branch", "cxl/fixes")
    (room.root / "KILL_AT").write_text("1")
    assert room.night().returncode == -signal.SIGKILL
    assert room.night("--branch", "cxl/fixes").returncode == 0
    done = room.night("--keep", "1")
    assert "going on with night 1" in done.stderr
    assert room.latest()["night"] == 1
