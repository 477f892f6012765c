# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot a guest on a prepared machine, up to the login, for the length of a `with` block."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field

from harness.contract.preflight import early_problems
from harness.contract.result import Start
from harness.core.deadline import Deadline
from harness.core.errors import (
    GuestEndedError,
    GuestLostError,
    HarnessError,
    PreflightError,
)
from harness.guest.initramfs import write_run_initramfs
from harness.guest.keys import RunKeys
from harness.guest.observe import early_messages
from harness.guest.ssh import GuestShell, guest_shell
from harness.machine.console_watch import CrashWatch
from harness.machine.firmware import check_committed, commit_decoders, prove_paths
from harness.machine.qemu import END_SECONDS, Qemu, running_qemu
from harness.machine.qemu_argv import Boot, ConsolePipe, Control, qemu_argv
from harness.runs.evidence import Evidence, Timings, write_inputs
from harness.runs.prepare import Host, Prepared

_LOGIN_SECONDS = 60.0


class StoppedError(Exception):
    """The harness itself has ended a guest: its run has no result."""


class RunningMachines:
    """The running QEMUs, of all threads, so that all can be ended together. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._machines: set[Qemu] = set()
        self._stopped = False

    @contextmanager
    def tracked(self, machine: Qemu) -> Iterator[None]:
        """Track a machine for the length of the block.

        Raises:
            StoppedError: `stop` was called, in place of the error that this led to.
        """
        with self._lock:
            if self._stopped:
                machine.kill()
                raise StoppedError
            self._machines.add(machine)
        try:
            yield
        except HarnessError:
            if self._stopped:
                raise StoppedError from None
            raise
        finally:
            with self._lock:
                self._machines.discard(machine)

    def stop(self) -> None:
        """End every machine, also those that start later, without waiting for them."""
        with self._lock:
            self._stopped = True
            for machine in self._machines:
                machine.kill()


@dataclass(frozen=True)
class BootSetup:
    """The values that the guests of one prepared scenario share when they start.

    Attributes:
        host: this machine.
        prepared: what is booted.
        machines: where the guests' machines are tracked.
        seconds: how long a guest may take to become ready.
    """

    host: Host
    prepared: Prepared
    machines: RunningMachines
    seconds: float = 120.0


@dataclass(frozen=True)
class BootedGuest:
    """A guest with the requested machine, and a shell in it.

    Attributes:
        machine: its QEMU.
        shell: a shell in it.
        watch: reads its console.
        start: `warm` for a guest that was restored after its boot.
    """

    machine: Qemu
    shell: GuestShell
    watch: CrashWatch
    start: Start = "cold"

    def check(self) -> None:
        """Raise when the kernel has crashed or QEMU has ended."""
        _check(self.machine, self.watch)


@dataclass(frozen=True)
class GuestIdentity:
    """The secrets of one guest, and the initramfs that contains them.

    Attributes:
        initramfs: descriptor of an open file in memory: it contains keys, and must not outlive the
            guests that use them.
        keys: its SSH keys.
        token: the first word of its messages on the console.
    """

    initramfs: int
    keys: RunKeys = field(repr=False)
    token: str = field(repr=False)


@contextmanager
def guest_identity(prepared: Prepared) -> Iterator[GuestIdentity]:
    """Create keys and a token, in an initramfs that is deleted after the block."""
    keys, token = RunKeys(), secrets.token_hex(16)
    with open(os.memfd_create("initramfs"), "w+b") as archive:
        write_run_initramfs(archive, prepared.bootable.initramfs, keys, token, prepared.acpi_tables)
        archive.flush()
        yield GuestIdentity(archive.fileno(), keys, token)


@contextmanager
def booted_guest(
    setup: BootSetup,
    evidence: Evidence,
    timings: Timings,
    *,
    identity: GuestIdentity | None = None,
    pass_fds: Sequence[int] = (),
) -> Iterator[BootedGuest]:
    """Start the machine, play its firmware, boot, log in, and check the guest's machine.

    Args:
        setup: what is booted.
        evidence: where it is recorded.
        timings: gets the phases.
        identity: the guest's keys; None creates them.
        pass_fds: more open files that QEMU inherits.

    Raises:
        MachineLostError: QEMU failed.
        GuestLostError: the guest never became ready, or its kernel crashed before.
        PreflightError: the guest did not get the requested machine.
    """
    prepared = setup.prepared
    watch = CrashWatch(prepared.expected_lines(), from_the_start=prepared.boot_counts)
    timeout_scale = prepared.bootable.timeout_scale
    with ExitStack() as stack:
        with timings.phase("start"):
            secret = identity or stack.enter_context(guest_identity(prepared))
            machine = stack.enter_context(
                started_machine(setup, evidence, watch, secret, pass_fds=pass_fds)
            )
            machine.connect_monitor()
        with timings.phase("firmware"), machine.telling_its_end():
            commit_decoders(machine.qtest, prepared.layout, prepared.settings)
            prove_paths(machine.qtest, prepared.state.decoders)
            port = machine.forwarded_port()
        with timings.phase("boot"):
            machine.command("cont")
            secret.keys.prepare()  # takes about as long as the firmware in the guest
            _await_ready(machine, watch, secret.token, setup.seconds * timeout_scale)
        with timings.phase("login"):
            shell = stack.enter_context(logged_in(machine, watch, secret, port, timeout_scale))
        with timings.phase("preflight"):
            problems = early_problems(early_messages(shell), prepared.state, prepared.layout)
            if "cxl_acpi" in prepared.bootable.initramfs.modules:
                # Built-in drivers may already have changed decoders, which is allowed.
                problems += check_committed(machine.qtest, prepared.layout, prepared.settings)
            if problems:
                raise PreflightError(
                    "; ".join(problems),
                    hint="see firmware.json and kernel.json (command line) in the evidence",
                )
        watch.steps_begin(lambda: shell.step)
        yield BootedGuest(machine, shell, watch)


def _check(machine: Qemu, watch: CrashWatch) -> None:
    watch.check()
    try:
        machine.check_alive()
    except GuestEndedError as error:
        # A guest resets after a panic: report the panic.
        machine.console.await_closed(END_SECONDS)
        watch.check()
        watch.ended(error)


def logged_in(
    machine: Qemu, watch: CrashWatch, identity: GuestIdentity, port: int, timeout_scale: float = 1.0
) -> AbstractContextManager[GuestShell]:
    """Open a shell in a guest whose SSH server runs or is about to start."""
    deadline = Deadline(_LOGIN_SECONDS, "the SSH login to the guest")
    return guest_shell(port, identity.keys, deadline, lambda: _check(machine, watch), timeout_scale)


@contextmanager
def started_machine(
    setup: BootSetup,
    evidence: Evidence,
    watch: CrashWatch,
    identity: GuestIdentity,
    *,
    pass_fds: Sequence[int] = (),
    incoming: bool = False,
) -> Iterator[Qemu]:
    """Start QEMU, paused, for the length of the block.

    Args:
        setup: what it boots.
        evidence: where it is recorded.
        watch: reads the console.
        identity: of its guest.
        pass_fds: more open files that QEMU inherits.
        incoming: whether it waits for the state of another machine, whose serial log it continues.
    """
    host, prepared = setup.host, setup.prepared
    kernel = prepared.bootable.kernel

    def argv_of(control: Control, console: int) -> tuple[str, ...]:
        boot = Boot(
            kernel=kernel.image,
            initramfs=f"/dev/fd/{identity.initramfs}",
            command_line=prepared.command_line,
            console=ConsolePipe(console, evidence.path("serial.log"), append=incoming),
        )
        argv = qemu_argv(
            host.qemu,
            prepared.case.profile,
            prepared.bootable.accel,
            boot=boot,
            control=control,
            incoming=incoming,
        )
        evidence.command("qemu.argv", argv)
        return argv

    evidence.json(
        "kernel.json",
        {**asdict(kernel), "command_line": prepared.command_line, "qemu": asdict(host.qemu)},
    )
    evidence.json("firmware.json", [asdict(setting) for setting in prepared.settings])
    write_inputs(evidence, prepared)
    inherited = (identity.initramfs, *pass_fds)
    with (
        evidence.path("qemu.log").open("w+b") as log,
        running_qemu(argv_of, log, watch.line, pass_fds=inherited) as machine,
        setup.machines.tracked(machine),
    ):
        yield machine


def _await_ready(machine: Qemu, watch: CrashWatch, token: str, seconds: float) -> None:
    deadline = Deadline(
        seconds,
        "the guest to become ready",
        hint="see the end of serial.log in the evidence; a slow host or kernel needs --timeout",
    )

    def is_ready(line: str) -> bool:
        watch.check_boot()
        status = line.partition(f"{token} ")[2].strip()
        if status and status != "ready":
            raise GuestLostError(
                f"the guest could not start: it {status}",
                hint="does this kernel have virtio network? see serial.log in the evidence",
            )
        return status == "ready"

    try:
        machine.console.await_line(is_ready, deadline)
    except GuestLostError:
        # QEMU ends by itself after an early panic: report the panic.
        if machine.console.closed:
            watch.check_boot()
            machine.check_alive(END_SECONDS)
        raise
