# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from typing import Any

import pytest
from layouts import layout_of
from machines import bridge, machine, port, scenario_of, span, window
from msgspec import structs

from harness.core.errors import UsageError
from harness.platform.acpi_tables import MemoryAffinity
from harness.platform.firmware_state import FirmwareState, NamedRange, given_as_ram, place_firmware
from harness.platform.memory_range import GIB, merge_adjacent
from harness.scenario.profile import HmatEntry, NumaNode, Profile, Window, WindowPart
from harness.scenario.yaml_document import Size

Values = dict[str, Any]

# RAM at 0-9ffff, 100000-7fffffff and 100000000-17fffffff (node 0), 180000000-1bfffffff (node 1).
# Windows at 1d0000000-24fffffff (mem0), 250000000-2cfffffff (mem1), 2d0000000-34fffffff (both).
PROFILE = Profile(
    summary="Three windows.",
    nodes=(NumaNode(memory=Size(4 * GIB), cpus=1), NumaNode(memory=Size(GIB))),
    host_bridges=(bridge("hb0", 0x20, port("rp0", "mem0")), bridge("hb1", 0x40, port("rp1", "m1"))),
    windows=(window("hb0"), window("hb1", granularity=1024), window("hb0", "hb1")),
)
FIRST = {"window": 0, "size": "2G", "devices": ["mem0"]}
SECOND = {"window": 1, "size": "2G", "devices": ["m1"]}


def place(firmware: Values, profile: Profile = PROFILE) -> FirmwareState:
    return place_firmware(scenario_of(firmware), profile, layout_of(profile))


def refused(firmware: Values, profile: Profile = PROFILE) -> UsageError:
    with pytest.raises(UsageError) as caught:
        place(firmware, profile)
    return caught.value


def test_a_position_becomes_addresses_of_the_machine() -> None:
    for position, where in (
        ({"window": 0}, "1d0000000-24fffffff"),
        ({"window": 0, "offset": "1G"}, "210000000-24fffffff"),
        ({"window": 0, "size": "256M"}, "1d0000000-1dfffffff"),
        ({"window": 0, "offset": "512M", "size": "1G"}, "1f0000000-22fffffff"),
        ({"window": 0, "last_window": 1}, "1d0000000-2cfffffff"),
        ({"window": 0, "offset": "1G", "last_window": 1}, "210000000-2cfffffff"),
        ({"node": 1}, "180000000-1bfffffff"),
        ({"start": 0x110000000, "end": 0x12FFFFFFF}, "110000000-12fffffff"),
    ):
        state = place({"soft_reserved": {"sr0": position}, "decoders": [FIRST, SECOND]})
        assert state.soft_reserved == (NamedRange("sr0", span(where)),)


def test_a_decoder_lies_in_its_window_and_takes_its_granularity() -> None:
    decoders = [FIRST, {**SECOND, "offset": "1G", "size": "1G", "name": "upper"}]
    first, upper = place({"decoders": decoders}).decoders
    assert (first.name, first.range, first.granularity) == (
        *("decoder0", span("1d0000000-24fffffff"), 256),
    )
    assert (upper.name, upper.range, upper.granularity) == (
        *("upper", span("290000000-2cfffffff"), 1024),
    )
    assert (upper.window, upper.devices, upper.window_ways) == (1, ("m1",), 1)
    assert upper.paths == (("hb1", "0"),)


def test_a_decoder_may_have_a_granularity_of_its_own() -> None:
    decoder = place({"decoders": [{**SECOND, "granularity": 4096}]}).decoders[0]
    assert decoder.granularity == 4096


def test_a_decoder_of_an_interleaved_window_has_the_windows_ways() -> None:
    both = {"window": 2, "size": "2G", "devices": ["mem0", "m1"]}
    assert place({"decoders": [both]}).decoders[0].window_ways == 2


def test_the_state_has_the_windows_and_ram_of_the_machine() -> None:
    state = place({})
    windows = ("1d0000000-24fffffff", "250000000-2cfffffff", "2d0000000-34fffffff")
    assert state.windows == tuple(map(span, windows))
    assert span("180000000-1bfffffff") in state.ram
    assert state.hotplug_room == ()


def test_a_memory_hotplug_area_is_not_ram() -> None:
    profile = Profile(
        summary="Room.",
        nodes=(NumaNode(memory=Size(GIB), cpus=1),),
        slots=1,
        maxmem=Size(3 * GIB),
    )
    state = place({}, profile)
    assert state.hotplug_room == (span("100000000-1bfffffff"),)
    assert state.ram == (span("0-9ffff"), span("100000-3fffffff"))


def test_srat_entries_are_placed_in_their_windows() -> None:
    srat = [
        {"window": 0, "node": 3},
        {"window": 1, "offset": "1G", "size": "512M", "node": 4, "hotplug": True},
    ]
    assert place({"acpi": {"srat": srat}}).srat == (
        MemoryAffinity(span("1d0000000-24fffffff"), 3, hotplug=False),
        MemoryAffinity(span("290000000-2afffffff"), 4, hotplug=True),
    )


