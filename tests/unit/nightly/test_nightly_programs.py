# SPDX-License-Identifier: GPL-2.0-or-later
"""`ci/nightly` as a program: nights of a branch that moves, kills, and what is wrong around it."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
from fake_sources import edit, git
from nightly_fixtures import SECONDS, Room, changes, room

__all__ = ["room"]


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


def test_a_night_that_concerns_no_scenario_names_the_report_that_there_is(room: Room) -> None:
    (room.root / "NO_RESULT").write_text("NotApplicable: the kernel has no CXL")
    done = room.night()
    assert done.returncode == 3, done.stderr
    assert set(changes(room.latest()).values()) == {"does not concern this kernel"}
    (name,) = [line for line in done.stdout.splitlines() if line.startswith("report: ")]
    assert Path(name.removeprefix("report: ")).read_text() in done.stdout


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (240 * 60, "not bisected: the time is used up, 240 minutes a night"),
        (240 * 60 - 1e-6, "or take a larger --bisect-total-minutes"),
    ],
)
def test_the_time_for_all_bisections_of_a_night(room: Room, seconds: float, words: str) -> None:
    room.commit("one")
    assert room.night().returncode == 0
    room.commit("stranded")
    with closing(sqlite3.connect(room.state / "history.sqlite")) as connection:
        connection.execute("insert into bisecting_times values (2, ?)", (seconds,))
        connection.commit()
    done = room.night()
    assert done.returncode == 1, done.stderr
    assert words in done.stdout
    assert "looking for commits has taken 240.0 minutes of this night before" in done.stderr
    assert not [row for row in room.latest()["rows"] if row["first_bad"]["commit"]]


def test_the_time_of_bisections_is_kept_step_by_step(room: Room) -> None:
    room.commit("one")
    assert room.night().returncode == 0
    room.commit("two", "stranded", "three")
    (room.root / "KILL_AT").write_text("4")  # two of the matrix, one of the bisection
    assert room.night().returncode == -signal.SIGKILL
    ((seconds,),) = room.rows_of("select seconds from bisecting_times where night = 2")
    assert seconds > 0


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
        ("kernels: [debian:7.2]\n", ("matrix.yaml:1: kernels", "needs the kernel 'branch'")),
    ],
)
def test_a_wrong_matrix(room: Room, text: str, words: tuple[str, ...]) -> None:
    room.matrix.write_text(text)
    assert_refused(room.night(), *words)
    assert not (room.state / "nights").exists()


def test_hosts_are_looked_at_before_anything_is_built(room: Room) -> None:
    hosts = room.root / "hosts.yaml"
    assert_refused(room.night("--hosts", hosts), "hosts.yaml", "cannot read")
    hosts.write_text("hosts:\n- {name: a, shs: b}\n")
    assert_refused(room.night("--hosts", hosts), "hosts.yaml:2", "unknown key 'shs'")
    assert not (room.state / "nights").exists()


def test_a_folder_that_cannot_be_made(room: Room) -> None:
    (room.root / "file").touch()
    assert_refused(room.night("--state", room.root / "file" / "state"), "cannot be made", "--state")


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


def test_old_evidence_is_removed(room: Room) -> None:
    for _ in range(3):
        assert room.night("--keep", "2").returncode == 0
    assert sorted(one.name for one in (room.state / "nights").iterdir()) == ["2", "3", "latest"]
    assert len([row for row in room.rows() if row[1] == "cxl/next"]) == 3
    results = room.rows_of("select night, result from results order by night")
    whole = {night: "timings" in json.loads(result) for night, result in results}
    assert whole == {1: False, 2: True, 3: True}
