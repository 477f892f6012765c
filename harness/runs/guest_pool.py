# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the guests of one prepared machine come from: each booted, or restored after one boot."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from harness.contract.preflight import early_problems
from harness.contract.result import RunResult, Start, Verdict
from harness.core.errors import GuestCrashedError, HarnessError, InconclusiveError, PreflightError
from harness.guest.observe import early_messages
from harness.runs.boot import BootedGuest, booted_guest
from harness.runs.evidence import Evidence
from harness.runs.prepare import Host, Prepared, in_use
from harness.runs.timings import Timings
from harness.runs.warm_start import (
    TRIED_QEMU,
    AskedStart,
    WarmMachine,
    warm_machine,
    warm_obstacle,
)

_FAILED_STARTS = (InconclusiveError, GuestCrashedError)


def choose_start(asked: AskedStart, prepared: Prepared, runs: int) -> tuple[Start, str]:
    """How guests should start, and one line that says why it is not as asked, or nothing.

    Args:
        asked: what the user wants; `auto` saves a machine only where it is used more than once.
        prepared: what is booted.
        runs: how many guests there will be.
    """
    if asked == "cold" or (asked == "auto" and runs < 2):
        return "cold", ""
    obstacle = warm_obstacle(prepared)
    if not obstacle:
        return "warm", ""
    return "cold", f"starting cold: {obstacle}" if asked == "warm" else ""


class GuestSource:
    """Starts guests, warm as long as that works. Made by `guest_source`; for any thread."""

    def __init__(
        self, host: Host, prepared: Prepared, boot_seconds: float, warm: WarmMachine | None
    ) -> None:
        self._host = host
        self._prepared = prepared
        self._boot_seconds = boot_seconds
        self._lock = threading.Lock()
        self._warm = warm

    @property
    def start(self) -> Start:
        """How the next guest will start."""
        with self._lock:
            return "warm" if self._warm else "cold"

    @contextmanager
    def guest(
        self, evidence: Evidence, timings: Timings, start: Start = "warm"
    ) -> Iterator[BootedGuest]:
        """A guest that has done nothing since its boot; its `start` says how it came to be.

        A warm start that fails is no verdict: this guest and all after it are booted.

        Args:
            evidence: where it is written down.
            timings: counts the phases.
            start: `cold` for one that must be booted.

        Raises:
            InconclusiveError: the guest could not be booted, see `booted_guest`.
        """
        with ExitStack() as stack:
            with self._lock:
                warm = self._warm if start == "warm" else None
            guest = self._restored(stack, warm, evidence, timings) if warm else None
            yield guest or stack.enter_context(
                booted_guest(self._host, self._prepared, evidence, timings, self._boot_seconds)
            )

    def _restored(
        self, stack: ExitStack, warm: WarmMachine, evidence: Evidence, timings: Timings
    ) -> BootedGuest | None:
        try:
            return stack.enter_context(warm.guest(evidence, timings))
        except _FAILED_STARTS as error:
            with self._lock:
                self._warm = None
            evidence.json("start.json", {"start": "cold", "why": error.message})
            self._host.say_once(_given_up(error))
            return None


@contextmanager
def guest_source(
    host: Host,
    prepared: Prepared,
    new_evidence: Callable[[], Evidence],
    boot_seconds: float,
    asked: AskedStart,
    runs: int,
) -> Iterator[GuestSource]:
    """Guests of one machine, for the length of the block.

    Where they start warm, the machine is booted and saved here. Whatever goes wrong with that is
    said, and the guests are booted instead.

    Args:
        host: this machine.
        prepared: what is booted.
        new_evidence: makes a folder for what is booted beside the guests.
        boot_seconds: how long a guest may take to become ready.
        asked: how guests should start.
        runs: how many guests there will be.

    Raises:
        UsageError: the kernel has just been removed from the store.
    """
    start, why = choose_start(asked, prepared, runs)
    host.say_once(why)
    with ExitStack() as stack:
        # Every restored QEMU reads the kernel's image once more.
        stack.enter_context(in_use(prepared.bootable))
        warm = None
        if start == "warm":
            try:
                warm = stack.enter_context(
                    warm_machine(host, prepared, new_evidence(), Timings(), boot_seconds)
                )
                if host.qemu.version[:2] not in TRIED_QEMU:
                    _try_out(warm, prepared, new_evidence())
            except _FAILED_STARTS as error:
                host.say_once(_given_up(error))
                warm = None
        yield GuestSource(host, prepared, boot_seconds, warm)


def confirmed(host: Host, result: RunResult, again: Callable[[], RunResult]) -> RunResult:
    """The result to report: what did not pass in a restored guest is done again in a booted one.

    Args:
        host: this machine.
        result: of the first run.
        again: does the run once more, cold.
    """
    if result.start != "warm" or result.verdict is Verdict.PASS:
        return result
    cold = again()
    if cold.verdict is not result.verdict:
        host.progress.note(
            f"{result.scenario} was {result.verdict.name} warm ({result.evidence}) and "
            f"{cold.verdict.name} cold: the cold run counts"
        )
    return cold


def _try_out(warm: WarmMachine, prepared: Prepared, evidence: Evidence) -> None:
    """Restore a guest and look at it.

    Raises:
        InconclusiveError: it is not the one that was saved.
    """
    with warm.guest(evidence, Timings()) as guest:
        problems = early_problems(early_messages(guest.shell), prepared.state, prepared.layout)
        if problems:
            raise PreflightError("; ".join(problems), hint="use --start cold")


def _given_up(error: HarnessError) -> str:
    return f"warm start does not work here, starting cold: {error.message}"
