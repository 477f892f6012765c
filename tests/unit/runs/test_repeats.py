# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of several guests left something else: nothing that varies, and everything that differs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.contract.observation_parser import split_sections
from harness.contract.result import Difference, Finding, OwnedRange, Piece, RunResult, Verdict
from harness.platform.memory_range import MemoryRange
from harness.reports.terminal import result_lines
from harness.runs.combine import combine
from harness.runs.repeat_differences import Guest, comparable_parts, differences
from harness.runs.repeats import compared
from harness.runs.stable_names import stable_names
from harness.runs.varying_messages import comparable_messages
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.module_load import Load
from harness.scenario.scenario import Ownership

CORPUS = Path(__file__).parents[2] / "data" / "observations"
SECTIONS = split_sections((CORPUS / "partial_region-7.2" / "sections").read_text(), "captured")
SECTIONS = {name: text for name, text in SECTIONS.items() if name != "end"}
SR = MemoryRange(0x110000000, 0x18FFFFFFF)
LOAD = Load("in_order", ("cxl_acpi", "kmem"))
ARGV = """\
/usr/bin/qemu-system-x86_64 \\
  -m size=1073741824b \\
  -chardev file,id=console,path=/dev/fd/13,logfile={folder}/serial.log,logappend=off \\
  -initrd /dev/fd/6 \\
  -chardev socket,id=qtest,fd=9
"""


def result(folder: Path, **more: object) -> RunResult:
    pieces = (Piece(SR, "dax_hmem", "system_ram", "hmem.2 > dax2.0 > kmem"),)
    owners = (OwnedRange("sr0", SR, Ownership(owner="dax_hmem", use="system_ram"), pieces),)
    base = RunResult(
        "partial_region", KernelRequest("debian:7.2"), "per_range",
        verdict=Verdict.PASS, owners=owners, load=LOAD, evidence=str(folder),
    )  # fmt: skip
    return replace(base, **more)  # type: ignore[arg-type]


def evidence(folder: Path, sections: dict[str, str] = SECTIONS, **files: str) -> RunResult:
    """A guest's evidence, as a run writes it, and its result."""
    (folder / "observation").mkdir(parents=True)
    for name, text in sections.items():
        (folder / "observation" / name).write_text(text)
    (folder / "qemu.argv").write_text(ARGV.format(folder=folder))
    (folder / "firmware.json").write_text("[]\n")
    (folder / "serial.log").write_text(f"[ 1.0] {folder}\n")
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return result(folder)


def apart(tmp_path: Path, *changed: dict[str, str]) -> list[tuple[int, str]]:
    """Which guests differ where: two that are as the corpus has it, then these."""
    results = [evidence(tmp_path / "0"), evidence(tmp_path / "1")]
    results += [
        evidence(tmp_path / str(number), SECTIONS | one) for number, one in enumerate(changed, 2)
    ]
    found = compared(combine(results, 1.0), results)
    assert found.compared == len(results)
    return [(one.guest, one.part) for one in found.differences]


def test_the_same_is_the_same(tmp_path: Path) -> None:
    assert apart(tmp_path) == []


def swapped(text: str, one: str, other: str) -> str:
    return text.replace(one, "\0").replace(other, one).replace("\0", other)


def test_numbers_that_devices_get_in_the_order_of_probing_are_no_difference(tmp_path: Path) -> None:
    def renumbered(text: str) -> str:
        for one, other in (
            ("mem0", "mem1"),
            ("endpoint2", "endpoint3"),
            ("decoder2.", "decoder3."),
        ):
            text = swapped(text, one, other)
        return text

    assert "mem1" in SECTIONS["cxl_links"], "the corpus has two devices there"
    changed = {name: renumbered(text) for name, text in SECTIONS.items()}
    for name in ("cxl_links", "cxl_values"):  # listed by name
        changed[name] = "".join(sorted(changed[name].splitlines(keepends=True)))
    assert changed != SECTIONS
    assert apart(tmp_path, changed) == []


def test_a_number_that_means_another_device_is_a_difference(tmp_path: Path) -> None:
    # The kernel's log says it of the other device than before.
    line = "<4>[    9.000000] cxl_mem {}: not as it was\n"
    names = re.findall(r"devices/(mem\d) ->", SECTIONS["cxl_links"])
    logs = [SECTIONS["dmesg"] + line.format(name) for name in names]
    results = [
        evidence(tmp_path / str(number), SECTIONS | {"dmesg": log})
        for number, log in enumerate((logs[0], logs[0], logs[1]))
    ]
    (found,) = compared(combine(results, 1.0), results).differences
    assert (found.guest, found.part, found.others) == (3, "observation/dmesg", 2)
    assert len(found.only_here) == len(found.only_there) == 1
    assert found.only_here != found.only_there


