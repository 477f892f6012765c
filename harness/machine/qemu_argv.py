# SPDX-License-Identifier: GPL-2.0-or-later
"""A profile becomes QEMU's command line, by the Jinja template in qemu_profiles/."""

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
        fd: the end of the console's pipe that QEMU writes to.
        log: file to which QEMU itself writes the console.
        append: whether the file keeps what it has.
    """

    fd: int
    log: Path
    append: bool = False


@dataclass(frozen=True)
class Boot:
    """What a machine boots, and where its console goes.

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

    Connected pairs are inherited, so that no socket has a name that could be guessed or left over.
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
        accel: what executes the guest's instructions.
        boot: kernel, initramfs and console; None for bare hardware.
        control: the qtest and QMP connections; with them, the machine starts paused.
        incoming: whether the machine waits for the state of another to be loaded into it.
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
                    "a path has a line break in it",
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
