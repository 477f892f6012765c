# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios that do not fit their profile, with the place and message of each error."""

from __future__ import annotations

from typing import Any

import pytest
from machines import bridge, machine, port, scenario_of, switch_port, window
from refusals import Row, differences

from harness.core.errors import UsageError
from harness.platform.memory_range import GIB, MIB
from harness.scenario.checks import check_scenario
from harness.scenario.profile import Profile, Window, WindowPart
from harness.scenario.scenario import Scenario
from harness.scenario.yaml_document import Size

Values = dict[str, Any]

# Window 0: one host bridge. 1: two of them, interleaved. 2: two parts of different hardware.
PROFILE = machine(
    [
        bridge("hb0", 0x20, port("rp0", "mem0"), port("rp1", "mem1")),
        bridge("hb1", 0x40, port("rp2", "mem2"), port("rp3", "mem3")),
        bridge("hb2", 0x60, port("rp4", "mem4"), hidden=True),
        bridge("hb3", 0x80, switch_port("rp5", port("dp0", "small", size=256 * MIB))),
    ],
    [
        window("hb0", size=8 * GIB),
        window("hb0", "hb1", size=4 * GIB),
        Window(
            targets=("hb0",),
            size=Size(2 * GIB),
            parts=(
                WindowPart(targets=("hb0",), size=Size(GIB)),
                WindowPart(targets=("hb2",), size=Size(GIB)),
            ),
        ),
        window("hb3"),
    ],
)


def decoder(number: int, *devices: str, size: str | int = "1G", **more: Any) -> Values:
    return {"window": number, "size": size, "devices": list(devices), **more}


def check(firmware: Values, profile: Profile = PROFILE, **more: Any) -> Scenario:
    document = scenario_of(firmware, **more)
    check_scenario(document, profile)
    return document.value


def check_with(values: Values) -> Scenario:
    return check(values.pop("firmware", {}), **values)


VALID: list[Values] = [
    {"soft_reserved": {"a": {"window": 0}}},
    {"soft_reserved": {"a": {"window": 0, "offset": "1G"}}},
    {"soft_reserved": {"a": {"window": 0, "offset": "1G", "size": "7G"}}},
    {"soft_reserved": {"a": {"window": 0, "offset": "1G", "last_window": 2}}},
    {"soft_reserved": {"a": {"node": 0}}},
    {"soft_reserved": {"a": {"start": 0x100000000, "end": 0x100000000}}},
    {"decoders": [decoder(0, "mem0")]},
    {"decoders": [decoder(0, "mem0", "mem1", granularity=4096)]},
    {"decoders": [decoder(1, "mem0", "mem2")]},
    {"decoders": [decoder(1, "mem0", "mem2", granularity=256)]},
    {"decoders": [decoder(1, "mem0", "mem2", "mem1", "mem3")]},
    {"decoders": [decoder(2, "mem0"), decoder(2, "mem4", offset="1G")]},
    {"decoders": [decoder(3, "small", size="256M")]},
    {"decoders": [decoder(0, "mem0", offset=n * 256 * MIB, size="256M") for n in range(4)]},
    {"decoders": [decoder(0, "mem0", ports_size="2G"), decoder(0, "mem1", offset="2G")]},
    {"acpi": {"srat": [{"window": 1, "node": 2}]}},
    {"acpi": {"srat": [{"window": 1, "offset": "1G", "size": "3G", "node": 2}]}},
    {"acpi": {"srat": [{"window": 0, "size": "1G", "node": 1}, {"window": 1, "node": 2}]}},
    {
        "acpi": {
            "srat": [
                {"window": 0, "size": "1G", "node": 1},
                {"window": 0, "offset": "1G", "node": 2},
            ]
        }
    },
]


def test_scenarios_that_fit_the_profile_are_accepted() -> None:
    for firmware in VALID:
        check(firmware)


