# SPDX-License-Identifier: GPL-2.0-or-later
"""Explain a missing region by the drivers that its devices lack."""

from __future__ import annotations

from collections.abc import Mapping

from harness.contract.observation import Observation
from harness.platform.firmware_state import FirmwareState
from harness.scenario.owner import Ownership

# Devices of the cxl bus without which Linux assembles no region, and the drivers that one needs to
# be bound. Decoders and the root have no driver.
_NEEDS = {
    "port": ("cxl_port",),
    "endpoint": ("cxl_port",),
    "mem": ("cxl_mem", "cxl_port"),
}
_DIGITS = "0123456789"


def driverless(
    observation: Observation, expected: Mapping[str, Ownership], state: FirmwareState
) -> tuple[str, ...]:
    """Devices and drivers that are missing where a region that the firmware committed is missing.

    Empty where dax_cxl need not own a range.

    Args:
        observation: of the guest.
        expected: the owner of each range.
        state: the firmware's decoders.
    """
    existing = {region.range for region in observation.regions}
    complete = all(region.range in existing for region in state.regions())
    if complete or all(one.owner != "dax_cxl" for one in expected.values()):
        return ()
    devices = observation.cxl_devices
    kinds = {name.rstrip(_DIGITS) for name in devices}
    lines = []
    if "root" not in kinds:
        lines.append(f"there is no CXL root{_reason(('cxl_acpi',), observation)}")
    if "mem" not in kinds:
        lines.append(f"there is no CXL memory device{_reason(('cxl_pci',), observation)}")
    for name in sorted(devices):
        needs = _NEEDS.get(name.rstrip(_DIGITS), ())
        if needs and devices[name] is None:
            lines.append(f"{name} has no driver{_reason(needs, observation)}")
    return tuple(lines)


def _reason(drivers: tuple[str, ...], observation: Observation) -> str:
    there = {*observation.modules, *observation.cxl_drivers, *observation.cxl_devices.values()}
    for driver in drivers:
        if driver not in there:
            return f": {driver} is not loaded"
    return f", although {' and '.join(drivers)} {'is' if len(drivers) == 1 else 'are'} loaded"
