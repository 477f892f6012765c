# SPDX-License-Identifier: GPL-2.0-or-later
"""When the boot is a step of the scenario, and which kernel messages do not count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_guest import prepared_of

from harness.guest.initramfs import SCENARIO_MODULES
from harness.scenario.scenario_files import load_case


def without(name: str) -> tuple[str, ...]:
    return tuple(one for one in SCENARIO_MODULES if one != name)


@pytest.mark.parametrize("driver", ["cxl_acpi", "cxl_pci", "dax_hmem"])
def test_the_boot_counts_with_a_built_in_driver_that_probes_by_itself(
    tmp_path: Path, driver: str
) -> None:
    assert prepared_of(tmp_path, modules=without(driver)).boot_counts
    missing = {driver: "the kernel has none"}
    assert not prepared_of(tmp_path, modules=without(driver), **missing).boot_counts
    assert not prepared_of(tmp_path).boot_counts


@pytest.mark.parametrize("driver", ["cxl_port", "kmem", "device_dax", "dax_cxl"])
def test_a_driver_that_waits_for_devices_of_others_does_not_make_it_count(
    tmp_path: Path, driver: str
) -> None:
    """Debian builds cxl_port in, for one."""
    assert not prepared_of(tmp_path, modules=without(driver)).boot_counts


def test_messages_that_do_not_count_are_expected_by_the_scenario_or_caused_by_qemu(
    tmp_path: Path,
) -> None:
    patterns = [one.pattern for one in prepared_of(tmp_path, "partial_region-7.2").expected_lines()]
    assert any("No CHBS found" in one for one in patterns)
    assert any("hogged CPU" in one for one in patterns)


@pytest.mark.parametrize(
    ("name", "bridge", "counts"),
    [
        ("partial_region_middle", 0x70, False),
        ("partial_region_middle", 0x35, True),  # the CEDT has this one
        ("exact_cover", 0x70, True),
    ],
)
def test_a_message_about_a_host_bridge_that_the_profile_hides_does_not_count(
    tmp_path: Path, name: str, bridge: int, counts: bool
) -> None:
    prepared = replace(prepared_of(tmp_path), case=load_case(name))
    line = f"acpi ACPI0016:00: No CHBS found for Host Bridge (UID {bridge})"
    matches = any(pattern.search(line) for pattern in prepared.expected_lines())
    assert matches is not counts
