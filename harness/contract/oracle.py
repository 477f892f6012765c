# SPDX-License-Identifier: GPL-2.0-or-later
"""The expected owners, computed from a scenario, its addresses and the policy.

Source: the contract in docs/contract.md, which follows the linux-cxl discussion.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from msgspec.structs import replace

from harness.core.kernel_modules import module_name
from harness.core.kernel_version import kernel_version
from harness.platform.firmware_state import FirmwareState, NamedRange
from harness.platform.kernel_cmdline import denied_initcalls, denied_modules
from harness.platform.memory_range import MemoryRange
from harness.platform.target_node import target_node
from harness.scenario.scenario import Ownership, Policy, Scenario, Use

# The option that builds each driver.
DRIVER_OPTIONS = {
    "cxl_acpi": "CXL_ACPI",
    "cxl_pci": "CXL_PCI",
    "cxl_mem": "CXL_MEM",
    "dax_cxl": "DEV_DAX_CXL",
    "dax_hmem": "DEV_DAX_HMEM",
    "kmem": "DEV_DAX_KMEM",
    "device_dax": "DEV_DAX",
}

# The modules that dax_hmem_init() requests since Linux 7.1, with their dependencies.
ASKED_BY_DAX_HMEM = ("cxl_acpi", "cxl_pci", "cxl_mem")
_DAX_HMEM_ASKS_SINCE = (7, 1, 0)

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


def as_run(
    scenario: Scenario,
    loaded: Collection[str],
    config: Mapping[str, Literal["y", "m", "n"]],
    release: str = "",
) -> Scenario:
    """Replace the modules and options that the file names by those that the kernel has.

    Loading a module loads others: by dependencies, softdeps, and `request_module()` in
    `dax_hmem_init()` since Linux 7.1; a kernel that does not request them must not pass because of
    that. A module that the scenario keeps out is never expected, even if the kernel loads it.

    Args:
        scenario: as its file states it.
        loaded: modules that are loaded, by the kernel's spelling.
        config: the options that the kernel was built with; empty if they are unknown.
        release: of the kernel; empty if it is unknown.
    """
    kept_out = {module_name(one) for one in scenario.guest.missing}
    kept_out |= denied_modules(scenario.kernel.cmdline)
    kept_out |= denied_modules(scenario.kernel.cmdline, "modprobe.blacklist")
    named = [module_name(one) for one in scenario.guest.modules]
    asks = dax_hmem_asks(scenario, release, config.get("DEV_DAX_CXL"))
    brought = {*loaded, *(ASKED_BY_DAX_HMEM if asks else ())}
    also = [one for one in DRIVER_OPTIONS if one in brought and one not in {*named, *kept_out}]
    known = {
        option: config[option]
        for option in ("CXL_REGION", *DRIVER_OPTIONS.values())
        if option in config
    }
    return replace(
        scenario,
        guest=replace(scenario.guest, load=(*named, *also)),
        kernel=replace(scenario.kernel, config={**scenario.kernel.config, **known}),
    )


def dax_hmem_asks(scenario: Scenario, release: str = "", built: str | None = None) -> bool:
    """Return whether dax_hmem requests the CXL drivers, on every kernel of a scenario or on one.

    Args:
        scenario: what is loaded, and for which kernels it is.
        release: of the kernel, empty if it is unknown.
        built: its DEV_DAX_CXL, None if it is unknown.
    """
    version = max(kernel_version(release), kernel_version(scenario.kernel.since))
    return (
        version >= _DAX_HMEM_ASKS_SINCE
        and (built or scenario.kernel.config.get("DEV_DAX_CXL")) != "n"
        and "dax_hmem" in map(module_name, scenario.guest.modules)
    )


def expected_owners(
    scenario: Scenario, state: FirmwareState, policy: Policy
) -> dict[str, Ownership]:
    """The owner of every Soft Reserved range, and of every region without one under it.

    Ranges are those that the kernel makes (`FirmwareState.kernel_ranges`). Regions appear under
    their decoder's name. Under `all_or_nothing`, no region is left when one Soft Reserved range in
    a window is not contained in a region, so none of them appears then.
    """
    reserved = state.kernel_ranges()
    regions = state.regions() if _regions_form(scenario) else ()
    use = _use(scenario)
    # A region waits for dax_cxl to be loaded, and dax_hmem leaves alone what is in it.
    by_region = (
        Ownership(owner="dax_cxl", use=use)
        if available(scenario, "dax_cxl")
        else Ownership(owner="nobody")
    )
    by_cxl = {
        one.name: _cxl_may_own(scenario) and _claimed(one, regions, reserved) for one in reserved
    }
    given_up = policy == "all_or_nothing" and not all(
        by_cxl[one.name] for one in _in_windows(state)
    )
    owners = {}
    for one in reserved:
        if by_cxl[one.name] and not given_up:
            owners[one.name] = _in_node(by_region, one.range, scenario, state)
        elif available(scenario, "dax_hmem"):
            by_hmem = Ownership(owner="dax_hmem", use=use)
            owners[one.name] = _in_node(by_hmem, one.range, scenario, state)
        else:
            owners[one.name] = Ownership(owner="nobody")
    for decoder in state.decoders:
        if any(decoder.range.overlaps(one.range) for one in reserved):
            continue
        if _is_ram(decoder.range, state):
            owners[decoder.name] = Ownership(owner="firmware_ram")
        elif not given_up and _cxl_may_own(scenario) and decoder.name in _names(regions):
            owners[decoder.name] = _in_node(by_region, decoder.range, scenario, state)
    return owners


def leaves_no_region(scenario: Scenario, state: FirmwareState, policy: Policy) -> bool:
    """Return whether rule 3 requires every region gone: CXL is given up, and dax_hmem is loaded.

    Source: the discussion of version 4 of the series, 8/9: "CXL subsystem understands everything,
    or touches nothing", with all regions torn down before dax_hmem takes over.
    """
    regions = state.regions() if _regions_form(scenario) else ()
    return (
        policy == "all_or_nothing"
        and available(scenario, "dax_hmem")
        and not all(_claimed(one, regions, state.kernel_ranges()) for one in _in_windows(state))
    )


def _in_node(
    owner: Ownership, span: MemoryRange, scenario: Scenario, state: FirmwareState
) -> Ownership:
    """The owner, with the NUMA node that the memory must come up in.

    That is the node of the first byte of dax_hmem's range or of dax_cxl's region. A kernel without
    CXL_ACPI makes nodes of windows up to Linux 7.0 and none since 7.1: no node is expected there.
    """
    if owner.owner == "nobody" or scenario.kernel.config.get("CXL_ACPI") == "n":
        return owner
    regions = state.regions() if owner.owner == "dax_cxl" else ()
    whole = next((one.range for one in regions if one.range.contains(span)), span)
    return replace(owner, node=target_node(whole.start, state.nodes))


def _names(ranges: Collection[NamedRange]) -> set[str]:
    return {one.name for one in ranges}


def _is_ram(span: MemoryRange, state: FirmwareState) -> bool:
    return any(span.overlaps(one) for one in state.firmware_ram)


def _in_windows(state: FirmwareState) -> tuple[NamedRange, ...]:
    return tuple(
        one
        for one in state.kernel_ranges()
        if any(one.range.overlaps(window) for window in state.windows)
    )


def _claimed(
    reserved: NamedRange, regions: Collection[NamedRange], others: Collection[NamedRange]
) -> bool:
    """Return whether a region contains a range, and overlaps no range that it does not contain.

    dax_cxl takes a region as a whole, so where a part of the region must be dax_hmem's, dax_cxl
    can have none of it.
    """
    return any(
        region.range.contains(reserved.range)
        and all(
            region.range.contains(one.range) or not region.range.overlaps(one.range)
            for one in others
        )
        for region in regions
    )


def _regions_form(scenario: Scenario) -> bool:
    return scenario.kernel.config.get("CXL_REGION") != "n" and all(
        available(scenario, name) for name in ("cxl_acpi", "cxl_pci", "cxl_mem")
    )


def _cxl_may_own(scenario: Scenario) -> bool:
    return scenario.kernel.config.get("DEV_DAX_CXL") != "n" and (
        scenario.kernel.config.get("CXL_REGION") != "n"
    )


def _use(scenario: Scenario) -> Use:
    if available(scenario, "kmem"):
        return "system_ram"
    if scenario.kernel.config.get("DEV_DAX_KMEM") == "n" and available(scenario, "device_dax"):
        return "devdax"
    return "none"


def available(scenario: Scenario, driver: str) -> bool:
    """Return whether a driver runs: built in or loaded by a guest step, and not denied."""
    built = scenario.kernel.config.get(DRIVER_OPTIONS[driver])
    if built in ("y", "n"):
        denied = denied_initcalls(scenario.kernel.cmdline)
        return built == "y" and _INITCALLS[driver] not in denied
    if driver in denied_modules(scenario.kernel.cmdline):
        return False
    return driver in {module_name(name) for name in scenario.guest.modules}
