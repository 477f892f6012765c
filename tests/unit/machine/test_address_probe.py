# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest
from layouts import cedt_table, layout_of, srat_table

from harness.core.errors import MachineLostError
from harness.machine.address_probe import machine_layout
from harness.machine.qemu_binary import QemuBinary
from harness.platform.acpi_tables import FixedWindow, parse_cedt
from harness.platform.address_map import MachineLayout
from harness.scenario.profile import Profile
from harness.scenario.scenario_files import load_profile

QEMU = QemuBinary(Path("qemu"), (10, 0, 2), "10.0.2", "0" * 64, True, ())


def probed(profile: Profile, windows: tuple[FixedWindow, ...]) -> MachineLayout:
    """The layout of a QEMU that has these windows."""
    made_up = layout_of(profile)
    tables = {
        "CEDT": cedt_table(made_up.bridges, windows).hex(),
        "SRAT": srat_table(made_up.memory).hex(),
    }
    return machine_layout(QEMU, profile, lambda _key, _ask: tables)


def test_a_hidden_window_is_there_and_not_in_the_cedt_that_linux_gets() -> None:
    profile = load_profile("window_and_hole")
    windows = layout_of(profile).windows
    layout = probed(profile, windows)
    assert layout.windows == windows
    assert layout.cedt is not None
    bridges, told = parse_cedt(layout.cedt)
    assert [one.uid for one in bridges] == [0x35]
    assert told == windows[:1]


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_qemu_with_another_number_of_windows_is_told(kept: int) -> None:
    profile = load_profile("two_windows")
    windows = layout_of(profile).windows
    with pytest.raises(
        MachineLostError, match=f"requested 2 fixed windows from QEMU, and its CEDT has {kept}"
    ):
        probed(profile, (*windows, windows[1])[:kept])
