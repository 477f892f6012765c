# SPDX-License-Identifier: GPL-2.0-or-later
"""Observe a guest once ownership has settled, and scan it for leaks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from harness.contract.iomem import Iomem, IomemError, parse_iomem
from harness.contract.observed_owners import online
from harness.core.deadline import Deadline
from harness.core.errors import GuestLostError
from harness.guest.ssh import GuestShell
from harness.platform.memory_range import MemoryRange

_POLL_SECONDS = 0.02
_LEAK_SECONDS = 300.0
# kmemleak ignores objects younger than 5 s, and those that changed since the previous scan.
_LEAKS = (
    "mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null; cd /sys/kernel/debug && sleep 6 && "
    "echo scan > kmemleak && echo scan > kmemleak && cat kmemleak"
)

# Every change that matters for a judgement shows here: devices by the names of their mappings and
# drivers, memory blocks that go online by the total of RAM. iomem comes first, to be parsed.
_BORDER = "==\n"
_STATE = (
    "cat /proc/iomem; echo ==; echo /sys/bus/dax/devices/*/mapping* /sys/bus/dax/drivers/*/* "
    "/sys/bus/cxl/devices/* /sys/bus/cxl/drivers/*/*; read -r total </proc/meminfo; echo $total; "
    "dmesg -r -s 512"
)


@dataclass(frozen=True)
class Settling:
    """Seconds without a change until ownership counts as settled.

    Attributes:
        done: once all expected memory is online.
        otherwise: while some of it is offline, or none is expected: deferred work of the kernel
            may be pending.
        limit: after which the guest has failed.
    """

    done: float = 0.15
    otherwise: float = 2.0
    limit: float = 120.0

    def slower(self, factor: float) -> Settling:
        """The same for a guest that is `factor` times as slow."""
        return Settling(self.done, self.otherwise * factor, self.limit * factor)


def scan_for_leaks(shell: GuestShell) -> str:
    """Let the guest's kmemleak scan for leaks, which it reports in the log, and return its list.

    Raises:
        GuestLostError: the guest is gone, or kmemleak is off.
        DeadlineExpiredError: the scan does not end.
    """
    done = shell.run(_LEAKS, Deadline(_LEAK_SECONDS, "kmemleak to scan the guest's memory"))
    if done.status != 0:
        raise GuestLostError(
            f"cannot scan the guest's memory for leaks: {done.output.strip()}",
            hint="has kmemleak turned itself off? see dmesg in the evidence",
        )
    return done.output


def observe_settled(
    shell: GuestShell,
    expected_online: tuple[MemoryRange, ...],
    settling: Settling,
    observe: Callable[[], dict[str, str]],
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, str]:
    """Observe the guest once nothing changes: not before, during or after the observation.

    It watches iomem, the dax and cxl devices and the kernel log. Once all expected memory is
    online, the time of the observation counts as watching.

    Args:
        shell: the guest.
        expected_online: the ranges that should become System RAM.
        settling: how long nothing must change.
        observe: returns the sections of an observation.
        clock: returns seconds.

    Raises:
        DeadlineExpiredError: the guest never stopped changing.
        GuestLostError: the guest is gone.
    """
    deadline = Deadline(settling.limit, "the owners of memory in the guest to stop changing")
    sections: dict[str, str] | None = None
    before, since = "", clock()
    while True:
        # The state is at most as old as `begun`.
        begun = clock()
        state = shell.run(_STATE, deadline).output
        iomem = _whole_iomem(state)
        if state != before or iomem is None:
            before, since, sections = state, begun, None
        elif sections is not None and begun - since >= settling.done:
            if sections["iomem"] == state.partition(_BORDER)[0]:
                return sections
            sections = None
        # Not right after a change: another one would invalidate the observation.
        if iomem is not None and sections is None and since < begun:
            done = bool(expected_online) and online(iomem, expected_online)
            if done or begun - since >= settling.otherwise:
                sections = observe()
                continue
        time.sleep(min(_POLL_SECONDS, deadline.check()))


def _whole_iomem(state: str) -> Iomem | None:
    """The iomem in a state; None when it changed while it was read.

    The kernel holds no lock between two reads of /proc/iomem.
    """
    try:
        return parse_iomem(state.partition(_BORDER)[0])
    except IomemError:
        return None
