# SPDX-License-Identifier: GPL-2.0-or-later
"""Make QEMU's command line from a profile, by the Jinja template in qemu_profiles/."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import jinja2

from harness.core.errors import UsageError
from harness.machine.qemu_binary import QemuBinary
from harness.scenario.profile import Port, Profile

Accelerator = Literal["kvm", "tcg"]


@dataclass(frozen=True)
class ConsolePipe:
    """A console that the harness reads.

    Attributes:
        fd: QEMU's end of the console's pipe.
        log: file to which QEMU itself writes the console.
        append: whether QEMU appends to the file.
    """

    fd: int
    log: Path
    append: bool = False


@dataclass(frozen=True)
class Boot:
    """The kernel and initramfs of a machine, and its console.

    Attributes:
        kernel: the bzImage.
        initramfs: the cpio archive; `/dev/fd/N` for an inherited file.
        command_line: the kernel's command line.
        console: the harness's console, with a network for SSH; None for QEMU's own terminal.
    """

    kernel: Path
    initramfs: Path | str
    command_line: str
    console: ConsolePipe | None = None


@dataclass(frozen=True)
class Control:
    """QEMU's ends of the socket pairs by which the harness controls it.

    Connected pairs are inherited, so that no socket has a name.
    """

    qtest_fd: int
    qmp_fd: int


def qemu_argv(
    qemu: QemuBinary,
    profile: Profile,
    accel: Accelerator,
    *,
    boot: Boot | None = None,
    control: Control | None = None,
    incoming: bool = False,
) -> tuple[str, ...]:
    """The argument list that starts this machine, paused where `control` is given.

    Args:
        qemu: the QEMU to start.
        profile: the hardware.
        accel: the accelerator.
        boot: kernel, initramfs and console; None for hardware alone.
        control: the qtest and QMP connections; with them, the machine starts paused.
        incoming: whether the machine waits for the state of another.
    """
    text = _template().render(
        profile=profile,
        accel=accel,
        sandbox=qemu.seccomp,
        boot=boot,
        control=control,
        incoming=incoming,
        chassis=_chassis_numbers(profile),
        cpus_of_nodes=_cpus_of_nodes(profile),
        window_parts=[(p, w.granularity) for w in profile.windows for p in w.hardware()],
    )
    if boot is not None:
        for path in (boot.kernel, boot.initramfs, boot.console.log if boot.console else ""):
            if "\n" in str(path):
                raise UsageError(
                    "the path contains a line break",
                    where=repr(str(path)),
                    hint="rename the file or folder",
                )
    argv = [str(qemu.path)]
    for line in text.split("\n"):
        argv.extend(line.strip().split(" ", 1) if line.strip() else ())
    return tuple(argv)


@cache
def _template() -> jinja2.Template:
    from harness.core.paths import PROFILES

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PROFILES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters["q"] = lambda path: str(path).replace(",", ",,")
    return environment.get_template("machine.j2")


def _chassis_numbers(profile: Profile) -> dict[str, int]:
    numbers: dict[str, int] = {}

    def walk(ports: tuple[Port, ...]) -> None:
        for port in ports:
            numbers[port.name] = len(numbers)
            if port.switch is not None:
                walk(port.switch.ports)

    for bridge in profile.host_bridges:
        walk(bridge.ports)
    return numbers


def _cpus_of_nodes(profile: Profile) -> dict[int, str]:
    spans: dict[int, str] = {}
    first = 0
    for number, node in enumerate(profile.nodes):
        if node.cpus:
            spans[number] = f"{first}-{first + node.cpus - 1}"
            first += node.cpus
    return spans
