# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's log: records, their phases, and the warnings that count against the contract."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

WARNING = 4
ANY_MESSAGE = "driver thing0: probe with driver thing failed with error -5"
"""A message that no pattern for an expected line may match."""

KERNEL = "boot"
"""Phase before the first process of userspace."""
USERSPACE = "start of userspace"
"""Phase from the first process until the scenario's first step."""
BEFORE_STEPS = (KERNEL, USERSPACE)

# Linux, init/main.c, run_init_process().
_FIRST_PROCESS = re.compile(r"Run \S+ as init process")
# On the console a panic can cut off the token at a mark's end.
_MARK = re.compile(r"harness: .*? \[[0-9a-f]{1,32}\]?|^\[harness: .*\]$")

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

# The beginning of a driver's message about a device; lines of a trace begin differently.
_OF_DEVICE = re.compile(r"(?:cxl|dax|hmem|kmem|device_dax)\w* [\w.:-]+: ")

# Subsystems whose warnings and errors count.
_OURS = re.compile(
    r"(?:^|[\s(\[])(?:cxl|dax|hmem|kmem|device_dax)(?:[\s_:.\d]|$)|"
    r"\bACPI001[67]:\d|"  # cxl_acpi, about host bridges and the root of CXL
    r"^(?:resource: )?.*(?:conflicts with|Extended linear cache calculation failed)",
    re.IGNORECASE,
)

# Messages about breakage of any subsystem. The most specific kind first: many of these lines also
# start with BUG or WARNING.
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
        phase: the phase of the run in which it was printed, empty if it was not determined.
    """

    level: int
    time: float
    text: str
    phase: str = ""

    def __str__(self) -> str:
        return f"[{self.time:12.6f}] {self.text}"


@dataclass(frozen=True)
class KernelWarning:
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
    kernel/printk/printk.c, record_print_text()): a line without them is damaged, and may have been
    one that counts.

    Raises:
        DmesgError: the log is empty or cut off, or a line is malformed.
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


def kernel_warnings(
    records: Iterable[Record], expected: Sequence[re.Pattern[str]] = ()
) -> tuple[KernelWarning, ...]:
    """The records that count against the contract (rule 6).

    A record counts when it is a warning or worse of cxl, dax, hmem or kmem, or announces a
    breakage of any subsystem, unless one of `expected` is found in it. The lines of a trace, from
    its beginning to its end mark, are one record, and only its first line can be expected. A
    driver's message about a device within the trace counts by itself: an expected trace does not
    excuse it.
    """
    found: list[KernelWarning] = []
    for record, until in _with_whole_traces(tuple(records)):
        kind = splat(record.text) or ("warn" if _CUT in record.text else None)
        matched = record.text if kind is None else _first_line(record.text)
        if any(pattern.search(matched) for pattern in expected):
            continue
        if kind is not None:
            found.append(KernelWarning(replace(record, text=_uncut(record.text)), kind, until))
        elif record.level <= WARNING and _OURS.search(record.text):
            level = "warning" if record.level == WARNING else "error"
            found.append(KernelWarning(record, level, until))
    return tuple(found)


def _uncut(text: str) -> str:
    """A trace without its line `[ cut here ]`."""
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
            at += 1  # a trace without its end: its first line has the kind
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
    """Return whether a part of the guest is stuck after this line, so that nothing after it counts.

    A task that oopsed never releases its locks; a CPU that stalls does nothing else.
    """
    return splat(text) in _ENDS or "kernel BUG at" in text


@dataclass
class StepMarks:
    """The messages in the kernel's log that mark the beginning of each step.

    Attributes:
        token: a word that is unknown in the guest until the first mark is written.
        begun: the steps that were begun, in order.
    """

    token: str
    begun: list[str] = field(default_factory=list)

    def begin(self, step: str) -> str:
        """Record that a step begins now, and return its mark."""
        self.begun.append(step)
        return self.line(step)

    def line(self, step: str) -> str:
        """The mark of a step."""
        return f"harness: {step} [{self.token}]"

    def step_of(self, text: str) -> str | None:
        """The step that a message marks; None for other messages, imitated marks included."""
        end = f" [{self.token}]"
        if text.startswith("harness: ") and text.endswith(end):
            return text.removeprefix("harness: ").removesuffix(end)
        return None


def require_whole(records: Sequence[Record], marks: StepMarks, *, from_boot: bool) -> None:
    """Refuse a log that may lack a line which counts.

    The first mark is the oldest line that counts; the kernel drops its oldest lines first. Once the
    token is in the log, the guest has it, and could end a step early.

    Args:
        records: the whole log.
        marks: the marks that were written into it.
        from_boot: whether the boot counts too.

    Raises:
        DmesgError: its beginning is lost, or its marks are not those that were written.
    """
    found = [step for one in records if (step := marks.step_of(one.text)) is not None]
    if found != marks.begun:
        lost = [step for step in marks.begun if step not in found]
        raise DmesgError(
            f"it has lost the beginning of {lost[0]!r}"
            if lost
            else f"it has marks of {len(found)} steps, of {len(marks.begun)} that were begun"
        )
    if from_boot and not records[0].text.startswith("Linux version "):
        raise DmesgError(f"it has lost its beginning, and starts with {records[0].text[:60]!r}")


def in_phases(records: Sequence[Record], marks: StepMarks) -> tuple[Record, ...]:
    """Give each record its phase: KERNEL, USERSPACE, or the step begun last; marks are left out.

    A step's phase ends when the next step begins. Work that the kernel defers can therefore be
    logged in a later phase than the step that caused it.
    """
    phase = KERNEL
    found = []
    for record in records:
        step = marks.step_of(record.text)
        if step is not None:
            phase = step
            continue
        if phase == KERNEL and _FIRST_PROCESS.match(record.text):
            phase = USERSPACE
        found.append(replace(record, phase=phase))
    return tuple(found)


def without_marks(line: str) -> str:
    """Remove the harness's own marks from a line of the console."""
    return _MARK.sub("", line)