POSITIONS: list[Row] = [
    ({}, "", "needs exactly one position"),
    ({"window": 0, "node": 0}, "", "needs exactly one position"),
    ({"node": 0, "start": 1, "end": 2}, "", "needs exactly one position"),
    ({"node": 0, "offset": "1G"}, "", "offset, size and last_window need a window"),
    ({"node": 0, "size": "1G"}, "", "offset, size and last_window need a window"),
    ({"start": 1, "end": 2, "last_window": 1}, "", "need a window"),
    ({"window": 4}, ".window", "the profile has no window 4"),
    ({"window": -1}, ".window", "the profile has no window -1"),
    ({"window": 0, "offset": "8G"}, "", "ends behind window 0"),
    ({"window": 0, "offset": "4G", "size": "5G"}, "", "ends behind window 0"),
    ({"window": 0, "size": "9G"}, "", "which has 8G"),
    ({"window": 0, "size": 0}, ".size", "has no bytes"),
    ({"window": 0, "offset": -256 * MIB}, ".offset", "is not a size"),
    ({"window": 0, "last_window": 4}, ".last_window", "the profile has no window 4"),
    ({"window": 1, "last_window": 0}, ".last_window", "needs a later window"),
    ({"window": 1, "last_window": 1}, ".last_window", "needs a later window"),
    ({"window": 0, "size": "1G", "last_window": 1}, ".last_window", "and no size"),
    ({"node": 1}, ".node", "the profile has no node 1"),
    ({"node": -1}, ".node", "the profile has no node -1"),
    ({"start": 1}, "", "start and end are not a range"),
    ({"end": 1}, "", "start and end are not a range"),
    ({"start": 2, "end": 1}, "", "start and end are not a range"),
]


def test_positions_are_refused_where_they_are_written() -> None:
    rows = [(value, f"firmware.soft_reserved.sr0{at}", text) for value, at, text in POSITIONS]
    assert differences(lambda one: check({"soft_reserved": {"sr0": one}}), rows) == []


DECODERS: list[Row] = [
    (decoder(4, "mem0"), ".window", "the profile has no window 4"),
    (decoder(3, "small", size="3G"), "", "ends behind window 3"),
    (decoder(3, "small", size="3G"), "", "CXL 3.1, 9.18.1.3"),
    (decoder(0, "mem9"), ".devices", "the profile has no device 'mem9'"),
    (decoder(0, "rp0"), ".devices", "the profile has no device 'rp0'"),
    (decoder(0), ".devices", "cannot interleave over no device"),
    (decoder(0, "mem0", "mem0"), ".devices", "cannot interleave over mem0, mem0"),
    (decoder(0, *"abcde", size="1280M"), ".devices", "cannot interleave over a, b, c, d, e"),
    (decoder(0, "mem0", size="128M"), ".size", "128M is not a multiple of 256M"),
    (decoder(0, "mem0", size=0), ".size", "0 is not a multiple of 256M"),
    (decoder(0, "mem0", offset="128M"), ".offset", "128M is not a multiple of 256M"),
    (decoder(0, "mem0", "mem1", size="768M"), ".size", "768M is not a multiple of 512M"),
    (decoder(0, "mem0", granularity=300), ".granularity", "300 is not an interleave"),
    (decoder(1, "mem0", "mem2", granularity=512), ".granularity", "interleaves in steps of 256"),
    (decoder(2, "mem0", offset="768M", size="512M"), "", "lies in several parts of window 2"),
    (decoder(0, "mem2"), ".devices", "interleaves over hb0, but these devices lie below hb1"),
    (decoder(1, "mem0"), ".devices", "interleaves over hb0, hb1, but these devices"),
    (decoder(1, "mem2", "mem0"), ".devices", "lie below hb1, hb0"),
    (decoder(1, "mem2", "mem0"), ".devices", "CXL 3.1, 9.18.1.3"),
    (decoder(1, "mem0", "mem2", "mem3", "mem1"), ".devices", "CXL 3.1, 9.18.1.3"),
    (decoder(2, "mem0", offset="1G"), ".devices", "interleaves over hb2"),
    (decoder(0, "mem0", size="3G"), ".size", "mem0 has only 2G"),
    (decoder(3, "small", size="512M"), ".size", "small has only 256M"),
    (decoder(0, "mem0", ports_size="1G"), ".ports_size", "1G is not more than size"),
    (decoder(0, "mem0", ports_size="1152M"), ".ports_size", "1152M is not a multiple of 256M"),
    (decoder(0, "mem0", "mem1", ports_size="1280M"), ".ports_size", "1280M is not a multiple of"),
    (decoder(0, "mem0", offset="6G", ports_size="3G"), "", "ends behind window 0"),
    (decoder(2, "mem0", ports_size="2G"), "", "lies in several parts of window 2"),
]
PAIRS: list[Row] = [
    ((decoder(0, "mem0"), decoder(0, "mem1", offset="768M")), "", "overlaps an earlier entry"),
    ((decoder(0, "mem0"), decoder(0, "mem1", offset="768M")), "", "CXL 3.1, 8.2.4.20.12"),
    ((decoder(0, "mem0", offset="1G"), decoder(0, "mem1", size="1280M")), "", "overlaps"),
    ((decoder(0, "mem0", ports_size="2G"), decoder(0, "mem1", offset="1G")), "", "overlaps"),
    ((decoder(0, "mem0", offset="1G"), decoder(0, "mem1")), "", "hb0 would have decoders out"),
    ((decoder(0, "mem0", offset="1G"), decoder(0, "mem1")), "", "CXL 3.1, 8.2.4.20.12"),
    (
        (decoder(0, "mem0", size="1280M"), decoder(0, "mem0", offset="2G")),
        ".size",
        "the decoders of mem0 need 2304M, it has 2G",
    ),
]


