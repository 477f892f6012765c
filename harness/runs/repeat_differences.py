# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that were asked for the same, held against each other: which differs, and how.

Compared is what a run wrote down and what came of it, but for what legitimately varies:

- names that Linux gives in the order of probing (`stable_names`);
- times, processes and the order of messages that race (`varying_messages`);
- in QEMU's command line the numbers of inherited files, the run's own folder, and whether the
  machine was to be restored;
- addresses of modules, and dates in listings of sysfs;
- in which step a message fell: what the kernel puts off to a work queue may fall in a later one.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from typing import Any

from harness.contract.observation import SECTIONS
from harness.contract.result import Difference, Finding, OwnedRange, RunResult
from harness.runs.stable_names import StableNames, stable_names
from harness.runs.varying_messages import comparable_messages, masked

NOT_COMPARED = {
    "verdict.json": "its parts are compared one by one",
    "serial.log": "it says what dmesg says, and CPUs and programs write into each other's lines",
    "start.json": "how the guest came to be, which is no part of what happened in it",
    "judging.json": "the word of the run's marks; the rest is in other files",
    "decoded.txt": "it follows from the findings",
    "cpus.txt": "registers of the moment",
    "stuck_tasks.txt": "stacks of the moment",
    "kmemleak": "addresses and ages; what counts of it is a finding",
}
"""Files of the evidence by name, each with why it is not compared."""

Parts = Mapping[str, tuple[str, ...]]
"""What one guest left, in comparable lines: by file of its evidence, or by field of its result."""

_MOST_LINES = 20
_MESSAGE = re.compile(r"<\d+>\[ *[\d.]+\](?:\[[^\]]*\])? ?(?P<text>.*)")
_LISTED = re.compile(r"\s[A-Z][a-z]{2}\s+\d+\s+[\d:]+ ")
_DURING = re.compile(r" \(during [^)]*\)$")
_FD = re.compile(r"(?<=/dev/fd/)\d+|\bfd=\d+")
_RESTORED = re.compile(r" \\\n  -incoming \S+|,logappend=(?:on|off)")
_MODULE = re.compile(r"(?P<name>\S+) (?P<size>\d+) (?P<uses>\d+) (?P<users>\S+) (?P<state>\w+) ?.*")
# What cxl and daxctl call the things that they list; the first that an object has tells it apart.
_LABELS = (*("endpoint", "decoder", "region", "memdev", "port", "bus", "chardev", "path", "dport"),)


@dataclass(frozen=True)
class Guest:
    """One guest of several that were asked for the same.

    Attributes:
        number: its place among the scenario's guests, from 1.
        evidence: its folder.
        parts: what it left.
    """

    number: int
    evidence: str
    parts: Parts


