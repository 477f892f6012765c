# SPDX-License-Identifier: GPL-2.0-or-later
"""`ci/nightly` after an interruption: the next start continues the night, or gives it up."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fake_sources import git
from nightly_fixtures import MATRIX, Workspace, changes, workspace

from harness.matrix.worker_messages import NO_HOST

__all__ = ["workspace"]


def test_killed_at_five_points(workspace: Workspace, tmp_path: Path) -> None:
    workspace.passed("one", "two", "three")
    workspace.commit("four", "stranded", "five")
    workspace.environment["NIGHT_PAUSE"] = "0.1"
    # The same nights without a kill.
    other = Workspace(tmp_path / "other")
    other.environment = workspace.environment | {"HARNESS_STORE": str(other.root / "store")}
    git(other.tree, "fetch", "-q", str(workspace.tree), "cxl/next")
    git(other.tree, "reset", "-q", "--hard", "FETCH_HEAD~3")
    other.expect_night(0)
    git(other.tree, "reset", "-q", "--hard", "FETCH_HEAD")
    begin = time.monotonic()
    other.expect_night(1)
    whole = time.monotonic() - begin

    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    print(f"seed {seed}, a whole night takes {whole:.1f} s")
    killed = 0
    while killed < 5:
        with subprocess.Popen(
            workspace.argv(),
            env=workspace.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as program:
            try:
                program.wait(chance.uniform(0, whole / 4))
                break
            except subprocess.TimeoutExpired:
                program.send_signal(signal.SIGKILL)
                killed += 1
    assert killed >= 3
    if workspace.select("count(*) from nights where ended is not null") == [(1,)]:
        workspace.expect_night(1)
    assert workspace.rows() == other.rows()


def test_outcomes_are_not_repeated_and_the_commit_stays(workspace: Workspace) -> None:
    workspace.commit("one")
    workspace.killed(1)
    workspace.commit("stranded")
    done = workspace.expect_night(0)
    assert "continuing night 1 at" in done.stderr
    assert "results so far: 1" in done.stderr
    assert changes(workspace.latest()) == {"exact_cover": "passes", "partial_region": "passes"}


def test_another_matrix_gives_up_the_night(workspace: Workspace) -> None:
    workspace.commit("one")
    workspace.killed(1)
    workspace.matrix.write_text(MATRIX.replace(", partial_region", ""))
    done = workspace.expect_night(0)
    assert "night 1 was not finished and is given up: the matrix has changed" in done.stderr
    assert workspace.latest()["night"] == 2


def test_failures_of_a_night_that_was_given_up_are_reported(workspace: Workspace) -> None:
    first = workspace.passed("one")
    bad = workspace.commit("stranded")
    workspace.killed(1)
    failed = "count(*) from results where night = 2 and verdict = 'FAIL'"
    assert workspace.select(failed) == [(1,)]
    done = workspace.expect_night(1, "--fresh")
    assert "night 2 was not finished and is given up: --fresh" in done.stderr
    for row in workspace.latest()["rows"]:
        assert row["change"] == "regression"
        assert row["before"] == {"night": 1, "commit": first, "verdict": "PASS"}
        assert row["first_bad"]["commit"] == bad


def test_a_night_without_hosts_is_continued(workspace: Workspace) -> None:
    workspace.commit("one")
    (workspace.root / "NO_RESULT").write_text(f"{NO_HOST}: no host is left")
    done = workspace.expect_night(3)
    assert "2 of 2 matrix entries were interrupted" in done.stderr
    assert "no host is left" in done.stderr
    (workspace.root / "NO_RESULT").unlink()
    assert "continuing night 1 at" in workspace.expect_night(0).stderr
    assert set(changes(workspace.latest()).values()) == {"passes"}


def test_a_continued_night_keeps_its_report(workspace: Workspace) -> None:
    """It has a smaller number than nights that another branch had in the meantime."""
    git(workspace.tree, "branch", "cxl/fixes")
    workspace.killed(1)
    workspace.expect_night(0, "--branch", "cxl/fixes")
    assert "continuing night 1" in workspace.expect_night(0, "--keep", "1").stderr
    assert workspace.latest()["night"] == 1


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (240 * 60, "not bisected: the time is used up, 240 minutes a night"),
        (240 * 60 - 1e-6, "or take a larger --bisect-total-minutes"),
    ],
)
def test_the_time_for_all_bisections(workspace: Workspace, seconds: float, words: str) -> None:
    workspace.passed("one")
    workspace.commit("stranded")
    workspace.killed(1)
    with workspace.history() as connection:
        connection.execute("update nights set bisecting_seconds = ? where id = 2", (seconds,))
    done = workspace.expect_night(1)
    assert words in done.stdout
    assert "earlier starts of this night spent 240.0 of 240 minutes on bisections" in done.stderr
    assert not [row for row in workspace.latest()["rows"] if row["first_bad"]["commit"]]


def test_the_time_of_a_bisection_is_recorded_after_each_step(workspace: Workspace) -> None:
    workspace.passed("one")
    workspace.commit("two", "stranded", "three")
    workspace.killed(4)  # two runs of the matrix, one of the bisection
    ((seconds,),) = workspace.select("bisecting_seconds from nights where id = 2")
    assert seconds > 0
