# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that start after their boot: a machine is booted and saved once, and restored for each.

What a scenario does begins after the boot, so runs that differ only in that need not boot again.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

from harness.core.kernel_modules import module_name
from harness.machine.console_watch import CrashWatch
from harness.machine.snapshot import SavedMachine, restore_machine, save_machine
from harness.runs.boot import (
    BootedGuest,
    GuestIdentity,
    booted_guest,
    guest_identity,
    logged_in,
    started_machine,
)
from harness.runs.evidence import Evidence
from harness.runs.prepare import Host, Prepared
from harness.runs.timings import Timings

AskedStart = Literal["auto", "cold", "warm"]

TRIED_QEMU = ((10, 0),)
"""QEMU versions (major, minor) whose restored machines were compared with booted ones by hand.

With any other, one guest is restored and looked at before the first is used."""

# The drivers that find something to do by themselves. The others wait for devices that these make.
_STARTERS = ("cxl_acpi", "cxl_pci", "dax_hmem")

# For the shell that has just logged out to end: nothing waits for it in a restored guest.
_QUIET_SECONDS = 0.25
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def warm_obstacle(prepared: Prepared) -> str:
    """Why this machine cannot be started warm, or nothing."""
    if prepared.bootable.accel != "tcg":
        return f"warm start is untried with {prepared.bootable.accel}"
    initramfs = prepared.bootable.initramfs
    built_in = [
        name
        for name in _STARTERS
        if module_name(name) not in initramfs.modules and module_name(name) not in initramfs.missing
    ]
    if built_in:
        return f"what is built in runs before a guest can be saved: {', '.join(built_in)}"
    return ""


class WarmMachine:
    """A saved machine, from which guests are restored. Made by `warm_machine`.

    Guests are independent of each other, and may run at once, each in a thread of its own.

    Attributes:
        saved: what was saved.
        size: how many bytes of memory the saved machine takes.
    """

    def __init__(
        self,
        host: Host,
        prepared: Prepared,
        identity: GuestIdentity,
        saved: SavedMachine,
        boot: Evidence,
    ) -> None:
        self.saved = saved
        self.size = os.fstat(saved.file).st_blocks * 512  # most of the file is holes
        self._host = host
        self._prepared = prepared
        self._identity = identity
        self._boot = boot

    @contextmanager
    def guest(self, evidence: Evidence, timings: Timings) -> Iterator[BootedGuest]:
        """A guest as `booted_guest` gives it, restored.

        Raises:
            RestoreError: the restored machine is not the saved one.
            MachineLostError: QEMU failed, as it does when what was saved is damaged.
            GuestLostError: the guest does not let the harness in.
        """
        prepared = self._prepared
        watch = CrashWatch(prepared.expected_lines(), from_the_start=prepared.boot_counts)
        with ExitStack() as stack:
            with timings.phase("start"):
                self._write_what_was_before(evidence)
                machine = stack.enter_context(
                    started_machine(
                        self._host,
                        prepared,
                        evidence,
                        watch,
                        self._identity,
                        pass_fds=(self.saved.file,),
                        incoming=True,
                    )
                )
                machine.connect_monitor()
            with timings.phase("restore"):
                written = restore_machine(
                    machine,
                    self.saved,
                    prepared.layout,
                    prepared.settings,
                    prepared.state.decoders,
                )
                evidence.json(
                    "start.json",
                    {
                        "start": "warm",
                        "booted_in": str(self._boot.folder),
                        "written_back": written,
                    },
                )
                port = machine.forwarded_port()
                machine.command("cont")
            with timings.phase("login"):
                shell = stack.enter_context(
                    logged_in(machine, watch, self._identity, port, prepared.bootable.patience)
                )
            watch.steps_begin(lambda: shell.step)
            yield BootedGuest(machine, shell, watch, "warm")

    def _write_what_was_before(self, evidence: Evidence) -> None:
        before = self._boot.path("serial.log").read_bytes()
        mark = f"[harness: restored from the machine that booted in {self._boot.folder}]\n"
        evidence.path("serial.log").write_bytes(before + mark.encode())


@contextmanager
def warm_machine(
    host: Host, prepared: Prepared, evidence: Evidence, timings: Timings, boot_seconds: float
) -> Iterator[WarmMachine]:
    """Boot a machine, check what its guest got, and save it, for the length of the block.

    It is saved in memory: nothing is left that has a name.

    Args:
        host: this machine.
        prepared: what is booted; see `warm_obstacle`.
        evidence: where the boot is written down.
        timings: counts the phases.
        boot_seconds: how long the guest may take to become ready.

    Raises:
        RestoreError: QEMU could not save the machine.
        MachineLostError: QEMU failed.
        GuestLostError: the guest never became ready, or its kernel died before it was.
        PreflightError: the guest did not get the machine that was asked for.
    """
    with ExitStack() as stack:
        identity = stack.enter_context(guest_identity(prepared))
        file = os.memfd_create("machine", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        stack.callback(os.close, file)
        with (
            booted_guest(
                host, prepared, evidence, timings, boot_seconds, identity=identity, pass_fds=(file,)
            ) as guest,
            timings.phase("save"),
        ):
            guest.shell.close()
            time.sleep(_QUIET_SECONDS)
            guest.check()
            saved = save_machine(guest.machine, prepared.case.profile, prepared.layout, file)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
        yield WarmMachine(host, prepared, identity, saved, evidence)
