# SPDX-License-Identifier: GPL-2.0-or-later
"""Query the addresses of a profile's windows, host bridges and RAM from QEMU.

A separate QEMU is queried, once for each profile and QEMU, and the answer is stored: reading the
ACPI tables before the firmware makes QEMU build them too early for the guest, and the kernel's
command line, which contains addresses, is needed before the machine exists.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from tempfile import TemporaryFile

from harness.core.errors import MachineLostError, UsageError
from harness.machine.fw_cfg import read_fw_cfg
from harness.machine.qemu import running_qemu
from harness.machine.qemu_argv import qemu_argv
from harness.machine.qemu_binary import QemuBinary
from harness.platform.acpi_tables import (
    AcpiTableError,
    FixedWindow,
    parse_cedt,
    parse_srat,
    replace_cedt,
    split_tables,
)
from harness.platform.address_map import MachineLayout
from harness.platform.memory_range import MemoryRange
from harness.scenario.profile import Profile

# Part of the key. Increment it when the format of the stored answer changes.
_FORM = 1


def layout_key(qemu: QemuBinary, profile: Profile) -> str:
    """A hexadecimal digest of all inputs of the address map."""
    argv = qemu_argv(qemu, profile, "tcg")[1:]
    return hashlib.sha256(
        json.dumps([_FORM, qemu.identity, argv], ensure_ascii=True).encode()
    ).hexdigest()[:32]


def ask_layout(qemu: QemuBinary, profile: Profile) -> dict[str, str]:
    """Start this machine paused and read its CEDT and SRAT, as hexadecimal text.

    Raises:
        MachineLostError: QEMU did not start; `where` has its command line.
        UsageError: QEMU rejects the profile.
    """
    with TemporaryFile() as log:
        try:
            with running_qemu(
                lambda control, _console: qemu_argv(qemu, profile, "tcg", control=control), log
            ) as machine:
                machine.connect_monitor()
                tables = split_tables(read_fw_cfg(machine.qtest, "etc/acpi/tables"))
        except AcpiTableError as error:
            raise MachineLostError(
                f"invalid ACPI tables from QEMU: {error}",
                hint="is this QEMU version untested? see harness doctor",
            ) from None
        except MachineLostError as error:
            if "QEMU ended with status 1" in error.message:
                raise UsageError(
                    f"QEMU rejects this profile; {error.message}",
                    hint="correct the profile; harness boot --print shows the command line",
                ) from None
            raise
    if "SRAT" not in tables or (profile.host_bridges and "CEDT" not in tables):
        raise MachineLostError(
            f"QEMU built the ACPI tables {', '.join(sorted(tables))}, without SRAT or CEDT",
            hint="is this QEMU version untested? see harness doctor",
        )
    return {name: tables[name].hex() for name in ("CEDT", "SRAT") if name in tables}


def machine_layout(
    qemu: QemuBinary,
    profile: Profile,
    remember: Callable[[str, Callable[[], dict[str, str]]], dict[str, str]],
) -> MachineLayout:
    """The address map of a profile on this QEMU.

    Args:
        qemu: the QEMU.
        profile: the hardware.
        remember: returns the stored answer for a key, or calls the function and stores its result.
    """
    tables = remember(layout_key(qemu, profile), lambda: ask_layout(qemu, profile))
    srat = bytes.fromhex(tables["SRAT"])
    memory = parse_srat(srat)
    if "CEDT" not in tables:
        return MachineLayout(bridges=(), windows=(), memory=memory, srat=srat)
    cedt = bytes.fromhex(tables["CEDT"])
    bridges, parts = parse_cedt(cedt)
    windows = _join_parts(profile, parts)
    replaced = None
    if profile.differs_from_cedt():
        hidden = {bridge.bus for bridge in profile.host_bridges if bridge.hidden}
        replaced = replace_cedt(
            cedt,
            [one for one in bridges if one.uid not in hidden],
            [
                one
                for one, window in zip(windows, profile.windows, strict=True)
                if not window.hidden
            ],
        )
    return MachineLayout(bridges=bridges, windows=windows, memory=memory, srat=srat, cedt=replaced)


def _join_parts(profile: Profile, parts: tuple[FixedWindow, ...]) -> tuple[FixedWindow, ...]:
    """The windows of the profile, joined from QEMU's windows for their parts."""
    uid = {bridge.name: bridge.bus for bridge in profile.host_bridges}
    left = list(parts)
    requested = sum(len(window.hardware()) for window in profile.windows)
    if len(parts) != requested:
        raise MachineLostError(
            f"requested {requested} fixed windows from QEMU, and its CEDT has {len(parts)}",
            hint="is this QEMU version untested? see harness doctor",
        )
    joined = []
    for window in profile.windows:
        mine, left = left[: len(window.hardware())], left[len(window.hardware()) :]
        if sum(one.range.size for one in mine) != mine[-1].range.end + 1 - mine[0].range.start:
            raise MachineLostError(
                "QEMU has placed the parts of a window apart",
                hint="is this QEMU version untested? see harness doctor",
            )
        joined.append(
            FixedWindow(
                MemoryRange(mine[0].range.start, mine[-1].range.end),
                tuple(uid[name] for name in window.targets),
                mine[0].granularity,
            )
        )
    return tuple(joined)
