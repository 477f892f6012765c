# SPDX-License-Identifier: GPL-2.0-or-later
"""Select KVM or TCG; KVM only after a test boot succeeded on this host.

On some hosts /dev/kvm works up to the creation of virtual CPUs, and no kernel ever prints a line.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from harness.core.deadline import Deadline
from harness.core.errors import InconclusiveError, UsageError
from harness.machine.qemu import running_qemu
from harness.machine.qemu_argv import Accelerator, Boot, ConsolePipe, qemu_argv
from harness.machine.qemu_binary import QemuBinary
from harness.platform.memory_range import MIB
from harness.scenario.profile import NumaNode, Profile
from harness.scenario.yaml_document import Size

AcceleratorOption = Literal["auto", "kvm", "tcg"]

KVM = Path("/dev/kvm")
_BOOT_SECONDS = 20.0
_SMALL = Profile(summary="As little as boots.", nodes=(NumaNode(memory=Size(512 * MIB), cpus=1),))


def choose_accelerator(
    requested: AcceleratorOption,
    qemu: QemuBinary,
    kernel: Path,
    initramfs: Path,
    remember: Callable[[str, Callable[[], dict[str, str]]], dict[str, str]],
    device: Path = KVM,
) -> tuple[Accelerator, str]:
    """Select the accelerator; also returns the reason for TCG where that is not requested.

    Args:
        requested: `auto` takes KVM where it works.
        qemu: the QEMU.
        kernel: a kernel for the test boot.
        initramfs: the initramfs for the test boot, with busybox.
        remember: returns the stored answer for a key, or calls the function and stores its result.
        device: the KVM device.

    Raises:
        UsageError: KVM was requested and is not available.
    """
    if requested == "tcg":
        return "tcg", ""
    if not os.access(device, os.R_OK | os.W_OK):
        why = "does not exist" if not device.exists() else "is not accessible for this user"
        if requested == "kvm":
            raise UsageError(
                f"{device} {why}",
                hint="join the group kvm, load kvm_intel or kvm_amd, or use --accel tcg",
            )
        return "tcg", f"{device} {why}: using TCG"
    answer = remember(_trial_key(qemu), lambda: {"failure": _try_kvm(qemu, kernel, initramfs)})
    if not answer["failure"]:
        return "kvm", ""
    if requested == "kvm":
        raise UsageError(
            f"KVM does not boot a kernel here: {answer['failure']}",
            hint="use --accel tcg; KVM is tested again after a reboot of the host",
        )
    return "tcg", f"KVM does not boot a kernel here ({answer['failure']}): using TCG"


def _trial_key(qemu: QemuBinary) -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    text = f"{boot} {os.uname().release} {qemu.identity}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _try_kvm(qemu: QemuBinary, kernel: Path, initramfs: Path) -> str:
    """Boot to a poweroff under KVM; returns the reason of a failure, or nothing."""
    line = "console=ttyS0 panic=-1 rdinit=/bin/poweroff -- -f"
    with tempfile.TemporaryFile() as log, tempfile.NamedTemporaryFile() as serial:
        try:
            with running_qemu(
                lambda control, console: qemu_argv(
                    qemu,
                    _SMALL,
                    "kvm",
                    boot=Boot(kernel, initramfs, line, ConsolePipe(console, Path(serial.name))),
                    control=control,
                ),
                log,
            ) as machine:
                machine.connect_monitor()
                machine.command("cont")
                deadline = Deadline(
                    _BOOT_SECONDS, "a kernel to boot under KVM", hint="use --accel tcg"
                )
                machine.console.await_line(lambda line: "Linux version" in line, deadline)
                machine.wait(deadline)
        except InconclusiveError as error:
            return error.message.splitlines()[0]
    return ""
