# SPDX-License-Identifier: GPL-2.0-or-later
"""Nights that were cut short: what the next start goes on with, and what the next night tells."""

from __future__ import annotations

import signal

from fake_sources import git
from nightly_fixtures import MATRIX, Room, changes, room

from harness.matrix.worker_messages import NO_HOST

__all__ = ["room"]


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


def test_a_night_whose_hosts_are_all_lost_goes_on_later(room: Room) -> None:
    room.commit("one")
    (room.root / "NO_RESULT").write_text(f"{NO_HOST}: no host is left")
    done = room.night()
    assert done.returncode == 3, done.stdout
    assert "2 of 2 combinations came to no end" in done.stderr
    assert "no host is left" in done.stderr
    (room.root / "NO_RESULT").unlink()
    done = room.night()
    assert done.returncode == 0, done.stderr
    assert "going on with night 1 at" in done.stderr
    assert set(changes(room.latest()).values()) == {"passes"}


def test_the_night_that_ends_keeps_its_report_whatever_other_branches_had_since(room: Room) -> None:
    git(room.tree, "branch", "cxl/fixes")
    (room.root / "KILL_AT").write_text("1")
    assert room.night().returncode == -signal.SIGKILL
    assert room.night("--branch", "cxl/fixes").returncode == 0
    done = room.night("--keep", "1")
    assert "going on with night 1" in done.stderr
    assert room.latest()["night"] == 1
