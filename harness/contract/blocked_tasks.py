# SPDX-License-Identifier: GPL-2.0-or-later
"""The tasks of a guest, and those that are blocked in the kernel."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TICKS_PER_SECOND = 100
"""USER_HZ, the unit of times in /proc/PID/stat."""

_STAT = re.compile(r"(?P<pid>\d+) \((?P<name>.*)\) (?P<state>[A-Za-z]) (?P<rest>[-\d ]+)")
# proc(5): stime is the 15th field, the twelfth after the state.
_STIME = 11

_BLOCKED = re.compile(r"\btask:\S+ +state:D ")

# The code under test in a stack: its functions, or its modules.
_OURS = re.compile(
    r"\b_*(?:cxl|dax|hmem|dev_dax|kmem)_\w+\+0x|\[(?:cxl_\w+|dax\w*|dax_hmem|device_dax|kmem)[\s\]]"
)


@dataclass(frozen=True)
class Task:
    """A task at one moment.

    Attributes:
        pid: its number.
        name: such as `modprobe`.
        state: of proc(5): `D` waits in the kernel and cannot be woken by a signal, `R` runs.
        ticks: time that it has spent in the kernel, in TICKS_PER_SECOND.
    """

    pid: int
    name: str
    state: str
    ticks: int


def parse_tasks(text: str) -> tuple[Task, ...]:
    """Read lines of /proc/PID/stat; other lines are left out."""
    found = []
    for line in text.splitlines():
        match = _STAT.fullmatch(line.strip())
        words = match["rest"].split() if match else []
        if match and len(words) > _STIME:
            found.append(Task(int(match["pid"]), match["name"], match["state"], int(words[_STIME])))
    return tuple(found)


def stuck(before: Iterable[Task], after: Iterable[Task], seconds: float) -> tuple[Task, ...]:
    """Return the tasks that wait in the kernel without progress, or never leave it.

    Args:
        before: the tasks at one moment.
        after: the tasks a moment later.
        seconds: for how long the guest has not answered, 0 if unknown.
    """
    then = {task.pid: task for task in before}
    found = []
    for task in after:
        was = then.get(task.pid)
        if was is None or was.name != task.name:
            continue
        waits = was.state == task.state == "D" and was.ticks == task.ticks
        runs = seconds > 0 and was.state == task.state == "R"
        spins = runs and task.ticks >= seconds * TICKS_PER_SECOND / 2
        if waits or spins:
            found.append(task)
    return tuple(found)


def names_the_drivers(trace: Sequence[str]) -> bool:
    """Return whether cxl, dax, hmem or kmem is in a trace, the modules linked in aside."""
    return any(_OURS.search(line) for line in trace if "Modules linked in" not in line)


def blocked_tasks(trace: Sequence[str]) -> tuple[str, ...]:
    """The part of a panic's trace that panic_print=0x80 adds; the whole trace without it."""
    begins = (at for at, line in enumerate(trace) if _BLOCKED.search(line))
    return tuple(trace[next(begins, 0) :])
