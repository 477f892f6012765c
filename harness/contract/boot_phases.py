# SPDX-License-Identifier: GPL-2.0-or-later
"""The phases of a kernel's log: the boot, and the steps of a scenario, which leave marks in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from harness.contract.dmesg import DmesgError, Record

KERNEL = "boot"
"""Before the first process of userspace."""
USERSPACE = "start of userspace"
"""From the first process until the scenario's first step."""
BEFORE_STEPS = (KERNEL, USERSPACE)

# Linux, init/main.c, run_init_process().
_FIRST_PROCESS = re.compile(r"Run \S+ as init process")
# On the console a panic can cut off the word at a mark's end.
_MARK = re.compile(r"harness: .*? \[[0-9a-f]{1,32}\]?|^\[harness: .*\]$")


@dataclass
class StepMarks:
    """The lines by which steps are found in the kernel's log.

    Attributes:
        token: a word that nothing in the guest can know before the first mark is written.
        begun: the steps that were begun, in order.
    """

    token: str
    begun: list[str] = field(default_factory=list)

    def begin(self, step: str) -> str:
        """The message to be written when a step begins, which is now."""
        self.begun.append(step)
        return self.line(step)

    def line(self, step: str) -> str:
        """The message that says that a step begins."""
        return f"harness: {step} [{self.token}]"

    def step_of(self, text: str) -> str | None:
        """The step that a message marks; None for every other message, imitations too."""
        end = f" [{self.token}]"
        if text.startswith("harness: ") and text.endswith(end):
            return text.removeprefix("harness: ").removesuffix(end)
        return None


def require_whole(records: Sequence[Record], marks: StepMarks, *, from_boot: bool) -> None:
    """Refuse a log that may lack a line which counts.

    The first mark is the oldest line that counts; the kernel drops its oldest lines first. Once the
    word of the marks is in the log, the guest knows it, and could end a step that it is in.

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
    """The kernel's records, each with its phase: KERNEL, USERSPACE, or the step begun last.

    The marks are left out, so that none becomes part of a trace that it falls into.
    A step's phase ends when the next step begins: what the kernel puts off to a work queue can
    fall into a later phase than the step that caused it.
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
    """A line of the console without the lines that the harness itself writes there."""
    return _MARK.sub("", line)