def comparable_parts(result: RunResult, files: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """What one guest left, in lines that are the same for every guest in which the same happened.

    Args:
        result: what came of it.
        files: the texts of its evidence by path below the folder, those of NOT_COMPARED left out.
    """
    folders = sorted({name.rpartition("/")[0] for name in files if _is_section(name)})
    names = {folder: stable_names(_sections(files, folder)) for folder in folders}
    last = names[folders[-1]] if folders else StableNames({})
    parts: dict[str, tuple[str, ...]] = {"files": tuple(sorted(files))}
    for name, text in sorted(files.items()):
        folder, _, section = name.rpartition("/")
        text = text.replace(result.evidence, "EVIDENCE") if result.evidence else text
        if section == "dmesg":
            if folder == folders[-1]:  # the whole log; those of earlier steps are its beginnings
                parts[name] = _messages(text, last)
        elif _is_section(name):
            parts[name] = tuple(_section_lines(section, text, names[folder]))
        elif name == "qemu.argv":
            parts[name] = tuple(_RESTORED.sub("", _FD.sub("…", text)).splitlines())
        else:
            known = names.get(folder)
            parts[name] = tuple(masked(known.rename(text) if known else text).splitlines())
    parts.update(_parts_of(result, last))
    return parts


def differences(guests: Sequence[Guest]) -> tuple[Difference, ...]:
    """In what guests differ from the others.

    Of each part, what most of them have is what the others are held against; without a most, what
    the first of them has.
    """
    found = []
    for part in dict.fromkeys(name for guest in guests for name in guest.parts):
        have = [guest for guest in guests if part in guest.parts]
        counts = Counter(guest.parts[part] for guest in have)  # in order of appearance
        usual, as_many = counts.most_common(1)[0]
        for guest in have:
            lines = guest.parts[part]
            if lines != usual:
                here, there = _lines_apart(lines, usual)
                found.append(Difference(guest.number, guest.evidence, part, as_many, here, there))
    return tuple(sorted(found, key=lambda one: one.guest))


def _lines_apart(
    lines: tuple[str, ...], usual: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What only the first has, and what only the second; where that is nothing, what has moved."""
    one, other = Counter(lines), Counter(usual)
    here, there = tuple((one - other).elements()), tuple((other - one).elements())
    if not here and not there:
        moved = [line for line in unified_diff(usual, lines, n=0, lineterm="")][2:]
        here = tuple(line[1:] for line in moved if line.startswith("+"))
        there = tuple(line[1:] for line in moved if line.startswith("-"))
    return _shortened(here), _shortened(there)


def _shortened(lines: tuple[str, ...]) -> tuple[str, ...]:
    if len(lines) <= _MOST_LINES:
        return lines
    return (*lines[:_MOST_LINES], f"and {len(lines) - _MOST_LINES} more lines")


def _is_section(name: str) -> bool:
    folder, _, section = name.rpartition("/")
    return bool(folder) and section in SECTIONS


def _sections(files: Mapping[str, str], folder: str) -> dict[str, str]:
    return {name: files[f"{folder}/{name}"] for name in SECTIONS if f"{folder}/{name}" in files}


def _section_lines(section: str, text: str, names: StableNames) -> Iterator[str]:
    if section in ("cxl_list", "daxctl_list"):
        try:
            listed = json.loads(text or "null")
        except (ValueError, RecursionError):
            yield text
        else:
            yield from sorted(_leaves(listed, "", names))
        return
    lines = names.rename(text).splitlines()
    if section in ("cxl_links", "dax_links"):
        yield from sorted(_LISTED.sub(" ", line) for line in lines)
    elif section in ("cxl_values", "dax_values"):
        yield from sorted(lines)
    elif section == "modules":
        yield from sorted(map(_module, lines))
    else:
        yield from lines


def _module(line: str) -> str:
    """A line of /proc/modules without the address; users in no order, as loads can race."""
    match = _MODULE.fullmatch(line)
    if match is None:
        return line
    users = ",".join(sorted(filter(None, match["users"].split(","))))
    return f"{match['name']} {match['size']} {match['uses']} {users} {match['state']}"


def _leaves(value: Any, path: str, names: StableNames) -> Iterator[str]:
    """Every value of a JSON text with its path, in which objects are named by what they are."""
    if isinstance(value, dict):
        for key, one in value.items():
            if key != "id":  # the number in the name of the region or hmem device
                yield from _leaves(one, f"{path}/{names.rename(key)}", names)
    elif isinstance(value, list):
        for number, one in enumerate(value):
            label = _label(one)
            yield from _leaves(one, f"{path}/{names.rename(label) or number}", names)
    else:
        yield f"{path}: {names.rename(value) if isinstance(value, str) else json.dumps(value)}"


def _label(value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    found = (value[key] for key in _LABELS if isinstance(value.get(key), str))
    return next(found, next(iter(value), ""))


def _messages(text: str, names: StableNames) -> tuple[str, ...]:
    found = (_MESSAGE.fullmatch(line) for line in names.rename(text).splitlines())
    return comparable_messages(one["text"] for one in found if one)


def _parts_of(result: RunResult, names: StableNames) -> dict[str, tuple[str, ...]]:
    def lines(texts: Iterable[str]) -> tuple[str, ...]:
        return tuple(masked(names.rename(text)) for text in texts)

    reason = result.reason.replace(result.evidence, "EVIDENCE") if result.evidence else ""
    steps = (f"{one.step}: {one.outcome}" for one in result.steps)
    return {
        "verdict": lines([result.verdict.name, *reason.splitlines()]),
        "owners": lines(_owner_lines(result.owners)),
        "findings": tuple(sorted(lines(map(_finding_line, result.findings)))),
        "steps": lines(steps),
        "steps' owners": lines(
            f"{one.step}: {line}" for one in result.steps for line in _owner_lines(one.owners)
        ),
        "steps' findings": lines(
            f"{one.step}: {_finding_line(two)}" for one in result.steps for two in one.findings
        ),
    }


def _owner_lines(owners: Iterable[OwnedRange]) -> Iterator[str]:
    for one in owners:
        for piece in one.observed:
            yield f"{one.name} {piece.range} {piece.owner}/{piece.use} by {piece.via}"


def _finding_line(finding: Finding) -> str:
    where = f" {finding.range}" if finding.range else ""
    return f"rule {finding.rule}{where}: {_DURING.sub('', finding.text)}"