VARIATIONS: dict[str, Callable[[dict[str, str]], dict[str, str]]] = {
    "times": lambda old: {"dmesg": re.sub(r"\[ *\d+\.", "[   77.", old["dmesg"])},
    "clocks": lambda old: {
        "dmesg": "<6>[    0.000000] tsc: Detected 2596.130 MHz processor\n" + old["dmesg"]
    },
    "addresses of modules": lambda old: {"modules": old["modules"].replace("0xff", "0xfe")},
    "the order of modules": lambda old: {
        "modules": "".join(reversed(old["modules"].splitlines(keepends=True)))
    },
    "dates": lambda old: {
        "dax_links": re.sub(r"\w{3} +\d+ \d\d:\d\d", "Dec 24 18:00", old["dax_links"])
    },
}


@pytest.mark.parametrize("name", VARIATIONS)
def test_what_legitimately_varies(tmp_path: Path, name: str) -> None:
    changed = VARIATIONS[name](SECTIONS)
    assert any(SECTIONS[section] != text for section, text in changed.items())
    assert apart(tmp_path, changed) == []


def test_every_line_counts(tmp_path: Path) -> None:
    """A line that one guest has not is seen, whichever it is, but for those about clocks."""
    names = stable_names(SECTIONS)
    usual = comparable_parts(result(tmp_path), {f"observation/{n}": t for n, t in SECTIONS.items()})
    unseen = []
    for section, text in SECTIONS.items():
        lines = text.splitlines(keepends=True)
        for number, line in enumerate(lines):
            without = SECTIONS | {section: "".join(lines[:number] + lines[number + 1 :])}
            files = {f"observation/{name}": one for name, one in without.items()}
            parts = comparable_parts(result(tmp_path), files)
            if parts == usual:
                unseen.append(line)
            else:
                guests = [Guest(1, "", usual), Guest(2, "", usual), Guest(3, "", parts)]
                assert {one.guest for one in differences(guests)} == {3}
    assert len(names.names) > 8
    # The id is the number in the device's name.
    expected = 'tsc|clock|BogoMIPS|APIC|audit|rtc|hpet|^ *"id":'
    assert [line for line in unseen if not re.search(expected, line)] == []


def test_every_value_counts() -> None:
    """So is another digit in what sysfs and the tools say."""
    files = {f"observation/{name}": text for name, text in SECTIONS.items()}
    usual = comparable_parts(result(Path("/e")), files)
    for section in ("iomem", "dax_values", "cxl_values", "memory_blocks", "cxl_list"):
        text = files[f"observation/{section}"]
        for match in list(re.finditer(r"[:\-x]\s*[0-9a-f]*[1-9]", text))[:60]:
            at = match.end() - 1
            other = text[:at] + str(int(text[at]) - 1) + text[at + 1 :]
            changed = comparable_parts(
                result(Path("/e")), files | {f"observation/{section}": other}
            )
            assert changed != usual, f"{section}: {match[0]!r} at {at}"


RACE = ["cxl_mem mem0: a", "cxl_mem mem0: b", "cxl_mem mem1: a", "pci 0000:35:00.0: x"]


def test_messages_that_race_may_change_places() -> None:
    usual = comparable_messages(RACE)
    for order in ((2, 0, 1, 3), (0, 2, 1, 3), (3, 0, 1, 2), (0, 1, 3, 2)):
        assert comparable_messages([RACE[number] for number in order]) == usual


def test_what_one_source_says_keeps_its_order() -> None:
    assert comparable_messages([RACE[1], RACE[0], *RACE[2:]]) != comparable_messages(RACE)
    marks = ["harness: modprobe a [0]", "harness: modprobe b [0]"]
    assert comparable_messages(marks) != comparable_messages(marks[::-1])
    guests = [
        Guest(number, "", {"dmesg": comparable_messages(lines)})
        for number, lines in enumerate((RACE, RACE, [RACE[1], RACE[0], *RACE[2:]]), 1)
    ]
    (found,) = differences(guests)
    assert found.guest == 3
    assert set(found.only_here) == set(found.only_there) != set()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "WARNING: at __flush_work+0x352/0x390, CPU#1: kworker/1:2/41",
            "WARNING: at __flush_work+0x352/0x390, CPU#0: kworker/0:1/9",
        ),
        ("RAX: 0000000000000000 RBX: ff11000000a2c480", "RAX: 0000000000000001 RBX: 0"),
        ("INFO: task modprobe:97 blocked for more", "INFO: task modprobe:101 blocked for more"),
        ("Memory: 944232K/1048056K available (1K a, 98K reserved", "Memory: 9K/1048056K available "
         "(1K a, 99K reserved"),
        ("CPU: 0 UID: 0 PID: 48 Comm: kworker/0:2", "CPU: 1 UID: 0 PID: 9 Comm: kworker/1:1"),
    ],
)  # fmt: skip
def test_messages_that_differ_by_chance(one: str, other: str) -> None:
    assert comparable_messages([one]) == comparable_messages([other])