HALF_HIDDEN = machine(
    [
        bridge("hb0", 0x20, port("rp0", "mem0", size=GIB)),
        bridge("hb1", 0x40, port("rp1", "mem1", size=GIB), hidden=True),
    ],
    [
        Window(
            targets=("hb0",),
            size=Size(2 * GIB),
            parts=tuple(WindowPart(targets=(name,), size=Size(GIB)) for name in ("hb0", "hb1")),
        )
    ],
)
HALVES = [
    {"window": 0, "size": "1G", "devices": ["mem0"], "name": "known"},
    {"window": 0, "offset": "1G", "size": "1G", "devices": ["mem1"], "name": "unknown"},
]


def test_linux_makes_no_region_below_a_hidden_host_bridge() -> None:
    state = place({"soft_reserved": {"sr0": {"window": 0}}, "decoders": HALVES}, HALF_HIDDEN)
    assert [one.hidden for one in state.decoders] == [False, True]
    assert state.regions() == (NamedRange("known", span("110000000-14fffffff")),)


def test_every_range_has_its_name_soft_reserved_ones_first() -> None:
    state = place({"soft_reserved": {"sr0": {"window": 0}}, "decoders": HALVES}, HALF_HIDDEN)
    assert [one.name for one in state.named_ranges()] == ["sr0", "known", "unknown"]
    assert state.named_ranges()[2].range == span("150000000-18fffffff")


def test_impossible_soft_reserved_ranges_are_refused() -> None:
    for reserved, decoders, field, message in (
        ({"sr0": {"node": 0}}, [], ".sr0.node", "node 0 has 3 ranges of RAM"),
        (
            {"a": {"node": 1}, "sr0": {"start": 0x1B0000000, "end": 0x1BFFFFFFF}},
            [],
            ".sr0",
            "overlaps a at 180000000-1bfffffff",
        ),
        (
            {"sr0": {"start": 0x70000000, "end": 0x7FFFFFFF}},
            [],
            ".sr0",
            "covers the RAM at 00100000-7fffffff that the kernel boots in",
        ),
        ({"sr0": {"window": 0}}, [], ".sr0", "1d0000000-24fffffff (2G) has no memory behind it"),
        (
            {"sr0": {"window": 0}},
            [{**FIRST, "size": "1G"}],
            ".sr0",
            "210000000-24fffffff (1G) has no memory behind it",
        ),
        (
            {"sr0": {"start": 0x1C0000000, "end": 0x24FFFFFFF}},
            [FIRST],
            ".sr0",
            "1c0000000-1cfffffff lies outside the RAM and the windows",
        ),
        (
            {"sr0": {"start": 0xFFFF00000000, "end": 0xFFFF0FFFFFFF}},
            [],
            ".sr0",
            "ffff00000000-ffff0fffffff lies outside the RAM and the windows",
        ),
    ):
        error = refused({"soft_reserved": reserved, "decoders": decoders})
        assert message in error.message
        assert str(error.where).endswith(f": firmware.soft_reserved{field}")


def test_memory_behind_a_hidden_host_bridge_is_memory() -> None:
    reserved = {"soft_reserved": {"sr0": {"window": 0}}}
    place({**reserved, "decoders": HALVES}, HALF_HIDDEN)
    error = refused({**reserved, "decoders": HALVES[:1]}, HALF_HIDDEN)
    assert "150000000-18fffffff (1G) has no memory behind it" in error.message


def test_a_range_may_lie_in_two_windows_that_touch() -> None:
    straddling = {"soft_reserved": {"sr0": {"start": 0x240000000, "end": 0x25FFFFFFF}}}
    state = place({**straddling, "decoders": [FIRST, SECOND]})
    assert state.soft_reserved[0].range == span("240000000-25fffffff")
    error = refused({**straddling, "decoders": [FIRST]})
    assert "250000000-25fffffff (256M) has no memory behind it" in error.message


HIDDEN_WINDOW = machine(
    [
        bridge("hb0", 0x20, port("rp0", "mem0", size=GIB)),
        bridge("hb1", 0x40, port("rp1", "mem1", size=GIB), hidden=True),
    ],
    [
        Window(targets=("hb0",), size=Size(GIB)),
        Window(targets=("hb1",), size=Size(GIB), hidden=True),
    ],
)
BOTH = [
    {"window": 0, "size": "1G", "devices": ["mem0"], "name": "known"},
    {"window": 1, "size": "1G", "devices": ["mem1"], "name": "unknown"},
]


def test_a_hidden_window_has_memory_but_is_not_in_the_cedt() -> None:
    reserved = {"soft_reserved": {"sr0": {"window": 0, "last_window": 1}}}
    state = place({**reserved, "decoders": BOTH}, HIDDEN_WINDOW)
    assert state.windows == (span("110000000-14fffffff"),)
    assert [one.name for one in state.regions()] == ["known"]
    assert state.soft_reserved[0].range == span("110000000-18fffffff")
    error = refused({**reserved, "decoders": BOTH[:1]}, HIDDEN_WINDOW)
    assert "150000000-18fffffff (1G) has no memory behind it" in error.message


