# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's log: records with levels and times, and which of them count against a contract."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

WARNING = 4
ANY_MESSAGE = "driver thing0: probe with driver thing failed with error -5"
"""What no pattern for an expected line may match."""

_CUT = "[ cut here ]"
_END = "---[ end trace"
_LONGEST_TRACE = 200
_END_OF_STACK = "</TASK>"
_RULE = re.compile("={20,}")
TIMED = ("stall", "hung_task")
"""Kinds of messages about something that took too long, by the guest's own clock."""
_ENDS = ("panic", "oops", *TIMED)

_RAW = re.compile(
    r"<(?P<prefix>\d{1,3})>\[ *(?P<time>\d{1,12}\.\d{1,9})\](?:\[[^\]]*\])? ?(?P<text>.*)", re.ASCII
)

# How a driver begins a message about a device. What a trace says of them begins otherwise.
_OF_DEVICE = re.compile(r"(?:cxl|dax|hmem|kmem|device_dax)\w* [\w.:-]+: ")

# Subsystems whose warnings and errors count.
_OURS = re.compile(
    r"(?:^|[\s(\[])(?:cxl|dax|hmem|kmem|device_dax)(?:[\s_:.\d]|$)|"
    r"\bACPI001[67]:\d|"  # cxl_acpi, about host bridges and the root of CXL
    r"^(?:resource: )?.*(?:conflicts with|Extended linear cache calculation failed)",
    re.IGNORECASE,
)

# What the kernel prints when something is broken, whoever broke it. The most telling name first:
# many of these lines also start with BUG or WARNING.
_SPLATS = (
    (r"\bKASAN: ", "kasan"),
    (r"\bsleeping function called from invalid context|\bscheduling while atomic", "atomic_sleep"),
    (
        r"\b(?:soft|hard) (?:lockup|LOCKUP)|\bworkqueue lockup|"
        r"\brcu.*(?:self-detected stall|detected .*stalls)",
        "stall",
    ),
    (r"\bINFO: task .* blocked for more than", "hung_task"),
    (
        r"\b(?:possible|inconsistent) (?:circular|recursive|irq|lock)\S* .*(?:lock|detected)|"
        r"\binconsistent lock state|\bsuspicious RCU usage|\bbad unlock balance|"
        r"\bWARNING: (?:held lock freed|lock held when returning|Nested lock was not taken)|"
        r"\bWARNING: .*(?:still has locks held|lock order detected)|"
        r"\bINFO: trying to register non-static key",
        "lockdep",
    ),
    (r"\bkmemleak: \d+ new suspected memory leaks", "kmemleak"),
    (r"\bUBSAN: ", "ubsan"),
    (r"\bKernel panic - not syncing", "panic"),
    (
        r"\bOops: |\bgeneral protection fault|\bunable to handle |"
        r"\bkernel NULL pointer dereference",
        "oops",
    ),
    (r"\bkernel BUG at|\bBUG: ", "bug"),
    (r"\bWARNING: (?:CPU: \d+|(?:.* )?at )", "warn"),
    (r"\bworkqueue: .* hogged CPU|\bCall Trace:$", "call_trace"),
)

KINDS = {
    "kasan": "KASAN",
    "atomic_sleep": "atomic sleep",
    "stall": "a stall",
    "hung_task": "a hung task",
    "lockdep": "lockdep",
    "kmemleak": "kmemleak",
    "ubsan": "UBSAN",
    "panic": "a panic",
    "oops": "an oops",
    "bug": "a BUG",
    "warn": "a WARN",
    "call_trace": "a call trace",
    "warning": "a warning",
    "error": "an error",
}
"""The kinds of kernel messages that count, with the words for people."""


class DmesgError(ValueError):
    """The text is not a kernel log as `dmesg -r` prints it."""


@dataclass(frozen=True)
class Record:
    """One message.

    Attributes:
        level: 0 (emergency) to 7 (debug).
        time: seconds since boot.
        text: the message, without level and time.
        phase: in which phase of the run it was said, empty where nobody has looked.
    """

    level: int
    time: float
    text: str
    phase: str = ""

    def __str__(self) -> str:
        return f"[{self.time:12.6f}] {self.text}"


@dataclass(frozen=True)
class Complaint:
    """A record that breaks the contract unless it is expected.

    Attributes:
        record: the message, with all lines of a trace.
        kind: key of KINDS.
        until: the phase of its last line; empty as in Record.
    """

    record: Record
    kind: str
    until: str = ""

    @property
    def line(self) -> str:
        """The message with its time and the phase that it fell in."""
        phase = f"({self.record.phase}) " if self.record.phase else ""
        return f"[{self.record.time:12.6f}] {phase}{self.record.text}"

    @property
    def subject(self) -> str:
        """The first line of the message."""
        return self.record.text.splitlines()[0]

    def __str__(self) -> str:
        text = f"{KINDS[self.kind]}: {self.subject}"
        return f"{text} (during {self.record.phase})" if self.record.phase else text


