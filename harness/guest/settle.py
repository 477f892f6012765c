# SPDX-License-Identifier: GPL-2.0-or-later
"""What a scenario does in its guest: load modules, and observe once ownership has settled."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.contract.iomem import Iomem, IomemError, parse_iomem
from harness.contract.observed_owners import online
from harness.contract.result import Finding
from harness.core.deadline import Deadline
from harness.core.errors import GuestLostError
from harness.core.kernel_modules import MODPROBE, module_name
from harness.guest.ssh import GuestShell
from harness.platform.memory_range import MemoryRange

_LOAD_SECONDS = 60.0
_POLL_SECONDS = 0.02
_LEAK_SECONDS = 300.0
# kmemleak leaves out what is younger than 5 s, and what has changed since the scan before.
_LEAKS = (
    "mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null; cd /sys/kernel/debug && sleep 6 && "
    "echo scan > kmemleak && echo scan > kmemleak && cat kmemleak"
)

# Whatever a judgement rests on shows here when it changes: devices by the names of their mappings
# and drivers, memory blocks that go online by the total of RAM.
# iomem first and alone, so that it can be parsed; then what else moves while ownership settles.
_BORDER = "==\n"
_STATE = (
    "cat /proc/iomem; echo ==; echo /sys/bus/dax/devices/*/mapping* /sys/bus/dax/drivers/*/* "
    "/sys/bus/cxl/devices/* /sys/bus/cxl/drivers/*/*; read -r total </proc/meminfo; echo $total; "
    "dmesg -r -s 512"
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

    def slower(self, factor: float) -> Settling:
        """For a guest that takes `factor` times as long."""
        return Settling(self.done, self.otherwise * factor, self.limit * factor)


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


def load_module(shell: GuestShell, name: str) -> Finding | None:
    """Load a module and its dependencies; the failure, or None.

    Raises:
        GuestLostError: the guest is gone.
        DeadlineExpiredError: the module's initialisation does not return.
    """
    deadline = Deadline(_LOAD_SECONDS, f"modprobe {name} to end in the guest")
    mark = shell.begin(f"modprobe {name}")
    done = shell.run(f"{mark}; {MODPROBE} {shlex.quote(name)}", deadline)
    if done.status == 0:
        return None
    return Finding(
        "step",
        f"modprobe {name} ended with status {done.status}: {done.output.strip()}",
        kind="module_not_loaded",
        subject=f"{name}: {done.output.strip()}",
    )


def scan_for_leaks(shell: GuestShell) -> str:
    """Let the guest's kmemleak look for leaks, which it says in the log, and return its list.

    Raises:
        GuestLostError: the guest is gone, or its kernel has no kmemleak after all.
        DeadlineExpiredError: the scan does not end.
    """
    done = shell.run(_LEAKS, Deadline(_LEAK_SECONDS, "kmemleak to scan the guest's memory"))
    if done.status != 0:
        raise GuestLostError(
            f"the guest's memory cannot be searched for leaks: {done.output.strip()}",
            hint="did kmemleak turn itself off? see dmesg in the evidence",
        )
    return done.output


def observe_settled(
    shell: GuestShell,
    wanted_online: tuple[MemoryRange, ...],
    settling: Settling,
    observe: Callable[[], dict[str, str]],
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, str]:
    """Observe the guest once nothing changes any more: not before, while or after it is observed.

    What is watched is iomem, the dax and cxl devices and the kernel log. Once all memory that
    should be online is, the observation itself takes up the time of watching.

    Args:
        shell: the guest.
        wanted_online: the ranges that should become System RAM, empty when none should.
        settling: for how long nothing must change.
        observe: gives the sections of an observation.
        clock: gives seconds.

    Raises:
        DeadlineExpiredError: the guest never stopped changing.
        GuestLostError: the guest is gone.
    """
    deadline = Deadline(settling.limit, "the owners of memory in the guest to stop changing")
    sections: dict[str, str] | None = None
    before, since = "", clock()
    while True:
        # What was read between `asked` and now was so at `asked` at the earliest.
        asked = clock()
        state = shell.run(_STATE, deadline).output
        iomem = _whole_iomem(state)
        if state != before or iomem is None:
            before, since, sections = state, asked, None
        elif sections is not None and asked - since >= settling.done:
            if sections["iomem"] == state.partition(_BORDER)[0]:
                return sections
            sections = None
        # Not right after a change: the next one would only make the observation worthless.
        if iomem is not None and sections is None and since < asked:
            done = bool(wanted_online) and online(iomem, wanted_online)
            if done or asked - since >= settling.otherwise:
                sections = observe()
                continue
        time.sleep(min(_POLL_SECONDS, deadline.check()))


def _whole_iomem(state: str) -> Iomem | None:
    """The iomem in a state; None when it changed while it was read.

    The kernel holds no lock from one piece of /proc/iomem to the next.
    """
    try:
        return parse_iomem(state.partition(_BORDER)[0])
    except IomemError:
        return None
