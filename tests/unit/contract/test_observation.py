# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import span

from harness.contract.observation import (
    SECTIONS,
    CxlDecoder,
    CxlRegion,
    DaxDevice,
    Observation,
    ObservationError,
)
from harness.contract.observation_parser import parse_observation, split_sections

TOKEN = "0123456789abcdef"

ROOT = "../../../devices/platform/ACPI0017:00/root0"
DAX_LINKS = f"""\
lrwxrwxrwx 1 root root 0 Nov 20 09:43 dax/devices/dax0.0 -> \
{ROOT}/decoder0.0/region0/dax_region0/dax0.0
lrwxrwxrwx 1 root root 0 Nov 20 09:43 dax/devices/dax0.0/driver -> ../../../bus/dax/drivers/kmem
lrwxrwxrwx 1 root root 0 Nov 20 09:43 dax/devices/dax2.0 -> \
../../../devices/platform/hmem_platform.0/hmem.2/dax2.0
drwxr-xr-x 2 root root 0 Nov 20 09:43 dax/drivers/device_dax
drwxr-xr-x 2 root root 0 Nov 20 09:43 dax/drivers/kmem
"""
DAX_VALUES = """\
dax/devices/dax0.0/size:2147483648
dax/devices/dax2.0/size:1073741824
dax/devices/dax0.0/target_node:1
dax/devices/dax0.0/mapping0/start:0x110000000
dax/devices/dax2.0/mapping0/start:0x1a0000000
dax/devices/dax2.0/mapping1/start:0x180000000
dax/devices/dax0.0/mapping0/end:0x18fffffff
dax/devices/dax2.0/mapping0/end:0x1bfffffff
dax/devices/dax2.0/mapping1/end:0x19fffffff
"""
CXL_LINKS = f"""\
lrwxrwxrwx 1 root root 0 Nov 20 09:43 cxl/devices/decoder0.0 -> {ROOT}/decoder0.0
lrwxrwxrwx 1 root root 0 Nov 20 09:43 cxl/devices/decoder1.0 -> {ROOT}/port1/decoder1.0
lrwxrwxrwx 1 root root 0 Nov 20 09:43 cxl/devices/decoder2.0 -> {ROOT}/port1/endpoint2/decoder2.0
lrwxrwxrwx 1 root root 0 Nov 20 09:43 cxl/devices/region0 -> {ROOT}/decoder0.0/region0
lrwxrwxrwx 1 root root 0 Nov 20 09:43 cxl/devices/region0/driver -> ../../bus/cxl/drivers/cxl_region
lrwxrwxrwx 1 root root 0 Nov 20 09:43 cxl/devices/region1 -> {ROOT}/decoder0.0/region1
"""
CXL_VALUES = """\
cxl/devices/region0/resource:0x110000000
cxl/devices/region0/size:0x80000000
cxl/devices/region0/commit:1
cxl/devices/region0/interleave_ways:2
cxl/devices/region1/resource:0xffffffffffffffff
cxl/devices/region1/size:0x0
cxl/devices/region1/commit:0
cxl/devices/decoder0.0/start:0x110000000
cxl/devices/decoder0.0/size:0x80000000
cxl/devices/decoder2.0/start:0x0
cxl/devices/decoder2.0/size:0x0
cxl/devices/decoder2.0/region:region0
"""
RAM = "    110000000-11fffffff : System RAM (kmem)\n"
IOMEM = f"""\
00000000-07ffffff : System RAM
110000000-18fffffff : CXL Window 0
  110000000-18fffffff : region0
{RAM}"""
BLOCKS = """\
8000000
/sys/devices/system/memory/memory0/state:online
/sys/devices/system/memory/memory34/state:offline
/sys/devices/system/memory/memory35/state:going-offline
"""


