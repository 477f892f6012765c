# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from typing import Any

import pytest
from machines import bridge, machine, port, scenario_of, switch_port, window

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


def decoder(number: int, *devices: str, size: str = "1G", **more: Any) -> Values:
    return {"window": number, "size": size, "devices": list(devices), **more}


def check(firmware: Values, profile: Profile = PROFILE, **more: Any) -> Scenario:
    document = scenario_of(firmware, **more)
    check_scenario(document, profile)
    return document.value


def refused(firmware: Values, **more: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        check(firmware, **more)
    return caught.value


@pytest.mark.parametrize(
    "firmware",
    [
        {"soft_reserved": {"a": {"window": 0}}},
        {"soft_reserved": {"a": {"window": 0, "offset": "1G"}}},
        {"soft_reserved": {"a": {"window": 0, "offset": "1G", "size": "7G"}}},
        {"soft_reserved": {"a": {"window": 0, "offset": "1G", "last_window": 2}}},
        {"soft_reserved": {"a": {"node": 0}}},
        {"soft_reserved": {"a": {"start": 0x100000000, "end": 0x100000000}}},
        {"decoders": [decoder(0, "mem0")]},
        {"decoders": [decoder(0, "mem0", "mem1", granularity=4096)]},
        {"decoders": [decoder(1, "mem0", "mem2")]},
        {"decoders": [decoder(1, "mem0", "mem2", "mem1", "mem3")]},
        {"decoders": [decoder(2, "mem0"), decoder(2, "mem4", offset="1G")]},
        {"decoders": [decoder(3, "small", size="256M")]},
        {"decoders": [decoder(0, "mem0", offset=n * 256 * MIB, size="256M") for n in range(4)]},
        {"acpi": {"srat": [{"window": 1, "node": 2}]}},
        {"acpi": {"srat": [{"window": 1, "offset": "1G", "size": "3G", "node": 2}]}},
    ],
)
def test_what_the_profile_allows_is_accepted(firmware: Values) -> None:
    check(firmware)


@pytest.mark.parametrize(
    ("position", "field", "message"),
    [
        ({}, "", "in none or several ways"),
        ({"window": 0, "node": 0}, "", "in none or several ways"),
        ({"node": 0, "start": 1, "end": 2}, "", "in none or several ways"),
        ({"node": 0, "offset": "1G"}, "", "offset, size and last_window need a window"),
        ({"node": 0, "size": "1G"}, "", "offset, size and last_window need a window"),
        ({"start": 1, "end": 2, "last_window": 1}, "", "need a window"),
        ({"window": 4}, ".window", "the profile has no window 4"),
        ({"window": -1}, ".window", "the profile has no window -1"),
        ({"window": 0, "offset": "8G"}, "", "reaches past the end of window 0"),
        ({"window": 0, "offset": "4G", "size": "5G"}, "", "reaches past the end of window 0"),
        ({"window": 0, "size": "9G"}, "", "which has 8G"),
        ({"window": 0, "last_window": 4}, ".last_window", "the profile has no window 4"),
        ({"window": 1, "last_window": 0}, ".last_window", "needs a later window"),
        ({"window": 1, "last_window": 1}, ".last_window", "needs a later window"),
        ({"window": 0, "size": "1G", "last_window": 1}, ".last_window", "and no size"),
        ({"node": 1}, ".node", "the profile has no node 1"),
        ({"node": -1}, ".node", "the profile has no node -1"),
        ({"start": 1}, "", "start and end make no range"),
        ({"end": 1}, "", "start and end make no range"),
        ({"start": 2, "end": 1}, "", "start and end make no range"),
    ],
)
def test_a_position_is_refused_where_it_is_written(
    position: Values, field: str, message: str
) -> None:
    error = refused({"soft_reserved": {"sr0": position}})
    assert message in error.message
    assert str(error.where).endswith(f": firmware.soft_reserved.sr0{field}")


@pytest.mark.parametrize(
    ("one", "field", "message"),
    [
        (decoder(4, "mem0"), ".window", "the profile has no window 4"),
        (decoder(3, "small", size="3G"), "", "reaches past the end of window 3"),
        (decoder(0, "mem9"), ".devices", "the profile has no device 'mem9'"),
        (decoder(0, "rp0"), ".devices", "the profile has no device 'rp0'"),
        (decoder(0), ".devices", "cannot interleave over no device"),
        (decoder(0, "mem0", "mem0"), ".devices", "cannot interleave over mem0, mem0"),
        (decoder(0, "mem0", size="128M"), ".size", "128M is not a multiple of 256M"),
        (decoder(0, "mem0", offset="128M"), ".offset", "128M is not a multiple of 256M"),
        (decoder(0, "mem0", "mem1", size="768M"), ".size", "768M is not a multiple of 256M for"),
        (decoder(0, "mem0", granularity=300), ".granularity", "300 is not an interleave"),
        (decoder(2, "mem0", offset="768M", size="512M"), "", "lies in several parts of window 2"),
        (decoder(0, "mem2"), ".devices", "interleaves over hb0, but these devices lie below hb1"),
        (decoder(1, "mem0"), ".devices", "interleaves over hb0, hb1, but these devices"),
        (decoder(1, "mem2", "mem0"), ".devices", "lie below hb1, hb0"),
        (decoder(2, "mem0", offset="1G"), ".devices", "interleaves over hb2"),
        (decoder(0, "mem0", size="3G"), ".size", "mem0 has only 2G"),
        (decoder(3, "small", size="512M"), ".size", "small has only 256M"),
    ],
)
def test_a_decoder_is_refused_where_it_is_written(one: Values, field: str, message: str) -> None:
    error = refused({"decoders": [one]})
    assert message in error.message
    assert str(error.where).endswith(f": firmware.decoders[0]{field}")


def test_three_devices_interleave_only_over_one_or_three_host_bridges() -> None:
    with pytest.raises(UsageError, match="interleaves over hb0, hb1"):
        check({"decoders": [decoder(1, "mem0", "mem2", "mem1", size="768M")]})


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


def test_five_devices_do_not_interleave() -> None:
    names = [f"m{number}" for number in range(5)]
    five = machine([bridge("hb", 1, *(port(f"p{n}", n) for n in names))], [window("hb")])
    with pytest.raises(UsageError, match="cannot interleave over m0, m1, m2, m3, m4"):
        check({"decoders": [decoder(0, *names, size="1280M")]}, five)


def test_devices_below_several_bridges_share_the_windows_granularity() -> None:
    # Linux, drivers/cxl/core/region.c: a region over an interleaved window has its granularity.
    check({"decoders": [decoder(1, "mem0", "mem2", granularity=256)]})
    refused({"decoders": [decoder(1, "mem0", "mem2", granularity=512)]})


@pytest.mark.parametrize(
    ("decoders", "field", "message"),
    [
        ([decoder(0, "mem0"), decoder(0, "mem1", offset="768M")], "", "overlaps an earlier"),
        ([decoder(0, "mem0", offset="1G"), decoder(0, "mem1", size="1280M")], "", "overlaps"),
        ([decoder(0, "mem0", offset="1G"), decoder(0, "mem1")], "", "hb0 would have decoders out"),
        (
            [decoder(0, "mem0", size="1280M"), decoder(0, "mem0", offset="2G")],
            ".size",
            "the decoders of mem0 need 2304M, it has 2G",
        ),
    ],
)
def test_decoders_fit_together(decoders: list[Values], field: str, message: str) -> None:
    error = refused({"decoders": decoders})
    assert message in error.message
    assert str(error.where).endswith(f": firmware.decoders[1]{field}")


def test_a_component_has_four_decoders() -> None:
    decoders = [decoder(0, "mem0", offset=n * 256 * MIB, size="256M") for n in range(4)]
    check({"decoders": decoders})
    fifth = decoder(0, "mem1", offset="1G", size="256M")
    error = refused({"decoders": [*decoders, fifth]})
    assert error.message == "hb0 has only 4 HDM decoders"
    assert str(error.where).endswith(": firmware.decoders[4]")


@pytest.mark.parametrize(
    ("entry", "field", "message"),
    [
        ({"window": 4, "node": 1}, ".window", "the profile has no window 4"),
        ({"window": 0, "offset": "8G", "node": 1}, "", "reaches past the end of window 0"),
        ({"window": 0, "size": "9G", "node": 1}, "", "reaches past the end of window 0"),
    ],
)
def test_an_srat_entry_lies_in_a_window(entry: Values, field: str, message: str) -> None:
    error = refused({"acpi": {"srat": [entry]}})
    assert message in error.message
    assert str(error.where).endswith(f": firmware.acpi.srat[0]{field}")


OWNER = {"owner": "dax_cxl"}


def test_an_owner_is_stated_only_for_what_has_that_name() -> None:
    expect = {"per_range": {"sr1": OWNER}, "all_or_nothing": {}}
    error = refused({"decoders": [decoder(0, "mem0", name="first")]}, expect=expect)
    assert error.message == "nothing is called 'sr1'"
    assert error.hint == "names of this scenario: first"
    assert str(error.where).endswith(": expect.per_range.sr1")


def test_an_owner_may_be_stated_for_a_decoder_by_its_name_or_number() -> None:
    decoders = [decoder(0, "mem0", name="first"), decoder(0, "mem1", offset="1G")]
    owners = {"first": OWNER, "decoder1": OWNER}
    check({"decoders": decoders}, expect={"per_range": owners, "all_or_nothing": owners})


@pytest.mark.parametrize("names", [("a", "a"), ("decoder1", None)])
def test_two_decoders_have_two_names(names: tuple[str, str | None]) -> None:
    first, second = decoder(0, "mem0", name=names[0]), decoder(0, "mem1", offset="1G")
    if names[1]:
        second["name"] = names[1]
    assert "a name stands twice" in refused({"decoders": [first, second]}).message


def test_a_range_and_a_decoder_have_two_names() -> None:
    firmware = {
        "soft_reserved": {"sr0": {"window": 0}},
        "decoders": [decoder(0, "mem0", name="sr0")],
    }
    assert "a name stands twice" in refused(firmware).message


@pytest.mark.parametrize("field", ["size", "offset"])
def test_a_soft_reserved_part_of_a_window_is_neither_empty_nor_before_it(field: str) -> None:
    value = 0 if field == "size" else -(256 * MIB)
    with pytest.raises(UsageError):
        check({"soft_reserved": {"sr0": {"window": 0, field: value}}})


def test_a_decoder_is_not_empty() -> None:
    refused({"decoders": [{"window": 0, "size": 0, "devices": ["mem0"]}]})


@pytest.mark.parametrize(
    ("load", "refused_at"),
    [(["cxl_acpi", "kmem"], "guest.load[1]"), (["cxl_acpi"], None)],
)
def test_what_is_taken_away_cannot_be_loaded(load: list[str], refused_at: str | None) -> None:
    guest = {"load": load, "missing": ["kmem"]}
    if refused_at is None:
        check({}, guest=guest)
        return
    error = refused({}, guest=guest)
    assert "loads kmem, which guest.missing takes away" in error.message
    assert str(error.where).endswith(refused_at)


@pytest.mark.parametrize(("load", "missing"), [("dax-cxl", "dax_cxl"), ("dax_cxl", "dax-cxl")])
def test_hyphens_and_underscores_name_the_same_module(load: str, missing: str) -> None:
    refused({}, guest={"load": [load], "missing": [missing]})


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (decoder(0, "mem0", ports_size="1G"), "1G is not more than size"),
        (decoder(0, "mem0", ports_size="1152M"), "1152M is not more than size, in steps of 256M"),
        (decoder(0, "mem0", "mem1", ports_size="1280M"), "in steps of 256M for each device"),
        (decoder(0, "mem0", offset="6G", ports_size="3G"), "reaches past the end of window 0"),
        (decoder(2, "mem0", ports_size="2G"), "reaches into another part of window 2"),
    ],
)
def test_what_the_ports_decode_can_be(one: Values, message: str) -> None:
    error = refused({"decoders": [one]})
    assert message in error.message
    assert str(error.where).endswith(": firmware.decoders[0].ports_size")


