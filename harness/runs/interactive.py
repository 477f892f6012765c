# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot the machine of a profile or scenario with its console on the user's terminal."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from harness.core.deadline import Deadline
from harness.core.errors import UsageError
from harness.guest.initramfs import write_acpi_tables
from harness.machine.firmware import commit_decoders, prove_paths
from harness.machine.qemu import running_qemu
from harness.machine.qemu_argv import Boot, qemu_argv
from harness.platform.firmware_state import FirmwareState
from harness.platform.kernel_cmdline import kernel_command_line
from harness.runs.prepare import Bootable, Host, Prepared, prepare_case, prepare_kernel, request_for
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.profile import Profile
from harness.scenario.scenario_files import (
    load_case,
    load_profile,
    profile_names,
    scenario_names,
    suggest,
)

_SESSION_SECONDS = 7 * 24 * 3600.0
_NO_FIRMWARE = FirmwareState((), (), (), (), (), ())


@dataclass(frozen=True)
class _Machine:
    profile: Profile
    bootable: Bootable
    command_line: str
    prepared: Prepared | None


def printed_command_line(host: Host, name: str, kernel: KernelRequest) -> str:
    """The shell command that starts this machine with its console on the terminal.

    It has neither decoders nor ACPI overrides: `harness boot` sets these up.
    """
    machine = _find(host, name, kernel, profile_first=True)
    boot = Boot(
        machine.bootable.kernel.image, machine.bootable.initramfs.archive, machine.command_line
    )
    return shlex.join(qemu_argv(host.qemu, machine.profile, machine.bootable.accel, boot=boot))


def boot_interactive(host: Host, name: str, kernel: KernelRequest) -> int:
    """Boot a machine with its firmware state, on the terminal, until it ends.

    Returns:
        QEMU's exit status.
    """
    machine = _find(host, name, kernel)
    prepared = machine.prepared
    with (
        _terminal_kept(),
        tempfile.TemporaryFile() as log,
        open(os.memfd_create("initramfs"), "w+b") as initramfs,
    ):
        write_acpi_tables(initramfs, prepared.acpi_tables if prepared else {})
        with machine.bootable.initramfs.archive.open("rb") as shared:
            shutil.copyfileobj(shared, initramfs, 1 << 20)
        initramfs.flush()
        boot = Boot(
            machine.bootable.kernel.image,
            f"/dev/fd/{initramfs.fileno()}",
            machine.command_line,
        )
        with running_qemu(
            lambda control, _console: qemu_argv(
                host.qemu, machine.profile, machine.bootable.accel, boot=boot, control=control
            ),
            log,
            pass_fds=(initramfs.fileno(),),
            terminal=True,
        ) as qemu:
            qemu.connect_monitor()
            if prepared is not None:
                commit_decoders(qemu.qtest, prepared.layout, prepared.settings)
                prove_paths(qemu.qtest, prepared.state.decoders)
                order = " ".join(prepared.case.scenario.guest.modules)
                host.progress.note(f"the scenario loads: {order}")
            host.progress.note("quit with Ctrl-A x, or poweroff -f in the guest")
            qemu.command("cont")
            return qemu.wait(
                Deadline(
                    _SESSION_SECONDS,
                    "the guest to power off",
                    hint="start harness boot again; Ctrl-A x quits a guest",
                )
            )


@contextmanager
def _terminal_kept() -> Iterator[None]:
    """Restore the modes of the terminal: a killed QEMU leaves it raw."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def _find(host: Host, name: str, kernel: KernelRequest, profile_first: bool = False) -> _Machine:
    """The scenario or profile of this name; `profile_first` decides where both exist."""
    if name in profile_names() and (profile_first or name not in scenario_names()):
        bootable = prepare_kernel(host, kernel)
        return _Machine(load_profile(name), bootable, kernel_command_line(_NO_FIRMWARE), None)
    if name not in scenario_names() and "/" not in name and not name.endswith((".yaml", ".yml")):
        known = (*profile_names(), *scenario_names())
        raise UsageError(
            f"no profile or scenario is called {name!r}", hint=suggest(name, known, "names")
        )
    case = load_case(name)
    prepared = prepare_case(host, case, request_for(case, kernel))
    return _Machine(case.profile, prepared.bootable, prepared.command_line, prepared)