def sections(**changes: str) -> dict[str, str]:
    whole = {
        "release": "7.2.0-test\n",
        "iomem": IOMEM,
        "dax_links": DAX_LINKS,
        "dax_values": DAX_VALUES,
        "cxl_links": CXL_LINKS,
        "cxl_values": CXL_VALUES,
        "memory_blocks": BLOCKS,
        "modules": "kmem 12288 0 - Live 0xffffffffc0000000\ncxl_acpi 24576 0 - Live 0x0\n",
        "cxl_list": '[{"memdev": "mem0"}, {"regions": [{"region": "region0"}, '
        '{"region": "region1"}]}]\n',
        "daxctl_list": '[{"devices": [{"chardev": "dax0.0"}, {"chardev": "dax2.0"}]}]\n',
        "dmesg": "<6>[    0.000000] Linux version 7.2\n",
    }
    assert set(whole) == set(SECTIONS)
    assert set(changes) <= set(whole)
    return whole | changes


def printed(parts: dict[str, str]) -> str:
    body = "".join(f"{TOKEN} {name}\n{text}" for name, text in parts.items())
    return f"{body}{TOKEN} end\n"


def observe(**changes: str) -> Observation:
    return parse_observation(split_sections(printed(sections(**changes)), TOKEN))


def test_a_guest_is_read_whole() -> None:
    seen = observe()
    assert seen.release == "7.2.0-test"
    assert [one.name for one in seen.iomem.roots] == ["System RAM", "CXL Window 0"]
    assert seen.dax_drivers == ("device_dax", "kmem")
    assert seen.modules == ("kmem", "cxl_acpi")
    assert seen.cxl_list[0] == {"memdev": "mem0"}
    assert seen.daxctl_list[0]["devices"][0] == {"chardev": "dax0.0"}
    assert seen.dmesg[0].text == "Linux version 7.2"


def test_a_dax_device_has_its_mappings_its_driver_and_who_made_it() -> None:
    place = "devices/platform/"
    assert observe().dax == (
        DaxDevice(
            name="dax0.0",
            ranges=(span("110000000-18fffffff"),),
            size=2 << 30,
            driver="kmem",
            parent="dax_cxl",
            path=f"{place}ACPI0017:00/root0/decoder0.0/region0/dax_region0/dax0.0",
            target_node=1,
        ),
        DaxDevice(
            name="dax2.0",
            ranges=(span("180000000-19fffffff"), span("1a0000000-1bfffffff")),
            size=1 << 30,
            driver=None,
            parent="dax_hmem",
            path=f"{place}hmem_platform.0/hmem.2/dax2.0",
            target_node=None,
        ),
    )


def test_a_dax_device_that_somebody_else_made_names_its_parent() -> None:
    links = DAX_LINKS.replace("hmem.2/dax2.0", "pmem7/dax2.0")
    assert [one.parent for one in observe(dax_links=links).dax] == ["dax_cxl", "pmem7"]


def test_regions_and_decoders_have_ranges_only_when_they_have_any() -> None:
    seen = observe()
    window = span("110000000-18fffffff")
    assert seen.regions == (
        CxlRegion("region0", window, committed=True, ways=2, driver="cxl_region"),
        CxlRegion("region1", None, committed=False, ways=0, driver=None),
    )
    assert seen.decoders == (
        CxlDecoder("decoder0.0", window, "", 0),
        CxlDecoder("decoder1.0", None, "", 1),
        CxlDecoder("decoder2.0", None, "region0", 2),
    )


def test_every_memory_block_that_is_not_online_is_offline() -> None:
    assert observe().offline == (span("110000000-117ffffff"), span("118000000-11fffffff"))
    assert observe(memory_blocks="", iomem=IOMEM.removesuffix(RAM)).offline == ()


def test_a_guest_without_dax_or_cxl_is_read_too() -> None:
    bare = dict.fromkeys(set(SECTIONS) - {"release", "dmesg"}, "")
    seen = observe(**bare | {"iomem": "00100000-3fffffff : System RAM\n"})
    assert (seen.cxl_list, seen.daxctl_list) == (None, None)
    assert (seen.dax, seen.dax_drivers, seen.regions, seen.decoders) == ((), (), (), ())


