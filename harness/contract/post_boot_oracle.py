# SPDX-License-Identifier: GPL-2.0-or-later
"""The expected owners after each post-boot step of a scenario.

What a step takes away has no owner until a step gives it back; then it is owned as before.
Source: rule 7 of docs/contract.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from harness.contract.oracle import expected_owners, leaves_no_region
from harness.core.kernel_modules import module_name
from harness.platform.firmware_state import FirmwareState
from harness.scenario.owner import Ownership, Use
from harness.scenario.post_boot_steps import GuestStep
from harness.scenario.scenario import Policy, Scenario

_NOBODY = Ownership(owner="nobody")
# What makes a region, and what a region's dax device needs.
_CXL = ("cxl_acpi", "cxl_pci", "cxl_mem", "dax_cxl")


@dataclass
class _State:
    """The state that the steps so far have left.

    Attributes:
        unloaded: modules that a step unloaded and none has loaded again.
        unbound: drivers that a step has unbound from their device.
        gone: decoders whose region is destroyed or whose decoders are reset.
        uses: what names are used for, where a step changed it.
    """

    unloaded: set[str] = field(default_factory=set)
    unbound: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    uses: dict[str, Use] = field(default_factory=dict)


def owners_after_steps(
    scenario: Scenario, state: FirmwareState, policy: Policy
) -> tuple[dict[str, Ownership], ...]:
    """The owners of the same ranges and regions as `expected_owners`, after each step."""
    later = [name for step in scenario.guest.then for name in step.modules()]
    loaded = tuple(dict.fromkeys((*scenario.guest.modules, *later)))
    first = expected_owners(_with_loaded(scenario, loaded), state, policy)
    life = _State()
    life.unloaded.update(
        {module_name(name) for name in later}
        - {module_name(name) for name in scenario.guest.modules}
    )
    found = []
    for step in scenario.guest.then:
        _apply(life, step, first)
        found.append({name: _now(name, owner, life, state) for name, owner in first.items()})
    return tuple(found)


def no_region_after_steps(
    scenario: Scenario, state: FirmwareState, policy: Policy
) -> tuple[bool, ...]:
    """After each step, whether no region may be left.

    CXL stays given up, even if dax_hmem is unloaded later.
    """
    loaded = scenario.guest.modules
    found = []
    for step in scenario.guest.then:
        loaded = (*loaded, *step.modules()) if step.unload is None else loaded
        found.append(leaves_no_region(_with_loaded(scenario, loaded), state, policy))
    return tuple(found)


def _with_loaded(scenario: Scenario, modules: tuple[str, ...]) -> Scenario:
    return replace(scenario, guest=replace(scenario.guest, load=modules))


def parts_of(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """Which of `names` a name means: itself, or the parts into which SRAT entries divide it."""
    return tuple(one for one in names if one == name or one.startswith(f"{name}["))


def _apply(life: _State, step: GuestStep, first: Mapping[str, Ownership]) -> None:
    bindings = step.while_pending or ((step,) if step.bind or step.unbind else ())
    for one in bindings:
        if one.fails is None and one.unbind is not None:
            life.unbound.add(one.unbind.driver)
            if one.unbind.driver == "hmem_platform":
                _renew(life, {"dax_hmem"}, first)
        elif one.fails is None and one.bind is not None:
            life.unbound.discard(one.bind.driver)
    if step.fails is not None:
        return
    if step.unload is not None:
        life.unloaded.add(module_name(step.unload))
    for name in (step.load, step.load_unbound):
        if name is not None:
            life.unloaded.discard(module_name(name))
    if step.modules():
        again = {module_name(name) for name in step.modules()}
        _renew(life, again, first)
        if "dax_hmem" in again and step.unload is None:
            life.unbound.discard("hmem_platform")
    if step.load_unbound == "dax_hmem":
        life.unbound.add("hmem_platform")
    for name in (step.offline, step.online, step.reconfigure):
        for part in parts_of(name, first) if name is not None else ():
            life.uses.pop(part, None)
            if step.offline is not None:
                life.uses[part] = "offline"
            if step.reconfigure is not None and step.mode == "devdax":
                life.uses[part] = "devdax"
    for name in (step.destroy_region, step.decommit):
        if name is not None:
            life.gone.add(name)
            _renew(life, {"dax_cxl"}, first)
    for name in (step.create_region, step.commit):
        if name is not None:
            life.gone.discard(name)


def _renew(life: _State, modules: set[str], first: Mapping[str, Ownership]) -> None:
    """Forget the uses of devices that come new, or whose driver does, with these modules."""
    for name in list(life.uses):
        makers = {"kmem", first[name].owner}
        if makers & modules or (first[name].owner == "dax_cxl" and modules.intersection(_CXL)):
            del life.uses[name]


def _now(name: str, first: Ownership, life: _State, state: FirmwareState) -> Ownership:
    if first.owner == "dax_cxl":
        spans = {one.name: one.range for one in (*state.named_ranges(), *state.judged_ranges())}
        lost = any(spans[one].overlaps(spans[name]) for one in life.gone)
        if lost or life.unloaded.intersection(_CXL):
            return _NOBODY
    if first.owner == "dax_hmem" and (
        "dax_hmem" in life.unloaded or "hmem_platform" in life.unbound
    ):
        return _NOBODY
    if first.owner == "nobody" or first.use == "none":
        return first
    if "kmem" in life.unloaded and first.use == "system_ram":
        return replace(first, use="none")
    return replace(first, use=life.uses.get(name, first.use))
