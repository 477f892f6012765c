# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.platform.memory_range import (
    GIB,
    KIB,
    MIB,
    TIB,
    MemoryRange,
    format_size,
    merge_adjacent,
    parse_size,
)

# Small numbers, so that ranges touch, overlap and contain each other often.
small_ranges = st.builds(
    MemoryRange.of_size, st.integers(0, 60), st.integers(min_value=1, max_value=20)
)
any_range = st.builds(
    MemoryRange.of_size, st.integers(0, 1 << 64), st.integers(min_value=1, max_value=1 << 64)
)


def bytes_of(*ranges: MemoryRange) -> set[int]:
    return {at for one in ranges for at in range(one.start, one.end + 1)}


def test_a_range_ends_at_or_after_its_start_and_is_not_negative() -> None:
    for start, end in (
        (1, 0),
        (-1, 5),
        (0x200, 0x1FF),
    ):
        with pytest.raises(ValueError, match="not a range"):
            MemoryRange(start, end)


def test_a_range_is_inclusive_at_both_ends() -> None:
    assert MemoryRange(0x1000, 0x1FFF).size == 0x1000
    assert MemoryRange(7, 7).size == 1
    assert MemoryRange.of_size(0x1000, 0x1000) == MemoryRange(0x1000, 0x1FFF)


def test_a_range_of_no_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="not a range"):
        MemoryRange.of_size(0x1000, 0)


def test_a_range_prints_as_proc_iomem_prints_it() -> None:
    assert str(MemoryRange(0x1000, 0x9FBFF)) == "00001000-0009fbff"
    assert str(MemoryRange(0x110000000, 0x18FFFFFFF)) == "110000000-18fffffff"


@given(any_range)
def test_a_printed_range_reads_back(one: MemoryRange) -> None:
    assert MemoryRange.parse(str(one)) == one
    assert MemoryRange.parse(f"{one.start:#x}-{one.end:#x}") == one


def test_text_that_is_not_a_range_is_refused() -> None:
    for text in (
        "",
        "1000",
        "1000-",
        "-1000",
        "2000-1000",
        "x-y",
        "1000-1g",
    ):
        with pytest.raises(ValueError):
            MemoryRange.parse(text)


@given(small_ranges, small_ranges)
def test_overlap_containment_and_intersection_agree_with_the_bytes(
    one: MemoryRange, other: MemoryRange
) -> None:
    common = bytes_of(one) & bytes_of(other)
    shared = one.intersection(other)
    assert one.overlaps(other) == bool(common)
    assert one.contains(other) == (bytes_of(other) <= bytes_of(one))
    assert (bytes_of(shared) if shared else set()) == common


@given(small_ranges, st.lists(small_ranges, max_size=6))
def test_minus_leaves_exactly_the_other_bytes_ascending_and_apart(
    one: MemoryRange, others: list[MemoryRange]
) -> None:
    left = one.minus(others)
    assert bytes_of(*left) == bytes_of(one) - bytes_of(*others)
    assert all(a.end < b.start for a, b in itertools.pairwise(left))


@given(st.lists(small_ranges, max_size=8))
def test_merging_keeps_the_bytes_in_as_few_ranges_as_possible(ranges: list[MemoryRange]) -> None:
    merged = merge_adjacent(ranges)
    assert bytes_of(*merged) == bytes_of(*ranges)
    # At least one byte lies between two neighbours, else they would be one range.
    assert all(a.end + 1 < b.start for a, b in itertools.pairwise(merged))


def test_a_size_is_a_number_and_a_unit() -> None:
    for text, size in (
        ("512M", 512 * MIB),
        ("2G", 2 * GIB),
        ("8192", 8192),
        ("4K", 4 * KIB),
        ("1T", TIB),
    ):
        assert parse_size(text) == size


def test_text_that_is_not_a_size_is_refused_with_a_hint() -> None:
    for text in (
        "",
        "0",
        "0G",
        "-1G",
        "1.5G",
        "2g",
        "2GiB",
        "2 G",
        "0x100",
        "M",
        "1P",
        "٣M",
        "1_0M",
    ):
        with pytest.raises(ValueError, match="not a size: write a number and K, M, G or T"):
            parse_size(text)


@given(st.integers(min_value=1, max_value=1 << 70))
def test_a_formatted_size_reads_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


def test_a_size_is_formatted_with_the_largest_unit_that_is_exact() -> None:
    for size, text in (
        (0, "0"),
        (1, "1"),
        (1536 * MIB, "1536M"),
        (1025, "1025"),
        (2048 * GIB, "2T"),
        (KIB, "1K"),
    ):
        assert format_size(size) == text