IN_DAX = f"{IOMEM.removesuffix(RAM)}    110000000-18fffffff : dax0.0\n      "


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"iomem": ""}, "/proc/iomem: empty"),
        ({"iomem": "0-0 : System RAM\n"}, "CAP_SYS_ADMIN"),
        ({"dmesg": ""}, "dmesg: no kernel message"),
        ({"dax_values": DAX_VALUES.replace("2147483648", "4096")}, "dax0.0 has size 4096"),
        ({"dax_values": DAX_VALUES.replace("2147483648", "many")}, "sysfs: "),
        ({"dax_values": DAX_VALUES.replace("0x110000000", "x")}, "sysfs: "),
        ({"dax_values": DAX_VALUES.replace("0x110000000", "0x190000000")}, "sysfs: not a range"),
        ({"dax_values": DAX_VALUES.partition("dax/devices/dax2.0/mapping0/end")[0]}, "sysfs: "),
        ({"dax_values": ""}, "sysfs: "),
        ({"dax_values": "no value\n"}, "not a sysfs value"),
        ({"cxl_values": CXL_VALUES.replace("ways:2", "ways:two")}, "sysfs: "),
        ({"cxl_values": CXL_VALUES.replace("0x80000000", "2G")}, "sysfs: "),
        ({"memory_blocks": "8000000\nmemory0 online\n"}, "not a memory block"),
        ({"memory_blocks": "no\n"}, "sysfs: "),
        ({"cxl_list": "[{\n"}, "cxl list: "),
        ({"daxctl_list": "error\n"}, "daxctl list: "),
        ({"modules": "kmem\n \n"}, "sysfs: "),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, str], why: str) -> None:
    with pytest.raises(ObservationError, match=why):
        observe(**changes)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"daxctl_list": ""}, "sysfs has dax devices dax0.0, dax2.0, daxctl lists none"),
        ({"cxl_list": "[]\n"}, "sysfs has regions region0, region1, cxl lists none"),
        ({"iomem": IOMEM.replace("Window 0", "Window")}, "only a root decoder has a window at 11"),
        # cxl_acpi enlarges an entry around what lies across its border, and never shrinks one.
        ({"iomem": IOMEM.replace("18fffffff : CXL W", "1cfffffff : CXL W")}, None),
        ({"cxl_values": CXL_VALUES.replace("r0.0/start", "r0.0/begin")}, "only iomem has a window"),
        ({"dax_links": DAX_LINKS.replace("drivers/device_dax", "drivers/other")}, None),
        ({"dax_links": DAX_LINKS.replace("drivers/kmem", "drivers/other", 1)}, "driver other, wh"),
        ({"dax_links": DAX_LINKS.rpartition("drwx")[0]}, "but there is no driver kmem"),
        ({"iomem": f"{IN_DAX}110000000-127ffffff : System RAM (kmem)\n"}, "has memory blocks"),
        ({"iomem": f"{IN_DAX}110000000-11fffffff : System RAM (kmem)\n"}, None),
        ({"iomem": IOMEM.replace("System RAM\n", "Reserved\n")}, "where iomem has no RAM"),
        # One zero too many, and what is offline would be offline somewhere else.
        (
            {"iomem": IOMEM.removesuffix(RAM), "memory_blocks": f"80000000{BLOCKS[7:]}"},
            "memory block at 1100000000-117fffffff, where iomem has no RAM",
        ),
        ({"dax_links": DAX_LINKS.replace("hmem.2/dax2.0", "hmem.2/dax3.0")}, "dax2.0 leads to"),
        ({"dax_links": DAX_LINKS * 2}, "duplicate dax/devices/dax0.0"),
        ({"dax_links": DAX_LINKS.replace("lrwx", "rwx")}, "not a link or folder of sysfs"),
        ({"dax_links": DAX_LINKS[:-1]}, "cut off"),
        ({"dax_values": DAX_VALUES * 2}, "duplicate .*size"),
        ({"dax_values": DAX_VALUES + "dax/devices/dax9.0/size:1\n"}, "that does not exist"),
        ({"dax_values": DAX_VALUES.replace("mapping1/start", "mapping1/begin")}, "sysfs: "),
        ({"dax_values": DAX_VALUES.replace("2147483648", "2_147483648")}, "not a number"),
        ({"dax_values": DAX_VALUES.replace("target_node:1", "target_node:-1")}, "not a number"),
        ({"memory_blocks": BLOCKS + BLOCKS.splitlines(True)[1]}, "duplicate memory block 0"),
        ({"modules": "kmem 1 0\nkmem 1 0\n"}, "not a list of modules"),
    ],
)
def test_an_observation_that_contradicts_itself_is_refused(
    changes: dict[str, str], why: str | None
) -> None:
    if why is None:
        observe(**changes)
        return
    with pytest.raises(ObservationError, match=why):
        observe(**changes)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_missing_section_is_noticed(name: str) -> None:
    parts = sections()
    del parts[name]
    with pytest.raises(ObservationError, match=f"no section {name}"):
        split_sections(printed(parts), TOKEN)


