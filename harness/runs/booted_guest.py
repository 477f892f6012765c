# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest on a prepared machine, up to the login, for the length of a `with` block."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

from harness.deadline import Deadline
from harness.errors import GuestLostError, PreflightError
from harness.guest.initramfs import write_run_initramfs
from harness.guest.keys import RunKeys
from harness.guest.observe import early_messages
from harness.guest.ssh import GuestShell, guest_shell
from harness.machine.crash_watch import CrashWatch
from harness.machine.firmware import check_committed, commit_decoders, prove_paths
from harness.machine.qemu import PATIENCE, Qemu, running_qemu
from harness.machine.qemu_command import Boot, ConsoleSocket, Control, qemu_argv
from harness.model.preflight import early_problems
from harness.runs.evidence import Evidence
from harness.runs.evidence_of import write_inputs
from harness.runs.prepare import Host, Prepared
from harness.runs.timings import Timings

_LOGIN_SECONDS = 60.0


@dataclass(frozen=True)
class BootedGuest:
    """A guest that got the machine that was asked for, with a shell in it."""

    machine: Qemu
    shell: GuestShell
    watch: CrashWatch

    def check(self) -> None:
        """Raise when the kernel has panicked or QEMU has ended."""
        _check(self.machine, self.watch)


@contextmanager
def booted_guest(
    host: Host, prepared: Prepared, evidence: Evidence, timings: Timings, boot_seconds: float
) -> Iterator[BootedGuest]:
    """Start the machine, play its firmware, boot, log in, and check what the guest got.

    Raises:
        MachineLostError: QEMU failed.
        GuestLostError: the guest never became ready, or its kernel died before it was.
        PreflightError: the guest did not get the machine that was asked for.
    """
    token = secrets.token_hex(16)
    watch = CrashWatch()
    with ExitStack() as stack:
        with timings.phase("start"):
            keys = RunKeys()
            initramfs = stack.enter_context(_run_initramfs(prepared, keys, token))
            machine = stack.enter_context(
                _machine(host, prepared, evidence, watch, initramfs, stack)
            )
            machine.connect_monitor()
        with timings.phase("firmware"):
            commit_decoders(machine.qtest, prepared.layout, prepared.settings)
            prove_paths(machine.qtest, prepared.state.decoders)
            port = machine.forwarded_port()
        with timings.phase("boot"):
            machine.command("cont")
            keys.prepare()  # takes about as long as the firmware in the guest
            _await_ready(machine, watch, token, boot_seconds)
        with timings.phase("login"):
            login = Deadline(_LOGIN_SECONDS, "the SSH login to the guest")
            shell = stack.enter_context(
                guest_shell(port, keys, login, lambda: _check(machine, watch))
            )
        with timings.phase("preflight"):
            problems = early_problems(early_messages(shell), prepared.state, prepared.layout)
            if "cxl_acpi" in prepared.bootable.initramfs.modules:
                # Built in, the drivers may have changed decoders already, as is their right.
                problems += check_committed(machine.qtest, prepared.layout, prepared.settings)
            if problems:
                raise PreflightError(
                    "; ".join(problems),
                    hint="the firmware program and the kernel's command line are in the evidence",
                )
        yield BootedGuest(machine, shell, watch)


def _check(machine: Qemu, watch: CrashWatch) -> None:
    watch.check()
    machine.check_alive()


@contextmanager
def _run_initramfs(prepared: Prepared, keys: RunKeys, token: str) -> Iterator[int]:
    """The run's initramfs in memory: it holds keys, and must not outlive the run."""
    with open(os.memfd_create("initramfs"), "w+b") as archive:
        write_run_initramfs(archive, prepared.bootable.initramfs, keys, token, prepared.acpi_tables)
        archive.flush()
        yield archive.fileno()


@contextmanager
def _machine(
    host: Host,
    prepared: Prepared,
    evidence: Evidence,
    watch: CrashWatch,
    initramfs: int,
    stack: ExitStack,
) -> Iterator[Qemu]:
    kernel = prepared.bootable.kernel

    def argv(control: Control, console: int) -> tuple[str, ...]:
        boot = Boot(
            kernel=kernel.image,
            initramfs=f"/dev/fd/{initramfs}",
            command_line=prepared.command_line,
            console=ConsoleSocket(console, evidence.path("serial.log")),
        )
        words = qemu_argv(
            host.qemu, prepared.case.profile, prepared.bootable.accel, boot=boot, control=control
        )
        evidence.command("qemu.argv", words)
        return words

    evidence.json(
        "kernel.json",
        {**asdict(kernel), "command_line": prepared.command_line, "qemu": asdict(host.qemu)},
    )
    evidence.json("firmware.json", [asdict(one) for one in prepared.settings])
    write_inputs(evidence, prepared)
    log = stack.enter_context(evidence.path("qemu.log").open("w+b"))
    with (
        running_qemu(argv, log, watch.line, pass_fds=(initramfs,)) as machine,
        host.live.tracked(machine),
    ):
        yield machine


def _await_ready(machine: Qemu, watch: CrashWatch, token: str, seconds: float) -> None:
    deadline = Deadline(seconds, "the guest to say that it is ready")

    def is_ready(line: str) -> bool:
        if watch.panicked:
            raise GuestLostError(
                "the guest's kernel panicked before it reached userspace",
                hint="the trace is at the end of serial.log in the evidence",
            )
        said = line.partition(f"{token} ")[2].strip()
        if said and said != "ready":
            raise GuestLostError(
                f"the guest could not start: it {said}",
                hint="does this kernel have virtio network? see serial.log in the evidence",
            )
        return said == "ready"

    try:
        machine.console.await_line(is_ready, deadline)
    except GuestLostError:
        # After an early panic QEMU ends by itself: the panic is what happened.
        if machine.console.closed and not watch.panicked:
            machine.check_alive(PATIENCE)
        raise
