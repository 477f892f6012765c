# SPDX-License-Identifier: GPL-2.0-or-later
"""Conditions under which a known issue occurs: of layout, kernel, load, steps and command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import msgspec

from harness.contract.oracle import DRIVER_OPTIONS, available
from harness.core.kernel_modules import module_name
from harness.platform.firmware_state import FirmwareState
from harness.platform.memory_range import MemoryRange
from harness.platform.module_denials import denied_modules
from harness.scenario.issue_layouts import Trouble, troubled
from harness.scenario.module_load import How, Load, LoadPlan
from harness.scenario.owner import Ownership
from harness.scenario.post_boot_steps import VERBS, BindingStep, GuestStep
from harness.scenario.scenario import Policy, Scenario

# The place of a driver in a load is twice that of its module; a built-in driver is before all.
_BUILT_IN = -2
_WHOLE = (MemoryRange(0, 2**64 - 1),)


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A driver that runs before at least one of several others, all of them present."""

    first: str
    before: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]


@dataclass(frozen=True)
class Circumstances:
    """One scenario on one kernel, before or after a run.

    Attributes:
        scenario: with the options that the kernel was built with, as far as they are known.
        state: what the firmware leaves, at real addresses.
        policy: whose rules are judged.
        owners: the expected owners, by name.
        load: what one guest loads; None for every load that the scenario asks for.
    """

    scenario: Scenario
    state: FirmwareState
    policy: Policy
    owners: Mapping[str, Ownership]
    load: Load | None = None


class Conditions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Conditions that all have to hold; none given always holds.

    Attributes:
        layout: what is special about addresses. What the issue covers lies where that is so.
        config: options, without CONFIG_, and their values.
        drivers: drivers that run: loaded by `guest.load`, or built in.
        order: which driver runs before which others.
        load: how modules are loaded; any way without it.
        cmdline: parameters that are given to the kernel.
        cmdline_lacks: parameters that are not.
        steps: steps after boot, in this order, perhaps with others between: a verb and what it is
            done to (a module, a driver, a decoder), or `*`.
    """

    layout: Trouble | None = None
    config: dict[str, Literal["y", "n", "enabled"]] = {}
    drivers: tuple[str, ...] = ()
    order: Order | None = None
    load: How | None = None
    cmdline: tuple[str, ...] = ()
    cmdline_lacks: tuple[str, ...] = ()
    steps: tuple[dict[str, str], ...] = ()

    def where(self, case: Circumstances) -> tuple[MemoryRange, ...]:
        """The addresses at which they hold: all where no layout is named, empty for nowhere."""
        scenario = case.scenario
        words = scenario.kernel.cmdline
        holds = (
            all(_configured(scenario, *one) for one in self.config.items())
            and all(_place(case, one) is not None for one in self.drivers)
            and (self.order is None or _in_order(case, self.order))
            and (self.load is None or self.load == _how(case))
            and all(one in words for one in self.cmdline)
            and not any(one in words for one in self.cmdline_lacks)
            and _steps_follow(scenario.guest.then, self.steps)
        )
        if not holds:
            return ()
        if self.layout is None:
            return _WHOLE
        state = case.state if _regions_may_form(scenario) else replace(case.state, decoders=())
        return troubled(self.layout, state, case.owners)

    def unknown_step(self) -> str | None:
        """A step whose verb does not exist, or that is not one verb; None where all are right."""
        for step in self.steps:
            if len(step) != 1 or not set(step) <= set(VERBS):
                return str(step)
        return None


def _configured(scenario: Scenario, option: str, value: str) -> bool:
    """Whether an option has a value; one that nobody states is as in most kernels, a module."""
    built = scenario.kernel.config.get(option, "m")
    if value == "enabled":
        return built != "n"
    return built == value


def _regions_may_form(scenario: Scenario) -> bool:
    """Whether no driver that a region needs is kept out; dax_hmem may load those not named."""
    kept_out = {*map(module_name, scenario.guest.missing)}
    kept_out |= denied_modules(scenario.kernel.cmdline)
    return scenario.kernel.config.get("CXL_REGION") != "n" and not any(
        driver in kept_out or scenario.kernel.config.get(DRIVER_OPTIONS[driver]) == "n"
        for driver in ("cxl_acpi", "cxl_pci", "cxl_mem")
    )


def _how(case: Circumstances) -> How:
    if case.load is not None:
        return case.load.how
    plan = case.scenario.guest.load
    if not isinstance(plan, LoadPlan) or plan.all_orders:
        return "in_order"
    return "at_once" if plan.parallel else "by_modalias"


def _place(case: Circumstances, driver: str) -> int | None:
    """When a driver begins: by its place in the load, before that when built in, None for never.

    cxl_acpi is a subsys_initcall, before the device_initcalls of the others.
    """
    scenario = case.scenario
    if driver in DRIVER_OPTIONS and not available(scenario, driver):
        return None
    if scenario.kernel.config.get(DRIVER_OPTIONS.get(driver, "")) == "y":
        return _BUILT_IN - 1 if driver == "cxl_acpi" else _BUILT_IN
    modules = case.load.modules if case.load else scenario.guest.modules
    names = [module_name(one) for one in modules]
    if driver in names:
        return 2 * names.index(driver)
    # dax_hmem loads it.
    is_brought = driver in DRIVER_OPTIONS and "dax_hmem" in names
    return 2 * names.index("dax_hmem") - 1 if is_brought else None


def _in_order(case: Circumstances, order: Order) -> bool:
    first = _place(case, order.first)
    others = [_place(case, one) for one in order.before]
    if first is None or None in others or _how(case) != "in_order":
        return False
    plan = case.scenario.guest.load
    if case.load is None and isinstance(plan, LoadPlan):
        return any(other is not None and other > _BUILT_IN for other in others)
    return any(other is not None and first < other for other in others)


def _steps_follow(done: tuple[GuestStep, ...], asked: tuple[dict[str, str], ...]) -> bool:
    left = iter(done)
    return all(any(_is_step(step, one) for step in left) for one in asked)


def _is_step(step: GuestStep | BindingStep, asked: Mapping[str, str]) -> bool:
    ((verb, what),) = asked.items()
    verbs = (verb, "reload_every_order") if verb == "reload" else (verb,)
    value = next((v for name in verbs if (v := getattr(step, name, None)) is not None), None)
    if value is None or what == "*":
        return value is not None
    if isinstance(value, tuple):
        return what in {module_name(str(one)) for one in value}
    return bool(what == getattr(value, "driver", value))