def test_decoders_are_refused_where_they_are_written() -> None:
    rows = [([value], f"firmware.decoders[0]{at}", text) for value, at, text in DECODERS]
    rows += [(list(pair), f"firmware.decoders[1]{at}", text) for pair, at, text in PAIRS]
    assert differences(lambda one: check({"decoders": one}), rows) == []


def test_an_interleave_that_qemu_cannot_decode_is_refused() -> None:
    ports = [port(f"rp{number}", f"m{number}") for number in range(6)]
    one = machine([bridge("hb0", 0x20, *ports)], [window("hb0", size=6 * GIB)])
    check({"decoders": [decoder(0, "m0", "m1", "m2", "m3")]}, one)
    for devices in (["m0", "m1", "m2"], [f"m{number}" for number in range(6)]):
        with pytest.raises(UsageError, match=rf"QEMU cannot .* over {len(devices)} devices"):
            check({"decoders": [decoder(0, *devices, size="1536M")]}, one)
    three = machine(
        [bridge(f"hb{number}", 0x20 * (number + 1), ports[number]) for number in range(3)],
        [window("hb0", "hb1", "hb2", size=3 * GIB)],
    )
    with pytest.raises(UsageError, match=r"QEMU cannot .* over 3 host bridges"):
        check({"decoders": [decoder(0, "m0", "m1", "m2", size="1536M")]}, three)


def test_a_component_has_four_decoders() -> None:
    decoders = [decoder(0, "mem0", offset=n * 256 * MIB, size="256M") for n in range(4)]
    check({"decoders": decoders})
    fifth = decoder(0, "mem1", offset="1G", size="256M")
    with pytest.raises(UsageError, match="hb0 has only 4 HDM decoders") as caught:
        check({"decoders": [*decoders, fifth]})
    assert str(caught.value.where).endswith(": firmware.decoders[4]")
    assert "CXL 3.1, 8.2.4.20.1:" in caught.value.hint


def test_a_switch_has_four_decoders_too() -> None:
    profile = machine(
        [bridge("hb0", 1, switch_port("rp0", port("dp0", "a"), port("dp1", "b")))],
        [window("hb0", size=4 * GIB)],
    )
    decoders = [decoder(0, "a", offset=n * 256 * MIB, size="256M") for n in range(2)]
    decoders += [decoder(0, "b", offset=n * 256 * MIB, size="256M") for n in range(2, 5)]
    check({"decoders": decoders[:4]}, profile)
    with pytest.raises(UsageError, match=r"(hb0|rp0) has only 4 HDM decoders"):
        check({"decoders": decoders}, profile)


def test_a_window_may_interleave_in_larger_steps_than_its_devices() -> None:
    bridges = [
        bridge("hb0", 0x20, port("rp0", "mem0"), port("rp1", "mem1")),
        bridge("hb1", 0x40, port("rp2", "mem2"), port("rp3", "mem3")),
    ]
    coarse = machine(bridges, [window("hb0", "hb1", size=4 * GIB, granularity=512)])
    in_order = ("mem0", "mem1", "mem2", "mem3")
    check({"decoders": [decoder(0, *in_order, granularity=256)]}, coarse)
    for devices, granularity in ((in_order, 512), (("mem0", "mem2", "mem1", "mem3"), 256)):
        with pytest.raises(UsageError, match="but these devices lie below"):
            check({"decoders": [decoder(0, *devices, granularity=granularity)]}, coarse)