def test_a_hidden_window_hides_what_a_known_host_bridge_decodes_there() -> None:
    known = {"window": 1, "size": "1G", "devices": ["mem0"]}
    bridges = (bridge("hb0", 0x20, port("rp0", "mem0", size=GIB)),)
    windows = [Window(targets=("hb0",), size=Size(GIB), hidden=hidden) for hidden in (False, True)]
    assert place({"decoders": [known]}, machine(bridges, windows)).regions() == ()


def test_linux_makes_no_region_of_decoders_that_disagree() -> None:
    alike = place({"decoders": [{**FIRST, "size": "1G"}]})
    larger = place({"decoders": [{**FIRST, "size": "1G", "ports_size": "2G"}]})
    assert len(alike.regions()) == 1
    assert larger.regions() == ()
    assert larger.decoders[0].range == span("1d0000000-20fffffff")
    assert larger.decoders[0].ports_range == span("1d0000000-24fffffff")


@pytest.mark.parametrize(
    ("start", "end", "fine"),
    [
        (0x180000000, 0x1BFFFFFFF, True),
        (0x180001000, 0x1BFFFEFFF, True),
        (0x180000800, 0x1BFFFFFFF, False),
        (0x180000000, 0x1BFFFFFFE, False),
    ],
)
def test_a_soft_reserved_range_is_made_of_pages(start: int, end: int, fine: bool) -> None:
    firmware = {"soft_reserved": {"sr0": {"start": start, "end": end}}}
    if fine:
        place(firmware)
        return
    assert "does not begin and end at page boundaries" in refused(firmware).message


NEIGHBOURS = {"a": {"window": 0}, "b": {"window": 1}}
WHOLE = {"sr0": {"window": 0, "last_window": 1}}
WINDOWS = [{"window": 0, "node": 3}, {"window": 1, "node": 3}]


def test_entries_of_the_srat_divide_a_range_where_there_is_a_hmat() -> None:
    for hmat, reserved, srat, names in (
        (True, WHOLE, WINDOWS, ["sr0[0]", "sr0[1]"]),
        # Without a HMAT, Linux ignores the SRAT. One entry, and entries that leave a rest, do not
        # divide a range.
        (False, WHOLE, WINDOWS, ["sr0"]),
        (True, WHOLE, WINDOWS[:1], ["sr0"]),
        (True, WHOLE, [WINDOWS[0], {**WINDOWS[1], "size": "1G"}], ["sr0"]),
        (True, NEIGHBOURS, WINDOWS, ["a", "b"]),
        # The kernel does not join neighbours.
        (False, NEIGHBOURS, [], ["a", "b"]),
    ):
        entries = (
            (HmatEntry(initiator=0, target=0, latency=1, bandwidth=Size(GIB)),) if hmat else ()
        )
        profile = structs.replace(PROFILE, hmat=entries)
        firmware = {"soft_reserved": reserved, "decoders": [FIRST, SECOND], "acpi": {"srat": srat}}
        state = place(firmware, profile)
        assert [one.name for one in state.kernel_ranges()] == names
        whole = merge_adjacent(one.range for one in state.kernel_ranges())
        assert whole == merge_adjacent(one.range for one in state.soft_reserved)


def test_ram_of_the_command_line() -> None:
    for parameter, ranges in (
        ("memmap=2G@0x110000000", ["110000000-18fffffff"]),
        ("memmap=1G@4G,512M@0x180000000", ["100000000-13fffffff", "180000000-19fffffff"]),
        ("memmap=2g@0x110000000", ["110000000-18fffffff"]),
        ("memmap=0x80000000@0X110000000", ["110000000-18fffffff"]),
        ("memmap=2147483648@4563402752", ["110000000-18fffffff"]),
        ("memmap=0G@0x110000000", []),
        ("memmap=2G$0x110000000", []),
        ("memmap=2G%0x110000000-1+0xefffffff", []),
        ("mem=2G@0x110000000", []),
    ):
        assert [str(one) for one in given_as_ram([parameter])] == ranges


@pytest.mark.parametrize(
    ("words", "rest"),
    [
        (["memmap=2G@0x1d0000000"], None),
        (["memmap=1G@0x1d0000000", "memmap=1G@0x210000000"], None),
        (["memmap=1G@0x1d0000000"], "210000000-24fffffff"),
        (["memmap=1G@0x210000000"], "1d0000000-20fffffff"),
    ],
)
def test_a_decoder_is_ram_as_a_whole_or_not_at_all(words: list[str], rest: str | None) -> None:
    document = scenario_of({"decoders": [FIRST, SECOND]}, kernel={"cmdline": words})
    if rest is None:
        assert place_firmware(document, PROFILE, layout_of(PROFILE)).firmware_ram
        return
    with pytest.raises(UsageError, match=f"gives a part of decoder0 .* not {rest}"):
        place_firmware(document, PROFILE, layout_of(PROFILE))
