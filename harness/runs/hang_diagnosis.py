# SPDX-License-Identifier: GPL-2.0-or-later
"""Diagnose an unresponsive guest: kernel hang, or unknown."""

from __future__ import annotations

import time

from harness.contract.blocked_tasks import (
    Task,
    blocked_tasks,
    names_the_drivers,
    parse_tasks,
    stuck,
)
from harness.core.deadline import Deadline
from harness.core.errors import (
    DeadlineExpiredError,
    GuestCrashedError,
    GuestLostError,
    HarnessError,
    MachineLostError,
)
from harness.guest.ssh import GuestShell
from harness.runs.boot import BootedGuest
from harness.runs.evidence import Evidence

# The kernel waits ten seconds for CPUs that do not stop, and only then writes to the console.
_NMI_SECONDS = 25.0
_TASKS_SECONDS = 15.0
_BETWEEN_SECONDS = 1.0

# Not ps: it reads command lines, for which a hanging task may hold the lock.
_TASKS = 'for p in /proc/[0-9]*; do read -r line < $p/stat && echo "$line"; done 2>/dev/null'
# Without CONFIG_STACKTRACE there is no stack, only the function that waits.
_STACK = "cat /proc/{pid}/stack 2>/dev/null || echo $(cat /proc/{pid}/wchan)"

StuckTasks = tuple[tuple[Task, tuple[str, ...]], ...]


def explain_silence(
    guest: BootedGuest,
    error: DeadlineExpiredError,
    evidence: Evidence,
    between: float = _BETWEEN_SECONDS,
) -> HarnessError:
    """Explain a step that does not end.

    If another shell of the guest answers, its tasks are examined: a stuck one means that the
    kernel hangs. Otherwise the guest gets an NMI, on which its kernel panics with a trace: if the
    trace contains the drivers under test, they hang. Anything else remains unknown.

    Args:
        guest: the guest.
        error: the expired deadline.
        evidence: gets the registers and the stuck tasks.
        between: seconds between two looks at the tasks.

    Returns:
        GuestCrashedError for a kernel that hangs, else an error that makes the run inconclusive.
    """
    try:
        guest.check()
        status = guest.machine.command("query-status")["status"]
        if status != "running":
            return MachineLostError(
                f"QEMU has stopped the guest ({status}): {error.message}",
                hint="internal-error: this accelerator cannot run it; try --accel tcg",
            )
        registers = guest.machine.command(
            "human-monitor-command", **{"command-line": "info registers -a"}
        )
        evidence.text("cpus.txt", registers)
        try:
            tasks = stuck_tasks(guest.shell, error.seconds, between)
        except (DeadlineExpiredError, GuestLostError):
            return _of_the_nmi(guest, error)
        return _of_the_tasks(guest, error, tasks, evidence) if tasks else error
    except (GuestCrashedError, GuestLostError, MachineLostError) as cause:
        return cause


def stuck_tasks(shell: GuestShell, seconds: float, between: float) -> StuckTasks:
    """The tasks that are stuck in the guest's kernel, each with its stack.

    Args:
        shell: a shell whose last command did not end.
        seconds: how long it has been waited for.
        between: seconds between two looks at the tasks.

    Raises:
        GuestLostError: the guest gives no other shell.
        DeadlineExpiredError: no reply in time.
    """
    deadline = Deadline(_TASKS_SECONDS, "another shell of the guest to list the tasks")
    with shell.beside(deadline) as second:
        before = parse_tasks(second.run(_TASKS, deadline).output)
        time.sleep(min(between, deadline.check()))
        after = parse_tasks(second.run(_TASKS, deadline).output)
        return tuple(
            (task, _stack(second, task, deadline)) for task in stuck(before, after, seconds)
        )


def _stack(shell: GuestShell, task: Task, deadline: Deadline) -> tuple[str, ...]:
    output = shell.run(_STACK.format(pid=task.pid), deadline).output
    return tuple(line.strip() for line in output.splitlines() if line.strip())


def _of_the_tasks(
    guest: BootedGuest, error: DeadlineExpiredError, tasks: StuckTasks, evidence: Evidence
) -> HarnessError:
    trace = tuple(
        line
        for task, stack in tasks
        for line in (f"task {task.name}:{task.pid} state:{task.state}", *stack)
    )
    if not any("+0x" in line for line in trace):
        # Without CONFIG_STACKTRACE only a panic shows the stacks of waiting tasks.
        trace = (*trace, *blocked_tasks(_panic_by_nmi(guest)))
    evidence.text("stuck_tasks.txt", "\n".join(trace) + "\n")
    names = ", ".join(f"{task.name}:{task.pid}" for task, _ in tasks)
    return _hang(
        guest,
        f"{names} did not go on in {error.seconds:g} s",
        "the stacks are in stuck_tasks.txt in the evidence",
        trace,
        ", ".join(sorted({task.name for task, _ in tasks})),
    )


def _of_the_nmi(guest: BootedGuest, error: DeadlineExpiredError) -> HarnessError:
    trace = _panic_by_nmi(guest)
    if not trace:
        return DeadlineExpiredError(
            f"{error.message}; the guest does not respond, not even to an NMI",
            hint="the state of its CPUs is in cpus.txt in the evidence",
        )
    hint = "the stacks of its CPUs are at the end of serial.log in the evidence"
    if not names_the_drivers(trace):
        return DeadlineExpiredError(
            f"{error.message}; the guest does not respond, and was not in the drivers under test",
            hint=hint,
        )
    return _hang(guest, "it responds only to an NMI", hint, trace)


def _hang(
    guest: BootedGuest, how: str, hint: str, trace: tuple[str, ...], tasks: str = ""
) -> GuestCrashedError:
    step = guest.shell.step
    during = f" (during {step})" if step else ""
    return GuestCrashedError(
        f"the guest's kernel hangs: {how}{during}",
        hint=hint,
        trace=trace,
        step=step,
        kind="hang",
        subject=tasks,
    )


def _panic_by_nmi(guest: BootedGuest) -> tuple[str, ...]:
    """Send an NMI, on which the kernel panics (unknown_nmi_panic); returns the panic's trace."""
    guest.machine.command("inject-nmi")
    guest.watch.await_panic(_NMI_SECONDS)
    if guest.watch.panicked:
        guest.machine.console.await_closed(_NMI_SECONDS)  # the stacks come last
    return guest.watch.trace