def test_what_the_ports_decode_may_not_overlap_either() -> None:
    first = decoder(0, "mem0", ports_size="2G")
    check({"decoders": [first, decoder(0, "mem1", offset="2G")]})
    error = refused({"decoders": [first, decoder(0, "mem1", offset="1G")]})
    assert error.message == "overlaps an earlier decoder"


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


@pytest.mark.parametrize(
    ("second", "fine"),
    [
        ({"window": 0, "offset": "1G"}, True),
        ({"window": 1}, True),
        ({"window": 0}, False),
        ({"window": 0, "offset": "512M", "size": "256M"}, False),
        ({"window": 0, "offset": "768M"}, False),
    ],
)
def test_srat_entries_do_not_overlap(second: Values, fine: bool) -> None:
    entries = [{"window": 0, "size": "1G", "node": 1}, {**second, "node": 2}]
    if fine:
        check({"acpi": {"srat": entries}})
        return
    error = refused({"acpi": {"srat": entries}})
    assert error.message == "overlaps an earlier entry"
    assert str(error.where).endswith(": firmware.acpi.srat[1]")


@pytest.mark.parametrize("name", ["cxl_acpi", "cxl-acpi"])
def test_what_the_kernel_denies_cannot_be_loaded(name: str) -> None:
    kernel = {"cmdline": ["module_blacklist=kmem,cxl_acpi"]}
    check({}, guest={"load": ["cxl_pci"]}, kernel=kernel)
    error = refused({}, guest={"load": ["cxl_pci", name]}, kernel=kernel)
    assert "which module_blacklist in kernel.cmdline denies" in error.message
    assert str(error.where).endswith(": guest.load[1]")


@pytest.mark.parametrize(
    ("decoders", "section"),
    [
        ([decoder(3, "small", size="3G")], "9.18.1.3"),
        ([decoder(1, "mem2", "mem0")], "9.18.1.3"),
        ([decoder(1, "mem0", "mem2", "mem3", "mem1")], "9.18.1.3"),
        ([decoder(0, "mem0"), decoder(0, "mem1", offset="768M")], "8.2.4.20.12"),
        ([decoder(0, "mem0", offset="1G"), decoder(0, "mem1")], "8.2.4.20.12"),
        (
            [decoder(0, "mem0", offset=n * 256 * MIB, size="256M") for n in range(5)],
            "8.2.4.20.1:",
        ),
    ],
)
def test_what_cxl_forbids_is_refused_with_its_section(decoders: list[Values], section: str) -> None:
    assert f"CXL 3.1, {section}" in refused({"decoders": decoders}).hint


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
