# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/iomem with differences marked."""

from __future__ import annotations

from pathlib import Path

import pytest
from evidence_fixtures import stored

from harness.contract.iomem_diff import MarkedLine, marked_iomem
from harness.runs.result_files import StoredRun


def marked(run: StoredRun) -> tuple[MarkedLine, ...]:
    assert run.observation is not None
    return marked_iomem(run.record, run.observation, ())


def shown(run: StoredRun) -> list[str]:
    """The lines that are near, with a mark in front."""
    marks = {"same": " ", "wrong": "!", "missing": "-"}
    return [f"{marks[one.mark]} {'  ' * one.depth}{one.text}" for one in marked(run) if one.near]


def test_a_region_in_the_way_and_the_device_that_is_missing(tmp_path: Path) -> None:
    (run,) = stored(tmp_path, "partial_region-7.2")
    assert shown(run) == [
        "  110000000-18fffffff : CXL Window 0",
        "!   110000000-14fffffff : region0",
        "-   110000000-18fffffff : daxN.N",
        "-     110000000-18fffffff : System RAM (kmem)",
    ]
    notes = [one.note for one in marked(run) if one.note]
    assert notes == [
        "a region where sr0 should belong to dax_hmem/system_ram",
        "sr0: expected dax_hmem/system_ram, found nobody",
    ]


def test_each_piece_of_a_range_for_itself(tmp_path: Path) -> None:
    (run,) = stored(tmp_path, "partial_region-6.12")
    lines = shown(run)
    assert "!       110000000-14fffffff : dax0.0" in lines
    assert any(line.startswith("-") and "150000000-18fffffff : daxN.N" in line for line in lines)
    assert not any(line.startswith("-") and "110000000-14fffffff" in line for line in lines)


def test_a_range_that_lies_in_nothing_has_its_missing_lines_where_they_would_be(
    tmp_path: Path,
) -> None:
    def no_window(result: dict[str, object]) -> None:
        stranded = {"range": "1c2000000-1c2ffffff", "owner": "nobody", "use": "none", "via": ""}
        expected = {"owner": "dax_hmem", "use": "system_ram"}
        owned = {"name": "sr0", "range": "1c2000000-1c2ffffff", "expected": expected}
        result["owners"] = [{**owned, "observed": [stranded]}]

    (run,) = stored(tmp_path, "sr_outside_window-7.2", change=no_window)
    everything = [one.text for one in marked(run)]
    missing = everything.index("1c2000000-1c2ffffff : daxN.N")
    roots = [(n, one.text) for n, one in enumerate(marked(run)) if not one.depth]
    before = [text for n, text in roots if n < missing]
    after = [text for n, text in roots if n > missing + 1]
    assert int(before[-1].partition("-")[0], 16) < 0x1C2000000 < int(after[0].partition("-")[0], 16)


@pytest.mark.parametrize("capture", ["exact_cover-7.2", "thread_hmat_maxmem-7.2"])
def test_the_tree_of_a_run_that_passed_is_as_it_was(tmp_path: Path, capture: str) -> None:
    (run,) = stored(tmp_path, capture)
    assert run.observation is not None
    assert {one.mark for one in marked(run)} == {"same"}
    lines = tuple(f"{'  ' * one.depth}{one.text}" for one in marked(run))
    assert lines == run.observation.iomem.lines()


def test_a_device_on_what_is_not_soft_reserved_is_marked(tmp_path: Path) -> None:
    def stranger(result: dict[str, object]) -> None:
        result["findings"] = [{"rule": "4", "text": "t", "range": "110000000-18fffffff"}]

    (run,) = stored(tmp_path, "exact_cover-7.2", change=stranger)
    assert [one.text for one in marked(run) if one.mark == "wrong"] == [
        "110000000-18fffffff : dax0.0"
    ]
