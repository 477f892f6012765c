# SPDX-License-Identifier: GPL-2.0-or-later
"""Reasons for a missing region, from observations of real guests and changed ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from machines import committed, firmware_state

from harness.contract.driverless import driverless
from harness.contract.observation import Observation
from harness.contract.observation_parser import parse_observation, split_sections
from harness.scenario.owner import Ownership

CORPUS = Path(__file__).parents[2] / "data" / "observations"
BY_CXL = {"sr0": Ownership(owner="dax_cxl", use="system_ram")}
WINDOW = "110000000-18fffffff"
STATE = firmware_state({}, decoders=[committed("decoder0", WINDOW)])


def corpus(name: str) -> dict[str, str]:
    return split_sections((CORPUS / name / "sections").read_text(), "captured")


def without_region(name: str = "exact_cover-6.18") -> Observation:
    return replace(parse_observation(corpus(name)), regions=())


def less(seen: Observation, module: str, *devices: str) -> Observation:
    """The same guest without a module, and without some devices or their drivers.

    `mem0` has no driver; `-mem0` is not there.
    """
    gone = [device[1:] for device in devices if device.startswith("-")]
    bound = {
        name: None if name in devices else driver
        for name, driver in seen.cxl_devices.items()
        if name not in gone
    }
    kept = tuple(name for name in seen.modules if name != module)
    return replace(seen, cxl_devices=bound, modules=kept)


@pytest.mark.parametrize("name", ["exact_cover-6.12", "exact_cover-6.18", "exact_cover-7.2"])
def test_devices_and_drivers_of_real_guests(name: str) -> None:
    seen = parse_observation(corpus(name))
    assert seen.cxl_devices["mem0"] == "cxl_mem"
    assert seen.cxl_devices["port1"] == "cxl_port"
    assert seen.cxl_devices["root0"] is None


def test_drivers_that_bind_nothing_are_seen() -> None:
    sections = corpus("exact_cover-7.2")
    folder = "drwxr-xr-x    2 root     root             0 Nov 20 09:43 "
    sections["cxl_links"] += f"{folder}cxl/drivers/cxl_mem\n{folder}pci/drivers/cxl_pci\n"
    assert parse_observation(sections).cxl_drivers == ("cxl_mem", "cxl_pci")


def test_nothing_is_missing_where_a_region_is_or_none_is_expected() -> None:
    assert driverless(parse_observation(corpus("exact_cover-6.18")), BY_CXL, STATE) == ()
    seen = less(without_region(), "cxl_port", "port1", "mem0", "-endpoint2")
    assert driverless(seen, {"sr0": Ownership(owner="dax_hmem", use="system_ram")}, STATE) == ()
    assert driverless(seen, BY_CXL, STATE)


def test_a_port_driver_that_is_not_loaded() -> None:
    seen = less(without_region(), "cxl_port", "port1", "mem0", "-endpoint2")
    assert driverless(seen, BY_CXL, STATE) == (
        "mem0 has no driver: cxl_port is not loaded",
        "port1 has no driver: cxl_port is not loaded",
    )


def test_one_region_exists_and_another_is_missing() -> None:
    other = committed("decoder1", "190000000-20fffffff")
    state = firmware_state({}, decoders=[committed("decoder0", WINDOW), other])
    seen = parse_observation(corpus("exact_cover-6.18"))
    assert seen.regions
    seen = replace(seen, cxl_devices={**seen.cxl_devices, "mem1": None})
    assert driverless(seen, BY_CXL, state) == (
        "mem1 has no driver, although cxl_mem and cxl_port are loaded",
    )
    assert driverless(seen, BY_CXL, STATE) == ()


def test_a_driver_that_is_loaded_and_does_not_bind() -> None:
    (line,) = driverless(less(without_region(), "", "mem0"), BY_CXL, STATE)
    assert line == "mem0 has no driver, although cxl_mem and cxl_port are loaded"
    idle = replace(less(without_region(), "cxl_mem", "mem0"), cxl_drivers=("cxl_mem",))
    assert driverless(idle, BY_CXL, STATE) == (line,)


@pytest.mark.parametrize(
    ("module", "devices", "line"),
    [
        ("cxl_mem", ("mem0",), "mem0 has no driver: cxl_mem is not loaded"),
        ("cxl_pci", ("-mem0",), "there is no CXL memory device: cxl_pci is not loaded"),
        ("cxl_acpi", ("-root0",), "there is no CXL root: cxl_acpi is not loaded"),
        ("", ("-root0",), "there is no CXL root, although cxl_acpi is loaded"),
    ],
)
def test_each_module_that_a_region_needs(module: str, devices: tuple[str, ...], line: str) -> None:
    assert line in driverless(less(without_region(), module, *devices), BY_CXL, STATE)
