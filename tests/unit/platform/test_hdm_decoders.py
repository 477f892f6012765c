# SPDX-License-Identifier: GPL-2.0-or-later
"""The expected values follow CXL 3.1, 9.13.1, and what Linux 7.2 assembles."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from layouts import layout_of
from machines import bridge, machine, port, scenario_of, span, switch_port, window

from harness.core.errors import UsageError
from harness.platform.firmware_state import place_firmware
from harness.platform.hdm_decoders import DecoderSetting, plan_decoders
from harness.platform.memory_range import GIB
from harness.scenario.checks import check_scenario
from harness.scenario.profile import GRANULARITIES, Profile

Values = dict[str, Any]


class Row(NamedTuple):
    """The compared fields of a setting."""

    kind: str
    name: str
    number: int
    ways: int
    granularity: int
    targets: tuple[int, ...]


def plan(profile: Profile, *decoders: Values) -> tuple[DecoderSetting, ...]:
    document = scenario_of({"decoders": list(decoders)})
    check_scenario(document, profile)
    return plan_decoders(profile, place_firmware(document, profile, layout_of(profile)))


def rows(profile: Profile, *decoders: Values) -> list[Row]:
    return [
        Row(at.kind, at.name, one.index, one.ways, one.granularity, one.targets)
        for one in plan(profile, *decoders)
        for at in [one.component]
    ]


def decoder(*devices: str, number: int = 0, size: str = "2G", **more: Any) -> Values:
    return {"window": number, "size": size, "devices": list(devices), **more}


def test_one_device_has_its_decoder_and_its_host_bridges() -> None:
    profile = machine([bridge("hb0", 0x35, port("rp0"), port("rp1", "mem0"))], [window("hb0")])
    assert rows(profile, decoder("mem0")) == [
        Row("endpoint", "mem0", 0, 1, 256, ()),
        Row("host_bridge", "hb0", 0, 1, 256, (1,)),
    ]


def test_a_component_is_found_by_its_bus_and_the_port_numbers_on_the_way() -> None:
    deep = switch_port("rp1", port("dp0"), switch_port("dp1", port("dp2"), port("dp3", "mem0")))
    profile = machine([bridge("hb0", 0x35, port("rp0"), deep)], [window("hb0")])
    settings = plan(profile, decoder("mem0"))
    assert [(one.component.name, one.component.ports) for one in settings] == [
        ("mem0", (1, 1, 1)),
        ("hb0", ()),
        ("rp1", (1,)),
        ("dp1", (1, 1)),
    ]
    assert {one.component.bus for one in settings} == {0x35}
    assert [one.targets for one in settings] == [(), (1,), (1,), (1,)]


def test_the_range_of_every_level_is_the_whole_range() -> None:
    profile = machine(
        [bridge(f"hb{n}", 0x20 * n + 1, port(f"rp{n}", f"mem{n}")) for n in range(2)],
        [window("hb0", "hb1", size=4 * GIB)],
    )
    settings = plan(profile, decoder("mem0", "mem1", size="1G", offset="1G"))
    assert {one.range for one in settings} == {span("150000000-18fffffff")}


def test_two_root_ports_of_one_bridge_interleave_in_the_bridge() -> None:
    ports = [port("rp0", "mem0"), port("rp1", "mem1")]
    profile = machine([bridge("hb0", 0x35, *ports)], [window("hb0", granularity=1024)])
    assert rows(profile, decoder("mem0", "mem1")) == [
        Row("endpoint", "mem0", 0, 2, 1024, ()),
        Row("endpoint", "mem1", 0, 2, 1024, ()),
        Row("host_bridge", "hb0", 0, 2, 1024, (0, 1)),
    ]
    # The order of the devices is the order of the targets.
    assert rows(profile, decoder("mem1", "mem0"))[2].targets == (1, 0)


def test_a_decoders_own_granularity_reaches_every_level() -> None:
    ports = [port("rp0", "mem0"), port("rp1", "mem1")]
    profile = machine([bridge("hb0", 0x35, *ports)], [window("hb0")])
    planned = rows(profile, decoder("mem0", "mem1", granularity=4096))
    assert {one.granularity for one in planned} == {4096}


def test_two_host_bridges_interleave_in_the_window_above_them() -> None:
    profile = machine(
        [bridge("hb0", 0x35, port("rp0", "mem0")), bridge("hb1", 0x70, port("rp1", "mem1"))],
        [window("hb0", "hb1")],
    )
    assert rows(profile, decoder("mem0", "mem1")) == [
        Row("endpoint", "mem0", 0, 2, 256, ()),
        Row("endpoint", "mem1", 0, 2, 256, ()),
        Row("host_bridge", "hb0", 0, 1, 512, (0,)),
        Row("host_bridge", "hb1", 0, 1, 512, (0,)),
    ]


def test_two_by_two_takes_the_window_first_and_the_bridges_after_it() -> None:
    profile = machine(
        [
            bridge("hb0", 0x35, port("rp0", "mem0"), port("rp1", "mem1")),
            bridge("hb1", 0x70, port("rp2", "mem2"), port("rp3", "mem3")),
        ],
        [window("hb0", "hb1", granularity=512)],
    )
    assert rows(profile, decoder("mem0", "mem2", "mem1", "mem3")) == [
        *(Row("endpoint", name, 0, 4, 512, ()) for name in ("mem0", "mem2", "mem1", "mem3")),
        Row("host_bridge", "hb0", 0, 2, 1024, (0, 1)),
        Row("host_bridge", "hb1", 0, 2, 1024, (0, 1)),
    ]


SWITCHED = machine(
    [
        bridge(
            "hb0",
            0x35,
            switch_port("rp0", port("dp0", "mem0"), port("dp1", "mem1")),
            switch_port("rp1", port("dp2", "mem2"), port("dp3", "mem3")),
        )
    ],
    [window("hb0", size=8 * GIB)],
)


def test_a_switch_interleaves_below_its_port() -> None:
    assert rows(SWITCHED, decoder("mem0", "mem1")) == [
        Row("endpoint", "mem0", 0, 2, 256, ()),
        Row("endpoint", "mem1", 0, 2, 256, ()),
        Row("host_bridge", "hb0", 0, 1, 256, (0,)),
        Row("switch", "rp0", 0, 2, 256, (0, 1)),
    ]


def test_each_level_has_a_granularity_multiplied_by_the_ways_above_it() -> None:
    assert rows(SWITCHED, decoder("mem0", "mem2", "mem1", "mem3")) == [
        *(Row("endpoint", name, 0, 4, 256, ()) for name in ("mem0", "mem2", "mem1", "mem3")),
        Row("host_bridge", "hb0", 0, 2, 256, (0, 1)),
        Row("switch", "rp0", 0, 2, 512, (0, 1)),
        Row("switch", "rp1", 0, 2, 512, (0, 1)),
    ]


def test_the_upper_level_may_take_the_higher_address_bits() -> None:
    assert rows(SWITCHED, decoder("mem0", "mem1", "mem2", "mem3")) == [
        *(Row("endpoint", name, 0, 4, 256, ()) for name in ("mem0", "mem1", "mem2", "mem3")),
        Row("host_bridge", "hb0", 0, 2, 512, (0, 1)),
        Row("switch", "rp0", 0, 2, 256, (0, 1)),
        Row("switch", "rp1", 0, 2, 256, (0, 1)),
    ]


def test_devices_that_do_not_alternate_are_refused() -> None:
    with pytest.raises(UsageError, match="do not alternate below hb0"):
        plan(SWITCHED, decoder("mem0", "mem2", "mem3", "mem1"))


def test_devices_that_alternate_unevenly_are_refused() -> None:
    ports = [
        switch_port("rp0", port("dp0", "mem0"), port("dp1", "mem1")),
        port("rp1", "mem2"),
    ]
    profile = machine([bridge("hb0", 0x35, *ports)], [window("hb0", size=6 * GIB)])
    with pytest.raises(UsageError, match="do not alternate below hb0") as caught:
        plan(profile, decoder("mem0", "mem2", "mem1", size="1536M", name="odd"))
    assert str(caught.value.where).endswith(": firmware.decoders[0].devices")
    assert caught.value.hint.startswith("CXL 3.1, 9.13.1: ")


def test_several_decoders_are_numbered_in_each_component_by_ascending_address() -> None:
    profile = machine(
        [bridge("hb0", 0x35, port("rp0", "mem0"), port("rp1", "mem1"))],
        [window("hb0"), window("hb0")],
    )
    decoders = [
        decoder("mem0", size="512M"),
        decoder("mem1", size="512M", offset="1G"),
        decoder("mem0", size="512M", number=1),
    ]
    assert rows(profile, *decoders) == [
        Row("endpoint", "mem0", 0, 1, 256, ()),
        Row("host_bridge", "hb0", 0, 1, 256, (0,)),
        Row("endpoint", "mem1", 0, 1, 256, ()),
        Row("host_bridge", "hb0", 1, 1, 256, (1,)),
        Row("endpoint", "mem0", 1, 1, 256, ()),
        Row("host_bridge", "hb0", 2, 1, 256, (0,)),
    ]


def test_the_order_in_the_scenario_does_not_change_the_numbers() -> None:
    profile = machine(
        [bridge("hb0", 0x35, port("rp0", "mem0")), bridge("hb1", 0x70, port("rp1", "mem1"))],
        [window("hb0"), window("hb1")],
    )
    decoders = [decoder("mem0"), decoder("mem1", number=1)]
    assert plan(profile, *decoders) == plan(profile, *reversed(decoders))


def test_endpoints_come_before_the_ports_above_them() -> None:
    settings = plan(SWITCHED, decoder("mem0", "mem2", "mem1", "mem3"))
    kinds = [one.component.kind for one in settings]
    assert kinds[:4] == ["endpoint"] * 4
    assert "endpoint" not in kinds[4:]


def test_a_granularity_that_no_decoder_can_have_is_refused() -> None:
    # 16384 is the largest that a decoder can be given; below an interleaved window it doubles.
    profile = machine(
        [
            bridge("hb0", 0x35, port("rp0", "mem0"), port("rp1", "mem1")),
            bridge("hb1", 0x70, port("rp2", "mem2"), port("rp3", "mem3")),
        ],
        [window("hb0", "hb1", granularity=16384)],
    )
    with pytest.raises(UsageError):
        plan(profile, decoder("mem0", "mem2", "mem1", "mem3"))


def test_without_a_decoder_the_plan_is_empty() -> None:
    assert plan(SWITCHED) == ()


def test_a_bridge_with_one_way_keeps_to_granularities_that_can_be_encoded() -> None:
    profile = machine(
        [bridge("hb0", 0x35, port("rp0", "mem0")), bridge("hb1", 0x70, port("rp1", "mem1"))],
        [window("hb0", "hb1", granularity=16384)],
    )
    planned = rows(profile, decoder("mem0", "mem1"))
    assert {one.granularity for one in planned} <= set(GRANULARITIES)


def test_ports_may_decode_more_than_the_devices() -> None:
    profile = machine([bridge("hb0", 0x35, port("rp0", "mem0"))], [window("hb0", size=4 * GIB)])
    settings = plan(profile, decoder("mem0", ports_size="4G"))
    assert [(one.component.kind, one.range) for one in settings] == [
        ("endpoint", span("110000000-18fffffff")),
        ("host_bridge", span("110000000-20fffffff")),
    ]


def test_a_decoder_has_eight_targets_at_most() -> None:
    names = [f"m{number}" for number in range(12)]
    profile = machine(
        [bridge("hb0", 0x35, *(port(f"p{name}", name) for name in names))],
        [window("hb0", size=6 * GIB)],
    )
    assert plan(profile, decoder(*names[:8], size="2G"))[-1].targets == tuple(range(8))
    with pytest.raises(UsageError, match="hb0 would interleave over 12 ports") as caught:
        plan(profile, decoder(*names, size="3G"))
    assert str(caught.value.where).endswith(": firmware.decoders[0].devices")


def test_ways_times_granularity_are_at_most_32_kib() -> None:
    names = [f"mem{n}" for n in range(4)]
    ports = [port(f"rp{n}", name) for n, name in enumerate(names)]
    profile = machine([bridge("hb0", 0x35, *ports)], [window("hb0", granularity=16384)])
    assert rows(profile, decoder(*names[:2]))[-1].granularity == 16384
    with pytest.raises(UsageError, match="4 ways in steps of 16384 need address bits above 14"):
        plan(profile, decoder(*names))
    plan(profile, decoder(*names, granularity=8192))
