# SPDX-License-Identifier: GPL-2.0-or-later
"""The history of nights: a damaged file is kept aside, and old results do not fill it."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.contract.result import Verdict, read_result
from harness.core.errors import UsageError
from harness.nightly.diff import BisectOutcome, EntryKey
from harness.nightly.history import FILE, Night, NightHistory, open_history
from harness.nightly.outcome import Outcome

KEYS = [EntryKey(f"scenario_{n}", "branch", "base", "", "per_range", "") for n in range(6)]
FAIL = Outcome("FAIL", "", ("rule 1 sr0",), "r", "/e")
OWNERS = [{"name": "sr0", "range": "100-1ff", "expected": {"owner": "dax_cxl"}, "observed": []}]
JUDGED = (Verdict.PASS, Verdict.FAIL)


def result(night: int, lines: int = 60) -> dict[str, Any]:
    dmesg = [f"{night} {n} " * 20 for n in range(lines)]
    return {
        "scenario": "x",
        "request": {"spec": "build:/linux"},
        "policy": "per_range",
        "verdict": "FAIL",
        "owners": OWNERS,
        "findings": [{"rule": "1", "text": "t", "dmesg": dmesg}],
    }


def begin(history: NightHistory) -> Night:
    return history.begin(Night(0, "/linux", "next", "kernels: [branch]\n", "1", "c" * 40, "s", 1.0))


def add_night(history: NightHistory, *, end: bool = True, lines: int = 60) -> Night:
    night = begin(history)
    for key in KEYS:
        history.add(night, key, FAIL, result(night.number, lines))
    history.add_bisection(night, KEYS[0], BisectOutcome("d" * 40, "s", ("a line",)))
    history.set_bisecting_seconds(night, 1.5)
    if end:
        history.end(night)
    return night


@pytest.fixture
def history(tmp_path: Path) -> Iterator[NightHistory]:
    with open_history(tmp_path, pytest.fail) as opened:
        yield opened


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A file with three nights, the last of them unfinished."""
    with open_history(tmp_path, pytest.fail) as history:
        for number in range(3):
            add_night(history, end=number < 2, lines=2)
    return tmp_path / FILE


def read_all(folder: Path) -> None:
    with open_history(folder, lambda _text: None) as history:
        night = history.unfinished("/linux", "next")
        history.last("/linux", "next")
        if night is not None:
            history.results(night)
            history.bisections(night)
            for key in history.outcomes(night):
                history.earlier(night, key, *JUDGED)


def test_what_is_written_is_read_again(whole: Path) -> None:
    with open_history(whole.parent, pytest.fail) as history:
        night = history.unfinished("/linux", "next")
        assert night is not None and night.number == 3
        assert history.outcomes(night) == dict.fromkeys(KEYS, FAIL)
        assert history.results(night) == [result(3, lines=2)] * len(KEYS)
        assert history.bisections(night) == {KEYS[0]: BisectOutcome("d" * 40, "s", ("a line",))}
        assert history.bisecting_seconds(night) == 1.5
        before = history.earlier(night, KEYS[0], *JUDGED)
        assert before is not None and (before.night, before.outcome) == (2, FAIL)


def test_any_damaged_bytes_are_a_message_and_never_a_defect(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    aside = 0
    # All but the number of the format: a larger one is a newer harness, not damage.
    places = [*range(60), *range(64, len(content))]
    for number in range(120):
        damaged = bytearray(content)
        for at in chance.sample(places, 8):
            damaged[at] = chance.randrange(256)
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / FILE).write_bytes(damaged)
        try:
            read_all(folder)
        except UsageError as error:
            assert error.where == str(folder / FILE)
        kept = list(folder.glob(f"{FILE}.damaged-*"))
        aside += len(kept)
        assert all(file.read_bytes() == damaged for file in kept)
    assert aside > 20


