# SPDX-License-Identifier: GPL-2.0-or-later
"""No observation that is cut, damaged or a lie gives a PASS that the whole one would not give.

Real observations are changed in one place or two. What is still judged PASS must say of every range
that is judged, and of every dax device, what the unchanged one said. A guest that forges all its
witnesses, each in the same way, cannot be told from an honest one; these tests forge one or two.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import msgspec
import pytest
from corpus import layout_from, sections_of
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_golden_corpus import EXPECTED

from harness.contract.dmesg import KERNEL, DmesgError, StepMarks, in_phases, require_whole
from harness.contract.expected import Expected
from harness.contract.judge import judge
from harness.contract.observation import SECTIONS, Observation, ObservationError
from harness.contract.observation_parser import parse_observation, split_sections
from harness.contract.observed_owners import double_claims, pieces_of
from harness.contract.preflight import window_problems
from harness.contract.result import Verdict
from harness.platform.firmware_state import FirmwareState, place_firmware
from harness.scenario.scenario import ExpectedLine, Scenario
from harness.scenario.scenario_files import load_case

PASSING = sorted(name for name, expected in EXPECTED.items() if not expected.rules)
STRANDED = ("partial_region-7.2", "partial_region-6.12")
TOKEN = "5ec7e700"
MARKS = StepMarks("0b5e55ed", ["modprobe kmem"])
MARK = f"<6>[    1.000000] {MARKS.line('modprobe kmem')}\n"
WARNING = "<4>[    9.000000] kmem dax0.0: it failed\n"

# What Linux up to 6.18 has in between, `Soft Reserved`, is nobody's.
OURS = r"CXL Window \d+|region\d+|dax\d+\.\d+|System RAM \(kmem\)"

Sections = dict[str, str]


@dataclass(frozen=True)
class Original:
    """A capture with the mark of one step at the beginning of its log, so that all of it counts."""

    scenario: Scenario
    state: FirmwareState
    sections: Sections
    seen: Observation

    def verdict(self, sections: Sections) -> tuple[Verdict, Observation | None]:
        """As a run judges: what cannot be read is INCONCLUSIVE."""
        text = "".join(f"{TOKEN} {name}\n{part}" for name, part in sections.items())
        try:
            seen = parse_observation(split_sections(f"{text}{TOKEN} end\n", TOKEN))
            require_whole(seen.dmesg, MARKS, from_boot=False)
        except (ObservationError, DmesgError):
            return Verdict.INCONCLUSIVE, None
        if window_problems(seen, self.state):
            return Verdict.INCONCLUSIVE, None
        seen = replace(seen, dmesg=in_phases(seen.dmesg, MARKS))
        expect = self.scenario.expect
        allowed = [re.compile(line.pattern) for line in expect.dmesg]
        return judge(seen, self.state, Expected(expect.owners("per_range")), allowed).verdict, seen

    def essence(self, seen: Observation) -> object:
        """What a verdict is about: owners and uses, dax devices, and what iomem has there."""
        spans = [one.range for one in self.state.named_ranges()]
        spans += [*self.state.windows, *self.state.hotplug_room]
        return (
            [[(p.range, p.owner, p.use) for p in pieces_of(span, seen)] for span in spans],
            [double_claims(span, seen) for span in spans],
            {(one.name, one.ranges, one.driver, one.parent) for one in seen.dax},
            [(e.range, e.name) for span in spans for e in seen.iomem.within(span).named(OURS)],
            [block for block in seen.offline if any(block.overlaps(span) for span in spans)],
        )

    def assert_not_fooled(self, sections: Sections) -> None:
        verdict, seen = self.verdict(sections)
        if verdict is Verdict.PASS:
            assert seen is not None
            assert self.essence(seen) == self.essence(self.seen)


@cache
def original(name: str) -> Original:
    case = load_case(name.rpartition("-")[0])
    state = place_firmware(case.document, case.profile, layout_from(name, case))
    sections = {part: sections_of(name)[part] for part in SECTIONS}
    sections["dmesg"] = MARK + sections["dmesg"]
    return Original(case.scenario, state, sections, parse_observation(sections))


def lines_of(text: str) -> list[str]:
    return text.splitlines(keepends=True)


@pytest.mark.parametrize("name", PASSING)
def test_the_unchanged_observation_passes(name: str) -> None:
    one = original(name)
    assert one.verdict(one.sections)[0] is Verdict.PASS


@pytest.mark.parametrize("name", PASSING)
def test_without_any_one_line(name: str) -> None:
    one = original(name)
    for part in SECTIONS[:-1]:
        lines = lines_of(one.sections[part])
        for at in range(len(lines)):
            one.assert_not_fooled(one.sections | {part: "".join(lines[:at] + lines[at + 1 :])})


@pytest.mark.parametrize("name", STRANDED)
def test_without_any_one_line_stranded_memory_stays_stranded(name: str) -> None:
    one = original(name)
    assert one.verdict(one.sections)[0] is Verdict.FAIL
    for part in SECTIONS:
        lines = lines_of(one.sections[part])
        for at in range(len(lines)):
            changed = one.sections | {part: "".join(lines[:at] + lines[at + 1 :])}
            assert one.verdict(changed)[0] is not Verdict.PASS


@pytest.mark.parametrize("part", SECTIONS)
@pytest.mark.parametrize("name", ["exact_cover-7.2", "partial_region-7.2"])
def test_cut_off_anywhere(name: str, part: str) -> None:
    one = original(name)
    text = one.sections[part]
    for at in range(0, len(text), max(1, len(text) // 60)):
        one.assert_not_fooled(one.sections | {part: text[:at]})
        one.assert_not_fooled(one.sections | {part: text[at:]})


@pytest.mark.parametrize("name", PASSING)
def test_read_by_a_user_without_privilege(name: str) -> None:
    one = original(name)
    zeros = re.sub(r"^( *)[0-9a-f]+-[0-9a-f]+", r"\g<1>00000000-00000000", one.sections["iomem"],
                   flags=re.M)  # fmt: skip
    assert one.verdict(one.sections | {"iomem": zeros})[0] is Verdict.INCONCLUSIVE


def test_a_log_that_imitates_the_marks_hides_no_warning() -> None:
    one = original("exact_cover-7.2")
    for step in (KERNEL, "start of userspace", "modprobe kmem"):
        forged = f"<6>[    8.000000] {MARKS.line(step)}\n"
        for log in (forged + WARNING, WARNING + forged, forged + WARNING + forged):
            changed = one.sections | {"dmesg": one.sections["dmesg"] + log}
            assert one.verdict(changed)[0] is not Verdict.PASS
    # Without the real mark, everything would be of the boot, and not count.
    lost = one.sections["dmesg"].removeprefix(MARK) + WARNING
    assert one.verdict(one.sections | {"dmesg": lost})[0] is Verdict.INCONCLUSIVE


def test_a_damaged_warning_is_not_taken_for_nothing() -> None:
    one = original("exact_cover-7.2")
    for at in range(len("<4>[    9.000000]")):
        damaged = WARNING[:at] + WARNING[at + 1 :]
        changed = one.sections | {"dmesg": one.sections["dmesg"] + damaged}
        assert one.verdict(changed)[0] is not Verdict.PASS


TRACE = [
    f"<4>[    8.000000] {text}\n"
    for text in (
        "------------[ cut here ]------------",
        "WARNING: drivers/other/thing.c:1 at thing+0x1/0x2, CPU#0: modprobe/9",
        "Modules linked in: dax_cxl kmem dax_hmem",
        "Call Trace:",
        " ? cxl_dax_region_driver_register+0x5/0x20 [dax_cxl]",
        "---[ end trace 0000000000000000 ]---",
    )
]


@pytest.mark.parametrize("begins", ["before the first step", "after it"])
def test_a_warning_hides_in_no_place_of_the_log(begins: str) -> None:
    """Not amid a trace that does not count because it is of the boot, or because it is expected."""
    one = original("exact_cover-7.2")
    mark, *lines = lines_of(one.sections["dmesg"])
    early = begins != "after it"
    expect = one.scenario.expect
    excused = ExpectedLine(pattern=re.compile(r"other/thing\.c:1"), reason="the test makes it")
    expect = expect if early else msgspec.structs.replace(expect, dmesg=(excused,))
    one = replace(one, scenario=msgspec.structs.replace(one.scenario, expect=expect))

    def verdict(log: list[str]) -> Verdict:
        return one.verdict(one.sections | {"dmesg": "".join(log)})[0]

    whole = [*TRACE, mark, *lines] if early else [mark, *TRACE, *lines]
    assert verdict(whole) is Verdict.PASS
    first = whole.index(mark) + 1
    for at in [*range(first, first + 12), *range(first + 12, len(whole), 20)]:
        assert verdict([*whole[:at], WARNING, *whole[at:]]) is not Verdict.PASS, whole[at - 1]
    for cut in range(1, len(TRACE)):  # the step begins while the trace is printed
        across = [*TRACE[:cut], mark, WARNING, *TRACE[cut:], *lines]
        assert verdict(across) is not Verdict.PASS


def test_sections_that_stand_twice_or_in_another_place() -> None:
    one = original("exact_cover-7.2")
    for first in SECTIONS:
        for second in SECTIONS:
            swapped = {first: one.sections[second], second: one.sections[first]}
            one.assert_not_fooled(one.sections | swapped)
        again = one.sections["release"] + f"{TOKEN} {first}\n{one.sections[first]}"
        assert one.verdict(one.sections | {"release": again})[0] is Verdict.INCONCLUSIVE


def test_a_section_of_another_guest() -> None:
    for name in PASSING:
        one = original(name)
        for other in (*PASSING, *STRANDED):
            for part in SECTIONS:
                one.assert_not_fooled(one.sections | {part: original(other).sections[part]})


# Each forges one witness of a guest that has stranded memory.
LIES: dict[str, Callable[[Sections], Sections]] = {
    "kmem holds the device": lambda s: {
        "dax_links": s["dax_links"]
        + "lrwxrwxrwx 1 root root 0 Nov 20 09:43 dax/devices/dax2.0/driver -> "
        + "../../../../../bus/dax/drivers/kmem\n"
    },
    "iomem has RAM there": lambda s: {
        "iomem": s["iomem"].replace(
            "110000000-18fffffff : CXL Window 0\n",
            "110000000-18fffffff : CXL Window 0\n"
            "  110000000-18fffffff : dax2.0\n    110000000-18fffffff : System RAM (kmem)\n",
        )
    },
    "the region is larger": lambda s: {
        "cxl_values": s["cxl_values"].replace("region0/size:0x40000000", "region0/size:0x80000000")
    },
    "there is no device": lambda s: {
        "dax_links": "".join(line for line in lines_of(s["dax_links"]) if "dax2.0" not in line)
    },
}


@pytest.mark.parametrize("lies", [[one] for one in LIES] + [list(LIES)[:2], list(LIES)])
def test_a_guest_that_lies(lies: list[str]) -> None:
    one = original("partial_region-7.2")
    changed = one.sections
    for lie in lies:
        forged = LIES[lie](changed)
        assert forged.items() - changed.items(), "the lie changes something"
        changed = changed | forged
    assert one.verdict(changed)[0] is not Verdict.PASS


def test_offline_memory_is_not_hidden_by_a_size_of_blocks_that_is_wrong() -> None:
    one = original("exact_cover-7.2")
    blocks = one.sections["memory_blocks"]
    blocks = blocks.replace("memory40/state:online", "memory40/state:offline")
    assert one.verdict(one.sections | {"memory_blocks": blocks})[0] is Verdict.FAIL
    size, _, rest = blocks.partition("\n")
    for wrong in (f"{size}0", f"1{size}", size[:-1], "1", "0", "9000000", "7ffffff", "10000000"):
        changed = one.sections | {"memory_blocks": f"{wrong}\n{rest}"}
        assert one.verdict(changed)[0] is not Verdict.PASS, wrong


def test_memory_that_is_ordinary_ram_as_well_is_claimed_twice() -> None:
    one = original("sr_outside_window-7.2")
    (device,) = one.seen.dax
    (span,) = device.ranges
    below = "".join(
        f"  {line}" if f"{span} : " in line else line for line in lines_of(one.sections["iomem"])
    )
    iomem = below.replace(f"  {span} : dax", f"{span} : System RAM\n  {span} : dax")
    assert one.verdict(one.sections | {"iomem": below})[0] is Verdict.INCONCLUSIVE
    assert one.verdict(one.sections | {"iomem": iomem})[0] is Verdict.FAIL


def test_a_module_that_is_said_to_be_loaded_has_a_driver() -> None:
    one = original("exact_cover-7.2")
    links = one.sections["dax_links"].replace("dax/drivers/kmem\n", "dax/drivers/kmen\n")
    assert one.verdict(one.sections | {"dax_links": links})[0] is Verdict.INCONCLUSIVE


@st.composite
def changed(draw: st.DrawFn, text: str) -> str:
    lines = lines_of(text) or [""]
    at = draw(st.integers(0, len(lines) - 1))
    to = draw(st.integers(0, len(lines) - 1))
    how = draw(st.sampled_from(["drop", "double", "move", "copy", "swap", "bytes", "cut"]))
    if how in ("bytes", "cut"):
        first = draw(st.integers(0, len(text)))
        last = draw(st.integers(first, min(len(text), first + 40))) if how == "bytes" else len(text)
        damage = draw(st.text(alphabet="0123456789abcdefx_:-/> .<[{\n\r\x0b\x85٣", max_size=3))
        return text[:first] + damage + text[last:]
    if how == "drop":
        del lines[min(at, to) : max(at, to) + 1]
    elif how == "double":
        lines.insert(at, lines[at])
    elif how == "move":
        lines.insert(to, lines.pop(at))
    elif how == "copy":
        lines[at] = lines[to]
    else:
        lines[at], lines[to] = lines[to], lines[at]
    return "".join(lines)


@settings(max_examples=400, suppress_health_check=[HealthCheck.large_base_example])
@given(st.sampled_from(PASSING), st.lists(st.sampled_from(SECTIONS), max_size=2), st.data())
@example("exact_cover-7.2", [], None)
def test_a_changed_observation_passes_only_when_it_says_the_same(
    name: str, parts: list[str], data: st.DataObject
) -> None:
    one = original(name)
    sections = dict(one.sections)
    for part in parts:
        sections[part] = data.draw(changed(sections[part]))
    one.assert_not_fooled(sections)


@settings(max_examples=400, suppress_health_check=[HealthCheck.large_base_example])
@given(st.sampled_from(STRANDED), st.lists(st.sampled_from(SECTIONS), max_size=2), st.data())
def test_stranded_memory_never_passes(name: str, parts: list[str], data: st.DataObject) -> None:
    one = original(name)
    sections = dict(one.sections)
    for part in parts:
        sections[part] = data.draw(changed(sections[part]))
    assert one.verdict(sections)[0] is not Verdict.PASS