def parse_dmesg(text: str) -> tuple[Record, ...]:
    """Read the output of `dmesg -r`.

    The kernel gives every line its level and time, those of a message of several lines too (Linux,
    kernel/printk/printk.c, record_print_text()): a line without them is damaged, and what it was
    may have counted.

    Raises:
        DmesgError: there is no record at all, or a line is not one.
    """
    records: list[Record] = []
    *lines, last = text.split("\n")
    if last:
        raise DmesgError(f"cut off in its last line: {last[:80]!r}")
    for number, line in enumerate(lines, 1):
        match = _RAW.fullmatch(line)
        if match is None:
            raise DmesgError(f"line {number} has no level and time: {line[:80]!r}")
        records.append(
            Record(int(match["prefix"]) & 7, float(match["time"]), match["text"].rstrip())
        )
    if not records:
        raise DmesgError("no kernel message in it")
    return tuple(records)


def splat(text: str) -> str | None:
    """The kind of breakage that a line announces, or None."""
    return next((kind for pattern, kind in _SPLATS if re.search(pattern, text)), None)


def complaints(
    records: Iterable[Record], expected: Sequence[re.Pattern[str]] = ()
) -> tuple[Complaint, ...]:
    """The records that count against the contract (rule 6).

    A record counts when it is a warning or worse of cxl, dax, hmem or kmem, or announces a
    breakage of any subsystem, unless one of `expected` is found in it. The lines of a trace, from
    its beginning to its end mark, are one record, of which only the first can be expected. What a
    driver says of a device meanwhile counts by itself: whoever excuses the trace knows nothing of
    it.
    """
    found: list[Complaint] = []
    for record, until in _with_whole_traces(tuple(records)):
        kind = splat(record.text) or ("warn" if _CUT in record.text else None)
        said = record.text if kind is None else _first_line(record.text)
        if any(pattern.search(said) for pattern in expected):
            continue
        if kind is not None:
            found.append(Complaint(replace(record, text=_uncut(record.text)), kind, until))
        elif record.level <= WARNING and _OURS.search(record.text):
            level = "warning" if record.level == WARNING else "error"
            found.append(Complaint(record, level, until))
    return tuple(found)


def _uncut(text: str) -> str:
    """A trace without the line that says that it begins."""
    return "\n".join(line for line in text.split("\n") if _CUT not in line) or text


def _first_line(text: str) -> str:
    return _uncut(text).partition("\n")[0]


def _with_whole_traces(records: Sequence[Record]) -> Iterator[tuple[Record, str]]:
    """Each record, a trace as one, with the phase of its last line; as they begin in the log."""
    at = 0
    while at < len(records):
        end = _end_of_trace(records, at)
        if (
            end == at
            and _CUT in records[at].text
            and any(splat(one.text) for one in records[at + 1 : at + 2])
        ):
            at += 1  # a trace without its end: what it begins with says what it is
            continue
        head = next((n for n in range(at, end) if splat(records[n].text) is not None), end)
        trace = list(records[at : head + 1])
        meanwhile: list[Record] = []
        for one in records[head + 1 : end + 1]:
            of_device = one.level <= WARNING and _OF_DEVICE.match(one.text)
            (meanwhile if of_device else trace).append(one)
        text = "\n".join(one.text for one in trace)
        level = min(one.level for one in trace)
        yield replace(trace[0], level=level, text=text), records[end].phase
        yield from ((one, one.phase) for one in meanwhile)
        at = end + 1


def _end_of_trace(records: Sequence[Record], first: int) -> int:
    """The index of the last record of the trace that begins at `first`; `first` for no trace."""
    kind = splat(records[first].text)
    if _CUT not in records[first].text and kind is None:
        return first
    begun, stack = False, first
    for at in range(first + 1, min(first + _LONGEST_TRACE, len(records))):
        text = records[at].text
        if _CUT in text or (stack > first and splat(text) is not None):
            break
        if _END in text or (kind == "kasan" and _RULE.fullmatch(text)):
            return at
        begun = begun or text.endswith("Call Trace:")
        if begun and stack == first and text.strip() == _END_OF_STACK:
            stack = at
    # Lockdep, stalls and hung tasks have no end mark: the first stack is theirs.
    return stack


def ends_the_guest(text: str) -> bool:
    """Whether a line says that something of the guest will not go on: nothing after it counts.

    A task that oopsed holds its locks for ever; a CPU that stalls does nothing else.
    """
    return splat(text) in _ENDS or "kernel BUG at" in text