def test_a_cut_off_observation_is_noticed_wherever_it_is_cut() -> None:
    whole = printed(sections())
    # The last line may lack its newline and be whole all the same.
    for length in range(0, len(whole) - 1, 7):
        with pytest.raises(ObservationError):
            split_sections(whole[:length], TOKEN)


def test_a_section_may_stand_only_once_and_nothing_behind_the_end() -> None:
    whole = printed(sections())
    with pytest.raises(ObservationError, match="'iomem' is out of order"):
        split_sections(whole.replace(f"{TOKEN} dmesg", f"{TOKEN} iomem\n{TOKEN} dmesg"), TOKEN)
    with pytest.raises(ObservationError, match="'dmesg' is out of order"):
        split_sections(f"{whole}{TOKEN} dmesg\n", TOKEN)


def test_lines_that_imitate_a_section_with_another_word_stay_in_theirs() -> None:
    forged = (
        "<6>[    1.000000] 0123456789abcdee dax_links\n"
        "0123456789abcde dax_links\n"
        f" {TOKEN} dax_links\n"
        f"<4>[    2.000000] {TOKEN} end\n"
        f"{TOKEN}\n"
        f"{TOKEN}x end\n"
    )
    parts = split_sections(printed(sections(dmesg=forged)), TOKEN)
    assert parts["dmesg"] == forged
    assert parts["dax_links"] == DAX_LINKS
    with pytest.raises(ObservationError, match="dmesg: line 2 has no level and time"):
        parse_observation(parts)
    records = "".join(line for line in forged.splitlines(True) if line.startswith("<"))
    assert len(parse_observation(parts | {"dmesg": records}).dmesg) == 2


def test_a_section_that_nobody_asked_for_is_refused() -> None:
    # Sections become files of the evidence: a guest must not choose their names.
    whole = printed(sections() | {"../../../../somewhere": "x\n"})
    with pytest.raises(ObservationError):
        split_sections(whole, TOKEN)


def test_what_comes_before_the_first_section_does_not_count() -> None:
    noise = "a banner\n\n"
    assert split_sections(noise + printed(sections()), TOKEN)["release"] == "7.2.0-test\n"


@given(st.sampled_from(SECTIONS), st.text(max_size=80))
def test_any_text_in_any_section_is_read_or_refused_and_nothing_else(name: str, text: str) -> None:
    with contextlib.suppress(ObservationError):
        parse_observation(sections() | {name: text})


@given(st.sampled_from(SECTIONS), st.data())
def test_damage_in_any_section_is_read_or_refused_and_nothing_else(
    name: str, data: st.DataObject
) -> None:
    text = sections()[name]
    at = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(at, len(text)))
    damage = data.draw(st.text(alphabet="0x9f:/-> .\n[{", max_size=4))
    with contextlib.suppress(ObservationError):
        parse_observation(sections() | {name: text[:at] + damage + text[end:]})