SECOND = {"window": 0, "size": "1G", "node": 1}
SRAT: list[Row] = [
    ([{"window": 4, "node": 1}], "[0].window", "the profile has no window 4"),
    ([{"window": 0, "offset": "8G", "node": 1}], "[0]", "ends behind window 0"),
    ([{"window": 0, "size": "9G", "node": 1}], "[0]", "ends behind window 0"),
    ([{"window": 0, "node": -1}], "[0].node", ">= 0"),
    ([{"window": 0, "node": 256}], "[0].node", "<= 255"),
    ([SECOND, {"window": 0, "node": 2}], "[1]", "overlaps an earlier entry"),
    ([SECOND, {"window": 0, "offset": "512M", "size": "256M", "node": 2}], "[1]", "overlaps"),
    ([SECOND, {"window": 0, "offset": "768M", "node": 2}], "[1]", "ACPI 6.5, 5.2.16.2"),
]


def test_srat_entries_are_refused_where_they_are_written() -> None:
    rows = [(value, f"firmware.acpi.srat{at}", text) for value, at, text in SRAT]
    assert differences(lambda one: check({"acpi": {"srat": one}}), rows) == []


OWNER = {"owner": "dax_cxl"}
NAMES: list[Row] = [
    (
        {
            "firmware": {"decoders": [decoder(0, "mem0", name="first")]},
            "expect": {"per_range": {"sr1": OWNER}},
        },
        "expect.per_range.sr1",
        "there is no range or decoder 'sr1'\n  hint: names of this scenario: first",
    ),
    (
        {
            "firmware": {
                "decoders": [
                    decoder(0, "mem0", name="a"),
                    decoder(0, "mem1", name="a", offset="1G"),
                ]
            }
        },
        "firmware.decoders",
        "duplicate name",
    ),
    (
        {
            "firmware": {
                "decoders": [decoder(0, "mem0", name="decoder1"), decoder(0, "mem1", offset="1G")]
            }
        },
        "firmware.decoders",
        "duplicate name",
    ),
    (
        {
            "firmware": {
                "soft_reserved": {"sr0": {"window": 0}},
                "decoders": [decoder(0, "mem0", name="sr0")],
            }
        },
        "firmware.decoders",
        "duplicate name",
    ),
]
DENIED = {"cmdline": ["module_blacklist=kmem,cxl_acpi"]}
LOADS: list[Row] = [
    ({"load": ["cxl_acpi", "kmem"], "missing": ["kmem"]}, "[1]", "which guest.missing removes"),
    ({"load": ["dax-cxl"], "missing": ["dax_cxl"]}, "[0]", "loads dax_cxl, which guest.missing"),
    ({"load": ["dax_cxl"], "missing": ["dax-cxl"]}, "[0]", "which guest.missing removes"),
    ({"load": {}}, "", "lists no module"),
    ({"load": {"all_orders": ["kmem"], "parallel": ["kmem"]}}, "", "all_orders and parallel"),
    ({"load": {"all_orders": ["kmem", "kmem"]}}, ".all_orders[1]", "duplicate module kmem"),
    ({"load": {"all_orders": ["dax-cxl", "dax_cxl"]}}, ".all_orders[1]", "duplicate module"),
    ({"load": {"parallel": ["cxl_mem"]}, "missing": ["cxl-mem"]}, ".parallel[0]", "guest.missing"),
    ({"load": {"all_order": ["kmem"]}}, ".all_order", "did you mean all_orders"),
    ({"load": {"parallel": ["kmem"], "times": 0}}, ".times", ">= 1"),
    ({"load": {"modalias": ["../x"]}}, ".modalias[0]", "regex"),
    *(({"load": [word]}, "[0]", "") for word in ("", "-r", "a b", "a;b", "../x", "a" * 65)),
]


def test_names_and_modules_are_refused_where_they_are_written() -> None:
    rows = [({"guest": value}, f"guest.load{at}", text) for value, at, text in LOADS]
    for name in ("cxl_acpi", "cxl-acpi"):
        guest = {"load": ["cxl_pci", name]}
        message = "which module_blacklist in kernel.cmdline denies"
        rows.append(({"guest": guest, "kernel": DENIED}, "guest.load[1]", message))
    assert differences(check_with, [*NAMES, *rows]) == []
    check({}, guest={"load": ["cxl_acpi"], "missing": ["kmem"]})
    check({}, guest={"load": ["cxl_pci"]}, kernel=DENIED)


def test_an_owner_may_be_stated_for_a_decoder_by_its_name_or_number() -> None:
    decoders = [decoder(0, "mem0", name="first"), decoder(0, "mem1", offset="1G")]
    owners = {"first": OWNER, "decoder1": OWNER}
    check({"decoders": decoders}, expect={"per_range": owners, "all_or_nothing": owners})