@pytest.mark.parametrize(
    "message",
    [
        "kmem dax2.0: mapping0: 0x110000000-0x18fffffff could not reserve region",
        "cxl region0: probe failed with error -16",
        "WARNING: at __flush_work+0x352/0x390, CPU#1: kworker/1:2/41",
        "memory: 5 of 16 blocks",
    ],
)
def test_numbers_that_mean_something_are_kept(message: str) -> None:
    other = re.sub(r"[1-9](?=\D*$)", "7", message) if "CPU" not in message else message.replace(
        "352", "353"
    )  # fmt: skip
    assert comparable_messages([message]) != comparable_messages([other])


def test_owners_findings_and_verdict(tmp_path: Path) -> None:
    first, second = evidence(tmp_path / "1"), evidence(tmp_path / "2")
    third = replace(
        evidence(tmp_path / "3"),
        verdict=Verdict.FAIL,
        owners=(),
        findings=(Finding("6", "an error: cxl x (during modprobe kmem)"),),
    )
    results = [first, second, third]
    found = compared(combine(results, 1.0), results).differences
    assert [one.part for one in found] == ["verdict", "owners", "findings"]
    assert found[2].only_here == ("rule 6: an error: cxl x",)
    assert {one.guest for one in found} == {3}


def test_another_machine_or_firmware(tmp_path: Path) -> None:
    results = [evidence(tmp_path / str(number)) for number in (1, 2)]
    other = tmp_path / "3"
    argv = ARGV.format(folder=other).replace("1073741824b", "2147483648b")
    results.append(evidence(other, qemu__argv=argv, firmware__json='["other"]\n'))
    found = compared(combine(results, 1.0), results).differences
    assert [(one.guest, one.part) for one in found] == [(3, "firmware.json"), (3, "qemu.argv")]
    assert found[1].only_here == ("  -m size=2147483648b \\",)


def test_a_restored_machine_has_the_same_command_line(tmp_path: Path) -> None:
    results = [evidence(tmp_path / "1")]
    argv = ARGV.replace("logappend=off", "logappend=on") + "  -incoming defer\n"
    argv = argv.replace("fd=9\n", "fd=9 \\\n").format(folder=tmp_path / "2")
    results.append(evidence(tmp_path / "2", qemu__argv=argv, start__json="{}"))
    assert compared(combine(results, 1.0), results).differences == ()


def test_only_guests_that_loaded_the_same_are_compared(tmp_path: Path) -> None:
    one = evidence(tmp_path / "1")
    reserved = {"iomem": SECTIONS["iomem"].replace("Reserved", "reserved", 1)}
    other = replace(evidence(tmp_path / "2", SECTIONS | reserved), load=Load("at_once", ()))
    combined = compared(combine([one, other], 1.0), [one, other])
    assert (combined.compared, combined.differences) == (0, ())
    third = replace(evidence(tmp_path / "3"), load=Load("at_once", ()))
    results = [one, other, third]
    combined = compared(combine(results, 1.0), results)
    assert combined.compared == 2
    assert [(d.guest, d.part) for d in combined.differences] == [(3, "observation/iomem")]


def test_evidence_that_is_missing_is_a_difference(tmp_path: Path) -> None:
    results = [evidence(tmp_path / str(number)) for number in range(3)]
    (tmp_path / "1" / "observation" / "iomem").unlink()
    (found,) = [
        one
        for one in compared(combine(results, 1.0), results).differences
        if one.part == "files"
    ]  # fmt: skip
    assert (found.guest, found.only_there) == (2, ("observation/iomem",))


def test_it_is_shown_and_written() -> None:
    long = tuple(f"line {number}" for number in range(5))
    found = Difference(2, "/evidence/two", "observation/iomem", 3, long, ("region0",))
    shown = result(Path("/e"), compared=4, differences=(found,))
    text = "\n".join(result_lines(shown))
    assert "guest 2 differs, see /evidence/two" in text
    assert "in observation/iomem, from 3 others:" in text
    assert "+ line 2" in text and "and 2 more lines" in text and "- region0" in text
    written = json.loads(json.dumps(shown.as_json()))
    assert written["compared"] == 4
    assert written["differences"] == [
        {
            "guest": 2,
            "evidence": "/evidence/two",
            "part": "observation/iomem",
            "others": 3,
            "only_here": list(long),
            "only_there": ["region0"],
        }
    ]
    same = "\n".join(result_lines(result(Path("/e"), compared=4)))
    assert "4 guests, the same evidence from each but for times" in same
    assert "the same evidence" not in "\n".join(result_lines(result(Path("/e"))))
