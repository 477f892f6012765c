# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of a run's view in a real Chromium: its phases, and in what its guests differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chromium_fixtures import Open, browser, open_report, runs
from evidence_fixtures import stored
from html_fixtures import HOSTILE, difference

from harness.runs.result_files import StoredRun

__all__ = ["browser", "open_report", "runs"]

pytestmark = pytest.mark.chromium


def test_differences_between_guests_are_shown(open_report: Open, tmp_path: Path) -> None:
    def more(result: dict[str, Any]) -> None:
        result.update(compared=3, differences=[difference(HOSTILE)])

    def alike(result: dict[str, Any]) -> None:
        result["compared"] = 7

    report = open_report(
        *stored(tmp_path / "a", "exact_cover-7.2", change=more),
        *stored(tmp_path / "b", "exact_cover-7.2", change=alike),
        *stored(tmp_path / "c", "exact_cover-7.2"),
    )
    text = report.open_run()
    for words in (
        *("3 guests compared", f"guest 2 differs in {HOSTILE} from 2 others"),
        *(f"+ {HOSTILE}\n- not {HOSTILE}", HOSTILE),
    ):
        assert words in text, words
    assert report.js("return document.querySelectorAll('#run script, img').length") == 0
    assert "7 guests with the same load have the same verdict" in report.open_run(1)
    assert "Repeated guests" not in report.open_run(2)


def test_phases_are_a_table_to_those_who_listen_to_it(
    open_report: Open, runs: tuple[StoredRun, ...]
) -> None:
    report = open_report(*runs)
    report.open_run()
    (table,) = report.find("#run .timeline")
    assert (table.aria_role, table.accessible_name) == ("table", "Phases and their seconds")
    head, *rows = report.find("#run .timeline tr")
    assert {one.aria_role for one in (head, *rows)} == {"row"}
    cells = [one.find_elements("css selector", "th, td") for one in rows]
    assert [one.aria_role for one in head.find_elements("css selector", "th")] == [
        "columnheader"
    ] * 3
    for row in cells:
        assert [one.aria_role for one in row] == ["rowheader", "cell", "cell"]
    assert [(name.text, length.text) for name, _, length in cells] == [
        ("prepare", "0.100 s"),
        ("boot", "2.500 s"),
        ("observe", "0.500 s"),
        ("total", "3.100 s"),
    ]
    bars = report.find("#run .timeline .track")
    assert [(one.aria_role.replace("image", "img"), one.accessible_name) for one in bars] == [
        ("img", "before the guest, not to scale"),
        ("img", "from 0.000 to 2.500 s"),
        ("img", "from 2.500 to 3.000 s"),
    ]
    # The bars are drawn where that is.
    boot, observe = (one.rect for one in report.find("#run .timeline .bar")[1:])
    assert observe["x"] == pytest.approx(boot["x"] + boot["width"], abs=2)
    assert boot["width"] == pytest.approx(5 * observe["width"], rel=0.1)