@pytest.mark.parametrize(
    "change",
    [
        "update results set entry = 'x' || entry where night = 1",
        "update results set failures = '[1' where night = 1",
        "update results set result = '{' where night = 3",
        f"update results set result = '{'[' * 99_999}' where night = 1",
        "update bisections set lines = x'ff' where night = 1",
        "pragma user_version = -1",
        "pragma user_version = 0",
    ],
    ids=lambda change: change[:40],
)
def test_a_damaged_file_is_moved_aside(whole: Path, change: str) -> None:
    with closing(sqlite3.connect(whole)) as connection:
        connection.execute("pragma ignore_check_constraints = 1")
        connection.execute(change)
        connection.commit()
    notes: list[str] = []
    with open_history(whole.parent, notes.append) as history:
        assert history.last("/linux", "next") is None
    (note,) = notes
    (kept,) = whole.parent.glob(f"{FILE}.damaged-*")
    assert "is damaged" in note and kept.name in note


@pytest.mark.parametrize(
    "change",
    [
        "update results set entry = '{}' where night = 3 and entry like '%_1%'",
        "update results set failures = '7' where night = 3",
        "update results set reason = cast(x'ff41' as text) where night = 3",
        "drop table bisections",
    ],
)
def test_a_row_that_cannot_be_read_names_the_file(whole: Path, change: str) -> None:
    with closing(sqlite3.connect(whole)) as connection:
        connection.execute(change)
        connection.commit()
    with pytest.raises(UsageError, match="the history") as caught:
        read_all(whole.parent)
    assert caught.value.where == str(whole)


def test_a_newer_harness_keeps_its_file(whole: Path) -> None:
    with closing(sqlite3.connect(whole)) as connection:
        connection.execute("pragma user_version = 99")
    before = whole.read_bytes()
    with pytest.raises(UsageError, match="newer harness"):
        read_all(whole.parent)
    assert whole.read_bytes() == before


def test_a_file_that_cannot_be_opened_is_not_damaged(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(UsageError, match="cannot be opened"):
        read_all(tmp_path)
    assert (tmp_path / FILE).is_dir()


def test_old_results_do_not_fill_the_file(history: NightHistory, tmp_path: Path) -> None:
    sizes = []
    for _ in range(20):
        night = add_night(history)
        assert history.results(night) == [result(night.number)] * len(KEYS)
        history.drop_details(night.number - 2)
        sizes.append((tmp_path / FILE).stat().st_size)
    one_night = len(KEYS) * len(json.dumps(result(1)))
    assert (sizes[-1] - sizes[4]) / 15 < one_night / 5
    old, new = (replace(night, number=number) for number in (1, 18))
    assert history.outcomes(old) == history.outcomes(new)
    assert history.results(new) == [result(18)] * len(KEYS)
    assert {key: history.results(old)[0][key] for key in ("owners", "verdict")} == {
        "owners": OWNERS,
        "verdict": "FAIL",
    }
    assert "findings" not in history.results(old)[0]
    read_result(history.results(old)[0])  # still a result


def test_a_file_that_has_grown_becomes_smaller(history: NightHistory, tmp_path: Path) -> None:
    for _ in range(6):
        add_night(history)
    large = (tmp_path / FILE).stat().st_size
    history.drop_details(6)
    assert (tmp_path / FILE).stat().st_size < large / 3


def test_an_unfinished_night_keeps_its_results(history: NightHistory) -> None:
    given_up, unfinished = (add_night(history, end=False) for _ in range(2))
    history.drop_details(99)
    assert history.results(unfinished)[0] == result(2)
    assert "findings" not in history.results(given_up)[0]


def test_failures_of_an_interrupted_night_do_not_count(history: NightHistory) -> None:
    """They were not reported, so the next night must report them as new."""
    night = begin(history)
    history.add(night, KEYS[0], Outcome("PASS"), None)
    history.add(night, KEYS[1], FAIL, None)
    assert history.earlier(night, KEYS[0], *JUDGED) is None, "the night itself is not earlier"
    later = begin(history)
    found = [history.earlier(later, key, *JUDGED) for key in KEYS[:2]]
    assert [earlier and earlier.outcome.verdict for earlier in found] == ["PASS", None]
