# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a guest does not answer: its kernel hangs, or nobody can say."""

from __future__ import annotations

from harness.contract.blocked_tasks import blocked_tasks, names_the_drivers
from harness.core.errors import (
    DeadlineExpiredError,
    GuestCrashedError,
    GuestLostError,
    HarnessError,
    MachineLostError,
)
from harness.guest.blocked_tasks import stuck_tasks
from harness.runs.boot import BootedGuest
from harness.runs.evidence import Evidence

# The kernel gives CPUs that do not stop ten seconds, and only then writes to the console.
_NMI_SECONDS = 25.0


def explain_silence(
    guest: BootedGuest, error: DeadlineExpiredError, evidence: Evidence
) -> HarnessError:
    """What a step that does not end means.

    A guest that answers otherwise is asked for the tasks that its kernel keeps: with one, the
    kernel hangs. A guest that answers nothing gets an NMI, of which its kernel panics with a trace:
    with the drivers under test in it, they hang. Else nobody can say.

    Args:
        guest: the guest.
        error: what was waited for.
        evidence: gets what the CPUs are at.

    Returns:
        GuestCrashedError for a kernel that hangs, else what makes the run inconclusive.
    """
    try:
        guest.check()
        status = guest.machine.command("query-status")["status"]
        if status != "running":
            return MachineLostError(
                f"QEMU has stopped the guest ({status}) while {error.message}",
                hint="internal-error: this accelerator cannot run it; try --accel tcg",
            )
        registers = guest.machine.command(
            "human-monitor-command", **{"command-line": "info registers -a"}
        )
        evidence.text("cpus.txt", registers)
        return _ask_the_guest(guest, error, evidence)
    except (GuestCrashedError, GuestLostError, MachineLostError) as found:
        return found


def _ask_the_guest(
    guest: BootedGuest, error: DeadlineExpiredError, evidence: Evidence
) -> HarnessError:
    during = f" (during {guest.shell.step})" if guest.shell.step else ""
    try:
        tasks = stuck_tasks(guest.shell, error.seconds)
    except (DeadlineExpiredError, GuestLostError):
        return _ask_the_kernel(guest, error, during)
    if not tasks:
        return error
    trace = tuple(
        line
        for task, stack in tasks
        for line in (f"task {task.name}:{task.pid} state:{task.state}", *stack)
    )
    if not any("+0x" in line for line in trace):
        # Without CONFIG_STACKTRACE only a panic shows the stacks of tasks that wait.
        trace = (*trace, *blocked_tasks(_panic_of_nmi(guest)))
    evidence.text("stuck_tasks.txt", "\n".join(trace) + "\n")
    names = ", ".join(f"{task.name}:{task.pid}" for task, _ in tasks)
    return GuestCrashedError(
        f"the guest's kernel hangs: {names} did not go on in {error.seconds:g} s{during}",
        hint="their stacks are in stuck_tasks.txt in the evidence",
        trace=trace,
        step=guest.shell.step,
        kind="hang",
        subject=", ".join(sorted({task.name for task, _ in tasks})),
    )


def _ask_the_kernel(guest: BootedGuest, error: DeadlineExpiredError, during: str) -> HarnessError:
    trace = _panic_of_nmi(guest)
    if not trace:
        return DeadlineExpiredError(
            f"{error.message}; the guest answers nothing, not even an NMI",
            hint="what its CPUs were at is in cpus.txt in the evidence",
        )
    if not names_the_drivers(trace):
        return DeadlineExpiredError(
            f"{error.message}; the guest answers nothing, and was not in the drivers under test",
            hint="what its CPUs were at is at the end of serial.log in the evidence",
        )
    return GuestCrashedError(
        f"the guest's kernel hangs: it answers nothing but an NMI{during}",
        hint="what its CPUs were at is at the end of serial.log in the evidence",
        trace=trace,
        step=guest.shell.step,
        kind="hang",
    )


def _panic_of_nmi(guest: BootedGuest) -> tuple[str, ...]:
    """Send an NMI, of which the kernel panics (it has unknown_nmi_panic), and what it then says."""
    guest.machine.command("inject-nmi")
    guest.watch.await_panic(_NMI_SECONDS)
    if guest.watch.panicked:
        guest.machine.console.await_closed(_NMI_SECONDS)  # the stacks come last
    return guest.watch.trace
