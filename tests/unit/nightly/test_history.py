# SPDX-License-Identifier: GPL-2.0-or-later
"""The history of nights: a damaged one is kept aside, whatever is damaged in it."""

from __future__ import annotations

import json
import random
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.contract.result import read_result
from harness.core.errors import UsageError
from harness.nightly.diff import Bisecting, Line, Seen
from harness.nightly.history import FILE, NightHistory, open_history

LINES = [Line(f"scenario_{n}", "branch", "base", "", "per_range", "") for n in range(6)]
RESULT = {
    "scenario": "x",
    "request": {"spec": "build:/linux"},
    "policy": "per_range",
    "verdict": "FAIL",
    "findings": [{"rule": "1", "text": "t" * 300}],
}


def fill(folder: Path) -> bytes:
    """Three nights, the last of them under way."""
    folder.mkdir()
    with open_history(folder, print) as history:
        for number in range(1, 4):
            night = history.begin("/linux", "next", "kernels: [branch]\n", "1", "c" * 40, "s")
            for line in LINES:
                history.add(night, line, Seen("FAIL", "", ("rule 1 sr0",), "r", "/e"), RESULT)
            history.add_bisecting(night, LINES[0], Bisecting("d" * 40, "s", ("said",)))
            if number < 3:
                history.end(night)
    return (folder / FILE).read_bytes()


def read_all(history: NightHistory) -> None:
    night = history.unfinished("/linux", "next")
    history.last("/linux", "next")
    if night is not None:
        history.results(night)
        history.bisectings(night)
        for line in history.seen(night):
            history.earlier(night, line, judged=True)


def test_a_damaged_byte_anywhere_is_no_defect_of_the_harness(tmp_path: Path) -> None:
    whole = fill(tmp_path / "whole")
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    aside = 0
    # All but the number of the file's form: a larger one is not damage, but a newer harness.
    places = [*range(60), *range(64, len(whole))]
    for number in range(120):
        damaged = bytearray(whole)
        for at in chance.sample(places, 8):
            damaged[at] = chance.randrange(256)
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / FILE).write_bytes(damaged)
        with open_history(folder, lambda _text: None) as history:
            read_all(history)
        (*kept,) = folder.glob(f"{FILE}.damaged-*")
        aside += len(kept)
        assert all(one.read_bytes() == damaged for one in kept)
    assert aside > 20


@pytest.mark.parametrize(
    "change",
    [
        "update results set line = 'x' || line where night = 1",
        "update results set failures = '[1' where night = 1",
        "update results set verdict = 'PBSS' where night = 1",
        "update results set reason = cast(x'ff41' as text) where night = 1",
        "update results set result = '{' where night = 3",
        "update bisections set said = '7'",
        "update nights set began = 'x'",
        "update nights set ended = 'x' where id = 2",
        "insert into bisecting_times values (1, 'x')",
        "insert into bisecting_times values (1, -1)",
        "pragma user_version = -1",
    ],
)
def test_rows_that_make_no_sense_are_damage(tmp_path: Path, change: str) -> None:
    fill(tmp_path / "state")
    with closing(sqlite3.connect(tmp_path / "state" / FILE)) as connection:
        connection.execute(change)
        connection.commit()
    said: list[str] = []
    with open_history(tmp_path / "state", said.append) as history:
        assert history.last("/linux", "next") is None
    (text,) = said
    assert "is damaged" in text


def test_a_file_of_before_the_times_were_kept_is_read_on(tmp_path: Path) -> None:
    fill(tmp_path / "state")
    with closing(sqlite3.connect(tmp_path / "state" / FILE)) as connection:
        connection.execute("drop table bisecting_times")
    with open_history(tmp_path / "state", pytest.fail) as history:
        night = history.unfinished("/linux", "next")
        assert night is not None and len(history.seen(night)) == len(LINES)
        assert history.bisecting_seconds(night) == 0
        for _ in range(2):
            history.add_bisecting_seconds(night, 1.5)
        assert history.bisecting_seconds(night) == 3


