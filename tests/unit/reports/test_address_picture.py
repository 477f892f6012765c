# SPDX-License-Identifier: GPL-2.0-or-later
"""The picture of the address space, compared with the ranges that it shows."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from evidence_fixtures import stored
from hypothesis import given
from hypothesis import strategies as st
from machines import firmware_state

from harness.contract.result import RunResult
from harness.platform.hdm_decoders import Component, DecoderSetting
from harness.platform.memory_range import GIB, MIB, MemoryRange
from harness.reports.html.address_picture import address_picture
from harness.reports.html.address_space import AddressSpace, Box, Lane, Scale, address_space
from harness.runs.result_files import StoredRun
from harness.scenario.kernel_request import KernelRequest

RECORD = RunResult("s", KernelRequest("x"), "per_range")
SVG = "{http://www.w3.org/2000/svg}"
RANGES = st.lists(
    st.builds(MemoryRange.of_size, st.integers(0, 1 << 46), st.integers(1, 1 << 42)),
    min_size=1,
    max_size=12,
)


def space_of(run: StoredRun) -> AddressSpace:
    return address_space(run)


def boxes(svg: str) -> dict[str, tuple[str, float, float, float]]:
    """By tooltip: class, and where the box begins, ends, and how high up it is."""
    found = {}
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        title = group.findtext(f"{SVG}title")
        assert rect is not None and title is not None
        x, width, y = (float(rect.attrib[name]) for name in ("x", "width", "y"))
        found[title] = (group.attrib["class"], x, x + width, y)
    return found


@given(RANGES)
def test_the_scale_keeps_order_and_never_folds_two_addresses_together(
    ranges: list[MemoryRange],
) -> None:
    scale = Scale(ranges, 500)
    edges = sorted({edge for one in ranges for edge in (one.start, one.end + 1)})
    places = [scale.at(edge) for edge in edges]
    assert places[0] == 0
    assert places[-1] == pytest.approx(scale.width)
    assert scale.width >= 500 - 1e-6
    assert all(after - before > 8 for before, after in itertools.pairwise(places))
    for one in ranges:
        x, width = scale.span(one)
        assert x >= 0 and width > 0 and x + width <= scale.width + 1e-6


@given(RANGES, st.data())
def test_ranges_overlap_in_the_picture_exactly_when_they_do_in_memory(
    ranges: list[MemoryRange], data: st.DataObject
) -> None:
    scale = Scale(ranges)
    one, other = data.draw(st.sampled_from(ranges)), data.draw(st.sampled_from(ranges))
    (x, width), (u, length) = scale.span(one), scale.span(other)
    assert one.overlaps(other) == (x < u + length - 1e-6 and u < x + width - 1e-6)


def test_a_gap_is_short_and_a_larger_range_is_never_drawn_shorter() -> None:
    small, large = MemoryRange.of_size(0, 256 * MIB), MemoryRange.of_size(100 * GIB, 8 * GIB)
    scale = Scale([small, large])
    gaps = [one for one in scale.segments if one.gap]
    assert [one.range for one in gaps] == [MemoryRange(small.end + 1, large.start - 1)]
    assert gaps[0].width < scale.span(small)[1] < scale.span(large)[1]


def test_a_stranded_range_is_seen_without_any_colour(tmp_path: Path) -> None:
    (run,) = stored(tmp_path, "partial_region-7.2")
    svg = address_picture(space_of(run))
    found = boxes(svg)
    where = "110000000-18fffffff 2G "
    kind, left, right, y = found[f"{where}nobody (not as expected)"]
    expected_kind, *place, expected_y = found[f"{where}dax_hmem system_ram"]
    assert "as-wrong" in kind and "as-nobody" in kind and "as-wrong" not in expected_kind
    assert place == [left, right]
    assert expected_y < y, "expected above observed"
    assert "STRANDED" in svg
    assert "url(#as-nobody)" in svg and 'id="as-nobody"' in svg
    assert "2G nobody, wrong" not in svg and "observed nobody, wrong" in svg, "for screen readers"
    region = found["110000000-14fffffff 1G region0"]
    assert region[1] == left
    assert region[2] == pytest.approx((left + right) / 2, abs=2), "half of the range"


def test_what_is_owned_as_expected_is_not_marked(tmp_path: Path) -> None:
    for run in stored(tmp_path, "exact_cover-7.2", "thread_hmat_maxmem-7.2"):
        svg = address_picture(space_of(run))
        assert "as-wrong" not in svg and "as-band" not in svg
        assert "✓ dax_cxl" in svg


def test_pieces_of_one_range_are_drawn_each(tmp_path: Path) -> None:
    (run,) = stored(tmp_path, "partial_region-6.12")
    found = boxes(address_picture(space_of(run)))
    owned = found["110000000-14fffffff 1G dax_cxl system_ram (not as expected)"]
    stranded = found["150000000-18fffffff 1G nobody (not as expected)"]
    assert owned[2] <= stranded[1]
    assert owned[3] == stranded[3]


def test_a_result_without_evidence_has_its_expected_owners(tmp_path: Path) -> None:
    (run,) = stored(tmp_path, "partial_region-7.2")
    bare = address_space(StoredRun(run.record))
    assert [lane.title for lane in bare.expected] == ["expected owner"]


def test_interleaved_devices_share_a_box() -> None:
    decoders = tuple(
        DecoderSetting(Component("endpoint", name, 12), 0, MemoryRange(0, GIB - 1), 2, 256, ())
        for name in ("a", "b")
    )
    space = address_space(StoredRun(RECORD, state=firmware_state({}), decoders=decoders))
    assert [box.label for box in space.boxes()] == ["a + b"]


@given(RANGES)
def test_boxes_of_one_lane_never_overlap(ranges: list[MemoryRange]) -> None:
    state = firmware_state({f"sr{n}": str(one) for n, one in enumerate(ranges)})
    space = address_space(StoredRun(RECORD, state=state))
    for lane in space.expected:
        for before, after in itertools.pairwise(lane.boxes):
            assert before.range.end < after.range.start
    assert len(space.boxes()) == len(ranges)


def test_a_device_where_none_should_be_is_marked(tmp_path: Path) -> None:
    def stranger(result: dict[str, Any]) -> None:
        finding = {"rule": "4", "text": "t", "range": "5d0000000-64fffffff"}
        result.update(verdict="FAIL", findings=[finding])

    (run,) = stored(tmp_path, "thread_hmat_maxmem-7.2", change=stranger)
    svg = address_picture(space_of(run))
    wrong = [title for title, (kind, *_) in boxes(svg).items() if "as-wrong" in kind]
    assert wrong == ["5d0000000-64fffffff 2G dax0.0 kmem (not as expected)"]
    assert "✗ dax0.0" in svg


def test_memory_that_nobody_should_own_is_not_drawn_as_stranded(tmp_path: Path) -> None:
    def nobody(result: dict[str, Any]) -> None:
        (owned,) = result["owners"]
        owned["expected"] = {"owner": "nobody", "use": "none"}

    (run,) = stored(tmp_path, "partial_region-7.2", change=nobody)
    svg = address_picture(space_of(run))
    assert "url(#as-nobody)" not in svg and "STRANDED" not in svg and "as-wrong" not in svg


def test_who_owned_what_after_a_step_that_broke(tmp_path: Path) -> None:
    def step(result: dict[str, Any]) -> None:
        held = {"step": "load", "outcome": "held", "owners": result["owners"]}
        result["steps"] = [held, {**held, "step": "rebind", "outcome": "broke"}]

    (run,) = stored(tmp_path, "partial_region-7.2", change=step)
    titles = [lane.title for lane in space_of(run).observed if lane.kind == "owner"]
    assert titles == ["observed owner", "owner after step 2"]


@given(st.text(max_size=30))
def test_names_never_become_markup(name: str) -> None:
    lane = Lane(name, "owner", (Box(MemoryRange(0, 5), name, name, name, True),))
    root = ElementTree.fromstring(address_picture(AddressSpace((lane,), (lane,))))
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags <= {"svg", "title", "defs", "pattern", "path", "rect", "g", "text", "line"}


def test_nothing_is_drawn_of_nothing() -> None:
    assert address_picture(AddressSpace((), ())) == ""
