# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from harness.guest.initramfs import SCENARIO_MODULES, SharedInitramfs
from harness.platform.address_map import MachineLayout
from harness.platform.firmware_state import FirmwareState
from harness.runs.prepare import Bootable, Prepared
from harness.scenario.scenario_files import load_case


def prepared(*modules: str, missing: tuple[str, ...] = (), name: str = "exact_cover") -> Prepared:
    """A scenario on a kernel with these modules, and without these."""
    shared = SharedInitramfs(
        Path("x"), dict.fromkeys(modules, ()), dict.fromkeys(missing, "not there")
    )
    bootable = SimpleNamespace(initramfs=shared, accel="tcg", kernel=None)
    return Prepared(
        case=load_case(name),
        bootable=cast(Bootable, bootable),
        layout=cast(MachineLayout, None),
        state=cast(FirmwareState, None),
        settings=(),
        command_line="",
        acpi_tables={},
    )


@pytest.mark.parametrize("driver", ["cxl_acpi", "cxl_pci", "dax_hmem"])
def test_the_boot_counts_with_a_driver_built_in_that_begins_by_itself(driver: str) -> None:
    rest = tuple(name for name in SCENARIO_MODULES if name != driver)
    assert prepared(*rest).boot_counts
    assert not prepared(*rest, missing=(driver,)).boot_counts, "the kernel has none"
    assert not prepared(*SCENARIO_MODULES).boot_counts


@pytest.mark.parametrize("driver", ["cxl_port", "kmem", "device_dax", "dax_cxl"])
def test_a_driver_that_waits_for_what_others_find_does_not_make_it_count(driver: str) -> None:
    """Debian builds cxl_port in, for one."""
    assert not prepared(*(name for name in SCENARIO_MODULES if name != driver)).boot_counts


def test_lines_that_do_not_count_are_the_scenarios_and_qemus() -> None:
    patterns = [one.pattern for one in prepared(name="partial_region").expected_lines()]
    assert any("No CHBS found" in one for one in patterns)
    assert any("hogged CPU" in one for one in patterns)


def test_a_host_bridge_that_the_profile_hides_is_not_held_against_the_kernel() -> None:
    def counts(name: str, line: str) -> bool:
        return not any(one.search(line) for one in prepared(name=name).expected_lines())

    said = "acpi ACPI0016:00: No CHBS found for Host Bridge (UID {})"
    assert not counts("partial_region_middle", said.format(0x70))
    assert counts("partial_region_middle", said.format(0x35)), "Linux is told of this one"
    assert counts("exact_cover", said.format(0x70))
