# SPDX-License-Identifier: GPL-2.0-or-later
"""Start the guests of one prepared machine: boot each, or boot one, save it and restore copies.

The steps of a scenario begin after the boot, so guests that differ only in their steps can share
one boot.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from harness.contract.preflight import early_problems
from harness.contract.result import RunResult, Start, Verdict
from harness.core.errors import GuestCrashedError, HarnessError, InconclusiveError, PreflightError
from harness.core.progress import Progress
from harness.guest.observe import early_messages
from harness.machine.console_watch import CrashWatch
from harness.machine.snapshot import SavedMachine, restore_machine, save_machine
from harness.runs.boot import (
    BootedGuest,
    BootSetup,
    GuestIdentity,
    booted_guest,
    guest_identity,
    logged_in,
    started_machine,
)
from harness.runs.evidence import Evidence, Timings
from harness.runs.prepare import Prepared, in_use

StartOption = Literal["auto", "cold", "warm"]
"""The values of `--start`."""

TRIED_QEMU = ((10, 0),)
"""QEMU versions (major, minor) whose restored machines were compared with booted ones by hand.

With other versions, one guest is restored and checked before the first is used."""

# Let the shell that has just logged out end: a restored guest must not contain it.
_QUIET_SECONDS = 0.25
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_FAILED_STARTS = (InconclusiveError, GuestCrashedError)


def choose_start(requested: StartOption, prepared: Prepared, runs: int) -> tuple[Start, str]:
    """Choose how guests start; with a note where that differs from what the user requested.

    Args:
        requested: `auto` saves a machine only where it is used more than once.
        prepared: what is booted.
        runs: how many guests there will be.
    """
    if requested == "cold" or (requested == "auto" and runs < 2):
        return "cold", ""
    obstacle = warm_obstacle(prepared)
    if not obstacle:
        return "warm", ""
    return "cold", f"starting cold: {obstacle}" if requested == "warm" else ""


def warm_obstacle(prepared: Prepared) -> str:
    """The reason why this machine cannot be started warm; empty if it can."""
    if prepared.bootable.accel != "tcg":
        return f"warm start is untested with {prepared.bootable.accel}"
    built_in = prepared.starting_drivers()
    if built_in:
        return f"built-in drivers run before a guest can be saved: {', '.join(built_in)}"
    return ""


class Restorable(Protocol):
    """A saved machine from which guests are restored."""

    def guest(self, evidence: Evidence, timings: Timings) -> AbstractContextManager[BootedGuest]:
        """Restore a guest, as `booted_guest` yields it, for the length of a block."""

    def try_out(self, evidence: Evidence) -> None:
        """Restore a guest and check that it is the saved one.

        Raises:
            InconclusiveError: it is not.
        """


class GuestPool:
    """Starts guests, warm as long as that works. Made by `guest_pool`; thread-safe.

    Args:
        note: gets a message when a warm start fails.
        boot: boots a guest.
        saved: the saved machine, None to boot every guest.
    """

    def __init__(
        self,
        note: Callable[[str], None],
        boot: Callable[[Evidence, Timings], AbstractContextManager[BootedGuest]],
        saved: Restorable | None,
    ) -> None:
        self._note = note
        self._boot = boot
        self._lock = threading.Lock()
        self._saved = saved

    @property
    def start(self) -> Start:
        """The start of the next guest."""
        with self._lock:
            return "warm" if self._saved else "cold"

    @contextmanager
    def guest(
        self, evidence: Evidence, timings: Timings, start: Start = "warm"
    ) -> Iterator[BootedGuest]:
        """Start a guest; its `start` attribute is how it was started.

        When a warm start fails, this guest and all later ones are booted.

        Args:
            evidence: where it is recorded.
            timings: gets the phases.
            start: `cold` for a guest that must be booted.

        Raises:
            InconclusiveError: the guest could not be booted, see `booted_guest`.
        """
        with ExitStack() as stack:
            with self._lock:
                saved = self._saved if start == "warm" else None
            guest = self._restored(stack, saved, evidence, timings) if saved else None
            yield guest or stack.enter_context(self._boot(evidence, timings))

    def _restored(
        self, stack: ExitStack, saved: Restorable, evidence: Evidence, timings: Timings
    ) -> BootedGuest | None:
        try:
            return stack.enter_context(saved.guest(evidence, timings))
        except _FAILED_STARTS as error:
            with self._lock:
                self._saved = None
            evidence.json("start.json", {"start": "cold", "why": error.message})
            self._note(_given_up(error))
            return None


@dataclass(frozen=True)
class RestorableGuest:
    """A saved machine, from which guests are restored. Made by `saved_guest`.

    The guests are independent of each other and can run concurrently, each in its own thread.

    Attributes:
        setup: of the boot.
        identity: of its guest, and of all restored ones.
        saved: the saved machine.
        boot: the evidence of the boot.
    """

    setup: BootSetup
    identity: GuestIdentity
    saved: SavedMachine
    boot: Evidence

    @property
    def size(self) -> int:
        """The bytes of memory that the saved machine takes; most of its file is holes."""
        return os.fstat(self.saved.file).st_blocks * 512

    @contextmanager
    def guest(self, evidence: Evidence, timings: Timings) -> Iterator[BootedGuest]:
        """Restore a guest, as `booted_guest` yields it, for the length of the block.

        Raises:
            RestoreError: the restored machine differs from the saved one.
            MachineLostError: QEMU failed, as it does when the saved data is damaged.
            GuestLostError: the SSH login to the guest failed.
        """
        prepared = self.setup.prepared
        watch = CrashWatch(prepared.expected_lines(), from_the_start=prepared.boot_counts)
        with ExitStack() as stack:
            with timings.phase("start"):
                self._copy_serial_log(evidence)
                machine = stack.enter_context(
                    started_machine(
                        self.setup,
                        evidence,
                        watch,
                        self.identity,
                        pass_fds=(self.saved.file,),
                        incoming=True,
                    )
                )
                machine.connect_monitor()
            with timings.phase("restore"):
                decoders = prepared.state.decoders
                written = restore_machine(
                    machine, self.saved, prepared.layout, prepared.settings, decoders
                )
                start = {
                    "start": "warm",
                    "booted_in": str(self.boot.folder),
                    "written_back": written,
                }
                evidence.json("start.json", start)
                port = machine.forwarded_port()
                machine.command("cont")
            with timings.phase("login"):
                shell = stack.enter_context(
                    logged_in(machine, watch, self.identity, port, prepared.bootable.timeout_scale)
                )
            watch.steps_begin(lambda: shell.step)
            yield BootedGuest(machine, shell, watch, "warm")

    def try_out(self, evidence: Evidence) -> None:
        """Restore a guest and check that it is the saved one.

        Raises:
            InconclusiveError: it is not.
        """
        prepared = self.setup.prepared
        with self.guest(evidence, Timings()) as guest:
            problems = early_problems(early_messages(guest.shell), prepared.state, prepared.layout)
            if problems:
                raise PreflightError("; ".join(problems), hint="use --start cold")

    def _copy_serial_log(self, evidence: Evidence) -> None:
        before = self.boot.path("serial.log").read_bytes()
        mark = f"[harness: restored from the machine that booted in {self.boot.folder}]\n"
        evidence.path("serial.log").write_bytes(before + mark.encode())


@contextmanager
def saved_guest(
    setup: BootSetup, evidence: Evidence, timings: Timings
) -> Iterator[RestorableGuest]:
    """Boot a machine, check what its guest got, and save it, for the length of the block.

    It is saved in memory, in a file without a name.

    Args:
        setup: what is booted; see `warm_obstacle`.
        evidence: where the boot is recorded.
        timings: gets the phases.

    Raises:
        RestoreError: QEMU could not save the machine.
        MachineLostError: QEMU failed.
        GuestLostError: the guest never became ready, or its kernel crashed before.
        PreflightError: the guest did not get the requested machine.
    """
    prepared = setup.prepared
    with ExitStack() as stack:
        identity = stack.enter_context(guest_identity(prepared))
        file = os.memfd_create("machine", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        stack.callback(os.close, file)
        with (
            booted_guest(setup, evidence, timings, identity=identity, pass_fds=(file,)) as guest,
            timings.phase("save"),
        ):
            guest.shell.close()
            time.sleep(_QUIET_SECONDS)
            guest.check()
            saved = save_machine(guest.machine, prepared.case.profile, prepared.layout, file)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
        yield RestorableGuest(setup, identity, saved, evidence)


Boot = Callable[[BootSetup, Evidence, Timings], AbstractContextManager[BootedGuest]]
Save = Callable[[BootSetup, Evidence, Timings], AbstractContextManager[Restorable]]


@contextmanager
def guest_pool(
    setup: BootSetup,
    new_evidence: Callable[[], Evidence],
    start: Start,
    boot: Boot = booted_guest,
    save: Save = saved_guest,
) -> Iterator[GuestPool]:
    """Guests of one machine, for the length of the block.

    For warm guests the machine is booted and saved here. If that fails, the guests are booted
    instead, with a note.

    Args:
        setup: what is booted.
        new_evidence: creates a folder for each boot that is no guest's.
        start: how guests start, see `choose_start`.
        boot: boots a guest.
        save: boots a machine and saves it.

    Raises:
        UsageError: the kernel has just been removed from the store.
    """
    host = setup.host
    with ExitStack() as stack:
        # Every QEMU reads the kernel's image, restored ones too.
        stack.enter_context(in_use(setup.prepared.bootable))
        saved = None
        if start == "warm":
            try:
                saved = stack.enter_context(save(setup, new_evidence(), Timings()))
                if host.qemu.version[:2] not in TRIED_QEMU:
                    saved.try_out(new_evidence())
            except _FAILED_STARTS as error:
                host.note_once(_given_up(error))
                saved = None
        yield GuestPool(host.note_once, lambda *where: boot(setup, *where), saved)


def confirmed(progress: Progress, result: RunResult, again: Callable[[], RunResult]) -> RunResult:
    """The result to report: a restored guest that did not pass is repeated in a booted one.

    Args:
        progress: gets a note where the verdicts differ.
        result: of the first run.
        again: repeats the run, cold.
    """
    if result.start != "warm" or result.verdict is Verdict.PASS:
        return result
    cold = again()
    if cold.verdict is not result.verdict:
        progress.note(
            f"{result.scenario} was {result.verdict.name} warm ({result.evidence}) and "
            f"{cold.verdict.name} cold: the cold run counts"
        )
    return cold


def _given_up(error: HarnessError) -> str:
    return f"warm start does not work here, starting cold: {error.message}"
