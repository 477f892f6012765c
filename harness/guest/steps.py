# SPDX-License-Identifier: GPL-2.0-or-later
"""What a scenario does in its guest: load modules, and wait until ownership has settled."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.errors import GuestLostError
from harness.guest.ssh import GuestShell
from harness.model.attribution import online
from harness.model.iomem import IomemError, parse_iomem
from harness.model.kernel_modules import module_name
from harness.model.memory_range import MemoryRange

_LOAD_SECONDS = 60.0
_POLL_SECONDS = 0.02

# iomem first and alone, so that it can be parsed; then what else moves while ownership settles.
_STATE = (
    "cat /proc/iomem; echo ==; echo /sys/bus/dax/devices/* /sys/bus/dax/drivers/*/* "
    "/sys/bus/cxl/devices/*; dmesg -r -s 512"
)


@dataclass(frozen=True)
class Settling:
    """How long nothing must change before ownership counts as settled, in seconds.

    Attributes:
        done: once all memory that should be online is.
        otherwise: while some of it is not, or none should be: the kernel's deferred work may
            still be waiting for something.
        limit: after which the guest is given up.
    """

    done: float = 0.15
    otherwise: float = 2.0
    limit: float = 120.0


def take_away_modules(shell: GuestShell, names: Sequence[str]) -> None:
    """Remove module files, so that neither a command nor the kernel itself can load them.

    Raises:
        GuestLostError: the guest is gone, or one of them is already loaded.
        DeadlineExpiredError: the command does not end.
    """
    if not names:
        return
    deadline = Deadline(_LOAD_SECONDS, "module files to be removed in the guest")
    files = " ".join(shlex.quote(f"{module_name(name)}.ko") for name in names)
    done = shell.run(f"(cd /lib/modules/*/ && rm {files})", deadline)
    if done.status != 0:
        raise GuestLostError(
            f"the guest's modules cannot be taken away: {done.output.strip()}",
            hint="guest.missing must name modules that this kernel has as files",
        )


def load_module(shell: GuestShell, name: str) -> str | None:
    """Load a module and what it depends on; what went wrong, or None.

    Raises:
        GuestLostError: the guest is gone.
        DeadlineExpiredError: the module's initialisation does not return.
    """
    deadline = Deadline(_LOAD_SECONDS, f"modprobe {name} to end in the guest")
    mark = shlex.quote(f"<6>harness: modprobe {name}")
    done = shell.run(f"echo {mark} > /dev/kmsg; modprobe {shlex.quote(name)}", deadline)
    if done.status == 0:
        return None
    return f"modprobe {name} ended with status {done.status}: {done.output.strip()}"


def await_settled(
    shell: GuestShell,
    wanted_online: tuple[MemoryRange, ...],
    settling: Settling,
    deadline: Deadline,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Wait until iomem, the dax and cxl devices and the kernel log have stopped changing.

    Args:
        shell: the guest.
        wanted_online: the ranges that should become System RAM, empty when none should.
        settling: for how long nothing must change.
        deadline: by when they must have stopped.
        clock: gives seconds.

    Returns:
        The text of /proc/iomem that has stopped changing.

    Raises:
        DeadlineExpiredError: they never stopped.
        GuestLostError: the guest is gone.
    """
    before = None
    since = clock()
    while True:
        asked = clock()
        state = shell.run(_STATE, deadline).output
        if state != before:
            before, since = state, asked
        text = state.partition("==\n")[0]
        try:
            iomem = parse_iomem(text)
        except IomemError:
            # Read in pieces while it changed: the kernel holds no lock from one to the next.
            before = None
        else:
            done = bool(wanted_online) and online(iomem, wanted_online)
            # The state was read between `asked` and now; only what is certain counts.
            if asked - since >= (settling.done if done else settling.otherwise):
                return text
        time.sleep(min(_POLL_SECONDS, deadline.check()))
