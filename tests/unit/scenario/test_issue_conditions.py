# SPDX-License-Identifier: GPL-2.0-or-later
"""Properties of layouts that known issues name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from machines import committed, firmware_state, span

from harness.scenario.issue_conditions import AddressCondition, addresses_where

WINDOW = "110000000-18fffffff"


def cut(reserved: str, *, decoder: str = "", window: str = WINDOW) -> list[str]:
    state = firmware_state(
        {"sr0": reserved},
        decoders=[committed("decoder0", decoder)] if decoder else [],
        windows=[window] if window else [],
    )
    return [str(one) for one in addresses_where("covered_in_part", state, {})]


def test_a_region_or_window_over_a_part_of_a_range_is_a_trouble() -> None:
    half, more = "110000000-14fffffff", "110000000-1cfffffff"
    assert cut(WINDOW, decoder=half) == [WINDOW]
    assert cut(more) == [more]
    assert cut(half, decoder=WINDOW) == []
    assert cut(WINDOW, decoder=WINDOW) == []
    assert cut(WINDOW) == []
    assert cut("200000000-20fffffff", decoder=WINDOW) == []


def test_all_of_a_region_that_cuts_a_range_is_drawn_in() -> None:
    assert cut("120000000-18fffffff", decoder="110000000-14fffffff") == [WINDOW]


def test_a_region_that_is_given_up_is_in_the_way_as_well() -> None:
    decoder = replace(committed("decoder0", "110000000-14fffffff"), ports_range=span(WINDOW))
    state = firmware_state({"sr0": WINDOW}, decoders=[decoder], windows=[WINDOW])
    assert state.regions() == ()
    assert [str(one) for one in addresses_where("covered_in_part", state, {})] == [WINDOW]
    hidden = firmware_state({"sr0": WINDOW}, decoders=[replace(decoder, hidden=True)])
    assert addresses_where("covered_in_part", hidden, {}) == ()


HOST_BRIDGES = (("hb0", "0"), ("hb1", "0"))
HIGH_BITS_FIRST = (("hb0", "0"), ("hb0", "1"), ("hb1", "0"), ("hb1", "1"))


@pytest.mark.parametrize(
    ("paths", "granularity", "condition"),
    [
        ((("hb0", "0"),), 16384, None),
        (HOST_BRIDGES, 8192, None),
        (HOST_BRIDGES, 16384, "interleave_above_16k"),
        # Two root ports; with a switch of one way below each.
        ((("hb0", "0"), ("hb0", "1")), 16384, None),
        ((("hb0", "0", "0"), ("hb0", "1", "0")), 8192, None),
        ((("hb0", "0", "0"), ("hb0", "1", "0")), 16384, "interleave_above_16k"),
        # Two levels.
        ((("hb0", "0"), ("hb1", "0"), ("hb0", "1"), ("hb1", "1")), 8192, None),
        (HIGH_BITS_FIRST, 8192, "interleave_high_bits_first"),
        (tuple(("hb0", *path) for path in HIGH_BITS_FIRST), 256, "interleave_high_bits_first"),
    ],
)
def test_interleaves_that_linux_does_not_assemble(
    paths: tuple[tuple[str, ...], ...], granularity: int, condition: AddressCondition | None
) -> None:
    decoder = replace(committed("decoder0", WINDOW, grain=granularity), paths=paths)
    state = firmware_state({"sr0": WINDOW}, decoders=[decoder], windows=[WINDOW])
    kinds: tuple[AddressCondition, ...] = ("interleave_above_16k", "interleave_high_bits_first")
    holding = [kind for kind in kinds if addresses_where(kind, state, {})]
    assert holding == ([condition] if condition else [])


def test_entries_of_the_srat_that_are_no_range() -> None:
    state = firmware_state({"sr0": "120000000-12fffffff"})

    def entries(trouble: AddressCondition, *texts: str) -> list[str]:
        divided = replace(state, dividing=tuple(map(span, texts)))
        return [str(one) for one in addresses_where(trouble, divided, {})]

    larger, smaller = "110000000-12fffffff", "120000000-127ffffff"
    assert entries("srat_entry_beyond_range", larger) == [larger]
    assert entries("srat_entry_beyond_range", smaller) == []
    assert entries("range_beyond_srat", smaller) == ["120000000-12fffffff"]
    assert entries("range_beyond_srat", smaller, "128000000-12fffffff") == []
    assert entries("range_beyond_srat", "120000000-12fffffff", "130000000-13fffffff") == []


def test_a_range_that_begins_outside_windows_and_srat_has_no_node() -> None:
    before = firmware_state({"sr0": "100000000-18fffffff"}, windows=[WINDOW])
    assert addresses_where("start_without_node", before, {}) == (span("100000000-18fffffff"),)
    beyond = firmware_state({"sr0": "110000000-19fffffff"}, windows=[WINDOW])
    assert addresses_where("start_without_node", beyond, {}) == ()
