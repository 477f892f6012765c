# SPDX-License-Identifier: GPL-2.0-or-later
"""The phases of a kernel's log: the boot, and the steps of a scenario, which leave marks in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.model.dmesg import Record

KERNEL = "boot"
"""Before the first process of userspace."""
USERSPACE = "start of userspace"
"""From the first process until the scenario's first step."""
BEFORE_STEPS = (KERNEL, USERSPACE)

# Linux, init/main.c, run_init_process().
_FIRST_PROCESS = re.compile(r"Run \S+ as init process")


@dataclass(frozen=True)
class StepMarks:
    """The lines by which steps are found in the kernel's log.

    Attributes:
        token: a word that nothing in the guest can know before the first mark is written.
    """

    token: str

    def line(self, step: str) -> str:
        """The message that says that a step begins."""
        return f"harness: {step} [{self.token}]"

    def step_of(self, text: str) -> str | None:
        """The step that a message marks; None for every other message, imitations too."""
        end = f" [{self.token}]"
        if text.startswith("harness: ") and text.endswith(end):
            return text.removeprefix("harness: ").removesuffix(end)
        return None


def in_phases(records: Sequence[Record], marks: StepMarks) -> tuple[Record, ...]:
    """The records, each with its phase: KERNEL, USERSPACE, or the step that had begun last.

    A step's phase ends when the next step begins: what the kernel puts off to a work queue can
    fall into a later phase than the step that caused it.
    """
    phase = KERNEL
    found = []
    for record in records:
        step = marks.step_of(record.text)
        if step is not None:
            phase = step
        elif phase == KERNEL and _FIRST_PROCESS.match(record.text):
            phase = USERSPACE
        found.append(replace(record, phase=phase))
    return tuple(found)