OWNERS = [{"name": "sr0", "range": "100-1ff", "expected": {"owner": "dax_cxl"}, "observed": []}]


def whole(night: int) -> dict[str, Any]:
    findings = [{"rule": "1", "text": "t", "dmesg": [f"{night} {n} " * 20 for n in range(200)]}]
    return {**RESULT, "owners": OWNERS, "findings": findings}


def test_old_results_do_not_fill_the_file(tmp_path: Path) -> None:
    path = tmp_path / FILE
    sizes = []
    with open_history(tmp_path, pytest.fail) as history:
        for number in range(1, 41):
            night = history.begin("/linux", "next", "m", "1", "c" * 40, "s")
            for line in LINES:
                history.add(night, line, Seen("FAIL", "", ("rule 1 sr0",)), whole(number))
            assert history.results(night) == [whole(number)] * len(LINES)
            history.shorten(number - 2)
            history.end(night)
            sizes.append(path.stat().st_size)
        one_night = len(LINES) * len(json.dumps(whole(1)))
        assert (sizes[-1] - sizes[4]) / 35 < one_night / 10
        now = history.begin("/linux", "next", "m", "1", "c" * 40, "s")
        before = history.earlier(now, LINES[0], judged=True)
        assert before is not None and before.seen == Seen("FAIL", "", ("rule 1 sr0",))
        old, new = (replace(now, number=number) for number in (1, 38))
        assert history.seen(old) == history.seen(new)
        assert history.results(new) == [whole(38)] * len(LINES)
        (short, *_) = history.results(old)
        assert (short["owners"], short["verdict"], len(short)) == (OWNERS, "FAIL", 5)
        read_result(short)  # still a result


def test_a_file_that_has_grown_becomes_smaller(tmp_path: Path) -> None:
    with open_history(tmp_path, pytest.fail) as history:
        for number in range(1, 11):
            night = history.begin("/linux", "next", "m", "1", "c" * 40, "s")
            history.add(night, LINES[0], Seen("FAIL"), whole(number))
            history.end(night)
        large = (tmp_path / FILE).stat().st_size
        history.shorten(10)
        assert (tmp_path / FILE).stat().st_size < large / 3
    with open_history(tmp_path, pytest.fail) as history:
        assert history.results(night) == [whole(10)]


def test_a_night_that_is_still_to_be_finished_keeps_its_results(tmp_path: Path) -> None:
    with open_history(tmp_path, pytest.fail) as history:
        given_up, left = (
            history.begin("/linux", "next", "m", "1", "c" * 40, "s") for _ in range(2)
        )
        for night in (given_up, left):
            history.add(night, LINES[0], Seen("FAIL"), whole(1))
        history.shorten(99)
        assert history.results(left) == [whole(1)]
        assert "findings" not in history.results(given_up)[0]


@pytest.mark.parametrize(
    "damaged",
    [
        *("'{'", "'5'", "cast(x'ff41' as text)", "x'7b'", "7"),
        pytest.param(f"'{'[' * 99_999}'", id="deep"),
    ],
)
def test_an_old_result_that_is_damaged_is_dropped(tmp_path: Path, damaged: str) -> None:
    fill(tmp_path / "state")
    with closing(sqlite3.connect(tmp_path / "state" / FILE)) as connection:
        connection.execute(f"update results set result = {damaged} where night = 1")
        connection.commit()
    with open_history(tmp_path / "state", pytest.fail) as history:
        night = history.unfinished("/linux", "next")
        assert night is not None
        history.shorten(3)
        assert history.results(replace(night, number=1)) == []
        assert len(history.results(replace(night, number=2))) == len(LINES)


def test_a_file_that_may_not_be_opened_is_not_damaged(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(UsageError, match="cannot be opened"), open_history(tmp_path, print):
        pass
    assert (tmp_path / FILE).is_dir()
