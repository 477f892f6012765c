# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest on a prepared machine, up to the login, for the length of a `with` block."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field

from harness.contract.preflight import early_problems
from harness.contract.result import Start
from harness.core.deadline import Deadline
from harness.core.errors import GuestEndedError, GuestLostError, PreflightError
from harness.guest.initramfs import write_run_initramfs
from harness.guest.keys import RunKeys
from harness.guest.observe import early_messages
from harness.guest.ssh import GuestShell, guest_shell
from harness.machine.console_watch import CrashWatch
from harness.machine.firmware import check_committed, commit_decoders, prove_paths
from harness.machine.qemu import PATIENCE, Qemu, running_qemu
from harness.machine.qemu_argv import Boot, ConsolePipe, Control, qemu_argv
from harness.runs.evidence import Evidence
from harness.runs.evidence_layout import write_inputs
from harness.runs.prepare import Host, Prepared
from harness.runs.timings import Timings

_LOGIN_SECONDS = 60.0


@dataclass(frozen=True)
class BootedGuest:
    """A guest that got the machine that was asked for, with a shell in it.

    Attributes:
        machine: its QEMU.
        shell: a shell in it.
        watch: sees its console.
        start: `warm` for one that was restored after its boot.
    """

    machine: Qemu
    shell: GuestShell
    watch: CrashWatch
    start: Start = "cold"

    def check(self) -> None:
        """Raise when the kernel cannot go on or QEMU has ended."""
        _check(self.machine, self.watch)


@dataclass(frozen=True)
class GuestIdentity:
    """What one guest is recognised by, and the initramfs that has it.

    Attributes:
        initramfs: descriptor of an open file in memory: it holds keys, and must not outlive the
            guests that have them.
        keys: its SSH keys.
        token: the word that its messages on the console begin with.
    """

    initramfs: int
    keys: RunKeys = field(repr=False)
    token: str = field(repr=False)


@contextmanager
def guest_identity(prepared: Prepared) -> Iterator[GuestIdentity]:
    """New keys and a new token, in an initramfs that is gone after the block."""
    keys, token = RunKeys(), secrets.token_hex(16)
    with open(os.memfd_create("initramfs"), "w+b") as archive:
        write_run_initramfs(archive, prepared.bootable.initramfs, keys, token, prepared.acpi_tables)
        archive.flush()
        yield GuestIdentity(archive.fileno(), keys, token)


@contextmanager
def booted_guest(
    host: Host,
    prepared: Prepared,
    evidence: Evidence,
    timings: Timings,
    boot_seconds: float,
    *,
    identity: GuestIdentity | None = None,
    pass_fds: Sequence[int] = (),
) -> Iterator[BootedGuest]:
    """Start the machine, play its firmware, boot, log in, and check what the guest got.

    Args:
        host: this machine.
        prepared: what is booted.
        evidence: where it is written down.
        timings: counts the phases.
        boot_seconds: how long the guest may take to become ready.
        identity: the guest's keys, where others know them too.
        pass_fds: more open files that QEMU inherits.

    Raises:
        MachineLostError: QEMU failed.
        GuestLostError: the guest never became ready, or its kernel died before it was.
        PreflightError: the guest did not get the machine that was asked for.
    """
    watch = CrashWatch(prepared.expected_lines(), from_the_start=prepared.boot_counts)
    patience = prepared.bootable.patience
    with ExitStack() as stack:
        with timings.phase("start"):
            me = identity or stack.enter_context(guest_identity(prepared))
            machine = stack.enter_context(
                started_machine(host, prepared, evidence, watch, me, pass_fds=pass_fds)
            )
            machine.connect_monitor()
        with timings.phase("firmware"), machine.telling_its_end():
            commit_decoders(machine.qtest, prepared.layout, prepared.settings)
            prove_paths(machine.qtest, prepared.state.decoders)
            port = machine.forwarded_port()
        with timings.phase("boot"):
            machine.command("cont")
            me.keys.prepare()  # takes about as long as the firmware in the guest
            _await_ready(machine, watch, me.token, boot_seconds * patience)
        with timings.phase("login"):
            shell = stack.enter_context(logged_in(machine, watch, me, port, patience))
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
        watch.steps_begin(lambda: shell.step)
        yield BootedGuest(machine, shell, watch)


def _check(machine: Qemu, watch: CrashWatch) -> None:
    watch.check()
    try:
        machine.check_alive()
    except GuestEndedError as error:
        # After a panic the guest resets: then the panic is what happened.
        machine.console.await_closed(PATIENCE)
        watch.check()
        watch.ended(error)


def logged_in(
    machine: Qemu, watch: CrashWatch, identity: GuestIdentity, port: int, patience: float = 1.0
) -> AbstractContextManager[GuestShell]:
    """A shell in a guest whose SSH server is about to start, or has."""
    deadline = Deadline(_LOGIN_SECONDS, "the SSH login to the guest")
    return guest_shell(port, identity.keys, deadline, lambda: _check(machine, watch), patience)


@contextmanager
def started_machine(
    host: Host,
    prepared: Prepared,
    evidence: Evidence,
    watch: CrashWatch,
    identity: GuestIdentity,
    *,
    pass_fds: Sequence[int] = (),
    incoming: bool = False,
) -> Iterator[Qemu]:
    """QEMU with this machine, paused, for the length of the block.

    Args:
        host: this machine.
        prepared: what it boots.
        evidence: where it is written down.
        watch: sees the console.
        identity: of its guest.
        pass_fds: more open files that QEMU inherits.
        incoming: whether it waits for the state of another, whose serial log it continues.
    """
    kernel = prepared.bootable.kernel

    def argv(control: Control, console: int) -> tuple[str, ...]:
        boot = Boot(
            kernel=kernel.image,
            initramfs=f"/dev/fd/{identity.initramfs}",
            command_line=prepared.command_line,
            console=ConsolePipe(console, evidence.path("serial.log"), append=incoming),
        )
        words = qemu_argv(
            host.qemu,
            prepared.case.profile,
            prepared.bootable.accel,
            boot=boot,
            control=control,
            incoming=incoming,
        )
        evidence.command("qemu.argv", words)
        return words

    evidence.json(
        "kernel.json",
        {**asdict(kernel), "command_line": prepared.command_line, "qemu": asdict(host.qemu)},
    )
    evidence.json("firmware.json", [asdict(one) for one in prepared.settings])
    write_inputs(evidence, prepared)
    inherited = (identity.initramfs, *pass_fds)
    with (
        evidence.path("qemu.log").open("w+b") as log,
        running_qemu(argv, log, watch.line, pass_fds=inherited) as machine,
        host.live.tracked(machine),
    ):
        yield machine


def _await_ready(machine: Qemu, watch: CrashWatch, token: str, seconds: float) -> None:
    deadline = Deadline(
        seconds,
        "the guest to say that it is ready",
        hint="look at the end of serial.log in the evidence; a slow host or kernel needs --timeout",
    )

    def is_ready(line: str) -> bool:
        watch.check_boot()
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
        if machine.console.closed:
            watch.check_boot()
            machine.check_alive(PATIENCE)
        raise
