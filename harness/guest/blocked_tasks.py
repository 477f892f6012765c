# SPDX-License-Identifier: GPL-2.0-or-later
"""Asking a guest whose command does not end what it hangs on, by another shell."""

from __future__ import annotations

import time
from collections.abc import Callable

from harness.contract.blocked_tasks import Task, parse_tasks, stuck
from harness.core.deadline import Deadline
from harness.guest.ssh import GuestShell

_SECONDS = 15.0
_BETWEEN_SECONDS = 1.0

# Not ps: it reads command lines, for which a task that hangs may hold the lock.
_TASKS = 'for p in /proc/[0-9]*; do read -r line < $p/stat && echo "$line"; done 2>/dev/null'
# Without CONFIG_STACKTRACE there is no stack, only the function that waits.
_STACK = "cat /proc/{pid}/stack 2>/dev/null || echo $(cat /proc/{pid}/wchan)"


def stuck_tasks(
    shell: GuestShell, seconds: float, sleep: Callable[[float], None] = time.sleep
) -> tuple[tuple[Task, tuple[str, ...]], ...]:
    """The tasks that the guest's kernel does not let go on, each with its stack.

    Args:
        shell: a shell whose last command did not end.
        seconds: for how long that was waited for.
        sleep: waits.

    Raises:
        GuestLostError: the guest gives no other shell.
        DeadlineExpiredError: it does not answer.
    """
    deadline = Deadline(_SECONDS, "another shell of the guest to say what it hangs on")
    with shell.beside(deadline) as other:
        before = parse_tasks(other.run(_TASKS, deadline).output)
        sleep(min(_BETWEEN_SECONDS, deadline.check()))
        after = parse_tasks(other.run(_TASKS, deadline).output)
        return tuple(
            (task, _stack(other, task, deadline)) for task in stuck(before, after, seconds)
        )


def _stack(shell: GuestShell, task: Task, deadline: Deadline) -> tuple[str, ...]:
    output = shell.run(_STACK.format(pid=task.pid), deadline).output
    return tuple(line.strip() for line in output.splitlines() if line.strip())
