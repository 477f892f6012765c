# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of a guest's life after boot: commands over SSH, marked in the kernel's log."""

from __future__ import annotations

import errno
import os
import secrets
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from harness.contract.module_holders import parse_holders
from harness.contract.observation import CxlRegion
from harness.contract.result import Finding
from harness.core.deadline import Deadline
from harness.core.errors import GuestLostError, MomentMissedError
from harness.guest.post_boot_plan import Command, RegionMakeup, makeup_line, read_makeup
from harness.guest.ssh import GuestCommand, GuestShell

_STEP_SECONDS = 60.0
_GARBLED_HINT = "see serial.log in the evidence, and run it again"


@dataclass(frozen=True)
class StepDone:
    """What a step did.

    Attributes:
        transcript: its commands and what they printed.
        problem: the first command that did not end as it must, or None.
    """

    transcript: str
    problem: Finding | None


def run_commands(shell: GuestShell, commands: Sequence[Command]) -> StepDone:
    """Run the commands of a step, up to the first that ends otherwise than it must.

    Raises:
        GuestLostError: the guest is gone.
        DeadlineExpiredError: a command does not end.
    """
    transcript = []
    for command in commands:
        deadline = Deadline(_STEP_SECONDS, f"{command.title!r} to end in the guest")
        done = shell.run(f"{shell.begin(command.title)}; {command.line}", deadline)
        transcript.append(_told(command, done.status, done.output))
        problem = _problem(command, done.status, done.output)
        if problem is not None:
            return StepDone("".join(transcript), problem)
    return StepDone("".join(transcript), None)


def run_while_pending(shell: GuestShell, commands: Sequence[Command]) -> StepDone:
    """Run commands in one go, while the kernel's deferred work is held up.

    Raises:
        GuestLostError: the guest is gone, or a command ended otherwise than it must because the
            guest could not hold the work up.
        DeadlineExpiredError: the commands do not end.
    """
    token = secrets.token_hex(16)
    deadline = Deadline(_STEP_SECONDS, "steps with held-up work to end in the guest")
    lines = " ".join(shlex.quote(f"{shell.begin(one.title)}; {one.line}") for one in commands)
    done = shell.run(f"while_pending {token} {lines}", deadline)
    *outputs, end = done.output.split(f"{token} ")
    if len(outputs) != len(commands) + 1 or not end.startswith(("held", "not held")):
        raise GuestLostError(
            f"the guest could not hold up its deferred work: {done.output[-500:].strip()!r}",
            hint="see serial.log in the evidence; can the guest run realtime programs?",
        )
    transcript, problem, printed = [], None, outputs[0]
    for command, after in zip(commands, outputs[1:], strict=True):
        status, _, more = after.partition("\n")
        if not status.isdecimal():
            raise GuestLostError(
                f"the guest gives {status[:40]!r} for a status", hint=_GARBLED_HINT
            )
        transcript.append(_told(command, int(status), printed))
        problem = problem or _problem(command, int(status), printed)
        printed = more
    if problem is not None and not end.startswith("held"):
        # Nothing was pending any more, so the kernel was right.
        raise MomentMissedError(
            "the kernel's deferred work was not pending during the steps",
            hint="use a less busy host; a kernel that does not defer work cannot be judged here",
        )
    return StepDone("".join(transcript), problem)


def read_module_holders(shell: GuestShell) -> dict[str, tuple[str, ...]]:
    """The loaded modules, each with the modules that use it.

    Raises:
        GuestLostError: the guest is gone, or has no such list.
        DeadlineExpiredError: it did not come in time.
    """
    done = _ask(shell, "cat /proc/modules", "the guest's list of modules")
    try:
        return parse_holders(done.output)
    except ValueError as error:
        raise GuestLostError(str(error), hint="see serial.log in the evidence") from None


def read_region_makeup(shell: GuestShell, region: CxlRegion) -> RegionMakeup | None:
    """What it takes to create a region again; None of one that is not assembled.

    Raises:
        GuestLostError: the guest is gone, or `cxl` says something else.
        DeadlineExpiredError: it did not come in time.
    """
    if region.driver is None:
        return None  # cxl does not list it
    done = _ask(shell, makeup_line(region.name), f"the make-up of {region.name}")
    try:
        return read_makeup(done.output)
    except ValueError as error:
        raise GuestLostError(str(error), hint="does the guest's cxl know this region?") from None


def _ask(shell: GuestShell, line: str, what: str) -> GuestCommand:
    return shell.run(line, Deadline(_STEP_SECONDS, what))


def _told(command: Command, status: int, output: str) -> str:
    body = f"{output.strip()}\n" if output.strip() else ""
    return f"$ {command.line}\n{body}status {status}\n"


def _problem(command: Command, status: int, output: str) -> Finding | None:
    text = _problem_text(command, status, output)
    if text is None:
        return None
    subject = f"{command.title}: {' '.join(output.split())}"
    return Finding("step", text, kind="command_failed", subject=subject)


def _problem_text(command: Command, status: int, output: str) -> str | None:
    said = " ".join(output.split())
    if command.fails is None:
        if status == 0:
            return None
        return f"{command.title} ended with status {status}: {said}"
    if status == 0:
        return f"{command.title}: it succeeded"
    message = os.strerror(getattr(errno, command.fails))
    if message in output:
        return None
    return f"{command.title}: it failed otherwise, with status {status}: {said}"
