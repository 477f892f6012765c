# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracle: who must own what, computed from a scenario, its addresses and the policy.

Source: the contract in docs/contract.md, which follows the linux-cxl discussion.
"""

from __future__ import annotations

from harness.model.denials import denied_initcalls, denied_modules
from harness.model.kernel_modules import module_name
from harness.model.placement import FirmwareState, NamedRange
from harness.model.scenario import Ownership, Policy, Scenario, Use

# The option that builds each driver.
_OPTIONS = {
    "cxl_acpi": "CXL_ACPI",
    "cxl_pci": "CXL_PCI",
    "cxl_mem": "CXL_MEM",
    "dax_cxl": "DEV_DAX_CXL",
    "dax_hmem": "DEV_DAX_HMEM",
    "kmem": "DEV_DAX_KMEM",
    "device_dax": "DEV_DAX",
}

# The initcall of each driver when it is built in.
_INITCALLS = {
    "cxl_acpi": "cxl_acpi_init",
    "cxl_pci": "cxl_pci_driver_init",
    "cxl_mem": "cxl_mem_driver_init",
    "dax_cxl": "cxl_dax_region_init",
    "dax_hmem": "dax_hmem_init",
    "kmem": "dax_kmem_init",
    "device_dax": "dax_init",
}


def expected_owners(
    scenario: Scenario, state: FirmwareState, policy: Policy
) -> dict[str, Ownership]:
    """The owner of every Soft Reserved range, and of every region without one under it.

    Regions appear under their decoder's name. Under `all_or_nothing`, no region is left when one
    Soft Reserved range in a window is not contained in a region, so none of them appears then.
    """
    regions = state.regions() if _regions_form(scenario) else ()
    use = _use(scenario)
    by_cxl = {
        reserved.name: _cxl_may_own(scenario) and _contained(reserved, regions)
        for reserved in state.soft_reserved
    }
    given_up = policy == "all_or_nothing" and not all(
        by_cxl[reserved.name] for reserved in _in_windows(state)
    )
    owners = {}
    for reserved in state.soft_reserved:
        if by_cxl[reserved.name] and not given_up:
            owners[reserved.name] = Ownership(owner="dax_cxl", use=use)
        elif _available(scenario, "dax_hmem"):
            owners[reserved.name] = Ownership(owner="dax_hmem", use=use)
        else:
            owners[reserved.name] = Ownership(owner="nobody")
    if not given_up and _cxl_may_own(scenario):
        for region in regions:
            if not any(region.range.overlaps(one.range) for one in state.soft_reserved):
                owners[region.name] = Ownership(owner="dax_cxl", use=use)
    return owners


def leaves_no_region(scenario: Scenario, state: FirmwareState, policy: Policy) -> bool:
    """Whether rule 3 wants every region gone: CXL is given up, and dax_hmem is there to do it.

    Source: the discussion of version 4 of the series, 8/9: "CXL subsystem understands everything,
    or touches nothing", with all regions torn down before dax_hmem takes over.
    """
    regions = state.regions() if _regions_form(scenario) else ()
    return (
        policy == "all_or_nothing"
        and _available(scenario, "dax_hmem")
        and not all(_contained(reserved, regions) for reserved in _in_windows(state))
    )


def _in_windows(state: FirmwareState) -> tuple[NamedRange, ...]:
    return tuple(
        reserved
        for reserved in state.soft_reserved
        if any(reserved.range.overlaps(window) for window in state.windows)
    )


def _contained(reserved: NamedRange, regions: tuple[NamedRange, ...]) -> bool:
    return any(region.range.contains(reserved.range) for region in regions)


def _regions_form(scenario: Scenario) -> bool:
    return scenario.kernel.config.get("CXL_REGION") != "n" and all(
        _available(scenario, name) for name in ("cxl_acpi", "cxl_pci", "cxl_mem")
    )


def _cxl_may_own(scenario: Scenario) -> bool:
    return scenario.kernel.config.get("DEV_DAX_CXL") != "n" and (
        scenario.kernel.config.get("CXL_REGION") != "n"
    )


def _use(scenario: Scenario) -> Use:
    if _available(scenario, "kmem"):
        return "system_ram"
    if scenario.kernel.config.get("DEV_DAX_KMEM") == "n" and _available(scenario, "device_dax"):
        return "devdax"
    return "none"


def _available(scenario: Scenario, driver: str) -> bool:
    """Whether a driver gets to run: built in or loaded by a guest step, and not denied."""
    built = scenario.kernel.config.get(_OPTIONS[driver])
    if built in ("y", "n"):
        denied = denied_initcalls(scenario.kernel.cmdline)
        return built == "y" and _INITCALLS[driver] not in denied
    if driver in denied_modules(scenario.kernel.cmdline):
        return False
    return driver in {module_name(name) for name in scenario.guest.modules}
