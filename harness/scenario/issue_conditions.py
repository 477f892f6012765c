# SPDX-License-Identifier: GPL-2.0-or-later
"""Conditions under which a known issue occurs: addresses, kernel, load, steps, command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import msgspec

from harness.contract.oracle import DRIVER_OPTIONS, available
from harness.core.kernel_modules import module_name
from harness.platform.firmware_state import FirmwareState, NamedRange, PlacedDecoder
from harness.platform.kernel_cmdline import denied_modules
from harness.platform.memory_range import GIB, MIB, MemoryRange, merge_adjacent
from harness.scenario.module_load import How, Load, LoadPlan
from harness.scenario.owner import Ownership
from harness.scenario.post_boot_steps import VERBS, GuestStep
from harness.scenario.scenario import Policy, Scenario
from harness.scenario.yaml_document import FieldError

# The place of a driver in a load is twice that of its module; built-in drivers come first.
_BUILT_IN = -2
_EVERYWHERE = (MemoryRange(0, 2**64 - 1),)

Owners = Mapping[str, Ownership]
AddressCondition = Literal[
    "covered_in_part",
    "crossed_by_region",
    "dax_cxl",
    "dax_hmem_in_window",
    "failed_region",
    "interleave_above_16k",
    "interleave_high_bits_first",
    "locked_region",
    "no_node",
    "range_beyond_srat",
    "region_larger",
    "srat_entry_beyond_range",
    "start_without_node",
    "unlocked_region",
    "within_memory_block",
]


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A driver that runs before at least one of several others, all of them present."""

    first: str
    before: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]


@dataclass(frozen=True)
class Circumstances:
    """One scenario on one kernel, before or after a run.

    Attributes:
        scenario: with the options of the kernel, as far as they are known.
        state: the firmware state at real addresses.
        policy: the policy that is judged.
        owners: the expected owners, by name.
        load: the load of one guest; None for all loads of the scenario.
    """

    scenario: Scenario
    state: FirmwareState
    policy: Policy
    owners: Owners
    load: Load | None = None


class Conditions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Conditions that must all hold; without any, the issue occurs everywhere.

    Attributes:
        addresses: a property of addresses; the issue covers findings at these addresses only.
        config: options, without CONFIG_, and their values.
        drivers: drivers that run: loaded by `guest.load`, or built in.
        order: a driver that runs before others.
        load: the way in which modules are loaded; None for any.
        cmdline: parameters that the kernel is given.
        cmdline_lacks: parameters that it is not given.
        steps: steps after boot, in this order, perhaps with others between: a verb and its object
            (a module, a driver, a decoder), or `*`.
    """

    addresses: AddressCondition | None = None
    config: dict[str, Literal["y", "m", "n", "enabled"]] = {}
    drivers: tuple[str, ...] = ()
    order: Order | None = None
    load: How | None = None
    cmdline: tuple[str, ...] = ()
    cmdline_lacks: tuple[str, ...] = ()
    steps: tuple[dict[str, str], ...] = ()

    def __post_init__(self) -> None:
        for index, step in enumerate(self.steps):
            if len(step) != 1 or not set(step) <= set(VERBS):
                raise FieldError(
                    f"{step} is not a step",
                    field=f"steps[{index}]",
                    hint=f"write one verb and its object, or '*': {', '.join(VERBS)}",
                )

    def where(self, case: Circumstances) -> tuple[MemoryRange, ...]:
        """Return the addresses at which they hold: all without `addresses`, empty for nowhere."""
        scenario = case.scenario
        parameters = scenario.kernel.cmdline
        holds = (
            all(_configured(scenario, option, value) for option, value in self.config.items())
            and all(_place(case, driver) is not None for driver in self.drivers)
            and (self.order is None or _in_order(case, self.order))
            and (self.load is None or self.load == _how(case))
            and set(self.cmdline) <= set(parameters)
            and set(self.cmdline_lacks).isdisjoint(parameters)
            and _steps_follow(scenario.guest.then, self.steps)
        )
        if not holds:
            return ()
        if self.addresses is None:
            return _EVERYWHERE
        state = case.state if _regions_may_form(scenario) else replace(case.state, decoders=())
        return addresses_where(self.addresses, state, case.owners)


def _configured(scenario: Scenario, option: str, value: str) -> bool:
    """True if an option has a value; an option that is not stated is m, as in most kernels."""
    built = scenario.kernel.config.get(option, "m")
    if value == "enabled":
        return built != "n"
    return built == value


def _regions_may_form(scenario: Scenario) -> bool:
    """True if no driver that a region needs is kept out; dax_hmem may load those not listed."""
    kept_out = {*scenario.guest.missing, *denied_modules(scenario.kernel.cmdline)}
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
    """Return the place at which a driver starts in the load, None if it does not start.

    A built-in cxl_acpi is a subsys_initcall, before the device_initcalls of the others.
    """
    scenario = case.scenario
    if driver in DRIVER_OPTIONS and not available(scenario, driver):
        return None
    if scenario.kernel.config.get(DRIVER_OPTIONS.get(driver, "")) == "y":
        return _BUILT_IN - 1 if driver == "cxl_acpi" else _BUILT_IN
    modules = case.load.modules if case.load else scenario.guest.modules
    names = [module_name(name) for name in modules]
    if driver in names:
        return 2 * names.index(driver)
    loaded_by_dax_hmem = driver in DRIVER_OPTIONS and "dax_hmem" in names
    return 2 * names.index("dax_hmem") - 1 if loaded_by_dax_hmem else None


def _in_order(case: Circumstances, order: Order) -> bool:
    first = _place(case, order.first)
    others = [_place(case, driver) for driver in order.before]
    if first is None or None in others or _how(case) != "in_order":
        return False
    plan = case.scenario.guest.load
    if case.load is None and isinstance(plan, LoadPlan):
        return any(other is not None and other > _BUILT_IN for other in others)
    return any(other is not None and first < other for other in others)


def _steps_follow(done: tuple[GuestStep, ...], expected: tuple[dict[str, str], ...]) -> bool:
    left = iter(done)
    return all(any(_is_step(step, condition) for step in left) for condition in expected)


def _is_step(step: GuestStep, condition: Mapping[str, str]) -> bool:
    ((verb, target),) = condition.items()
    verbs = (verb, "reload_every_order") if verb == "reload" else (verb,)
    if step.verb not in verbs:
        return False
    value = getattr(step, step.verb)
    if target == "*":
        return True
    return (
        target in value if isinstance(value, tuple) else target == getattr(value, "driver", value)
    )


def addresses_where(
    condition: AddressCondition, state: FirmwareState, owners: Owners
) -> tuple[MemoryRange, ...]:
    """Return the addresses with a property; empty if there are none.

    Args:
        condition: the property; the function for each describes it.
        state: the firmware state.
        owners: the expected owners, by name.
    """
    return merge_adjacent(_FINDERS[condition](state, owners))


def _covered_in_part(state: FirmwareState, _owners: Owners) -> Iterable[MemoryRange]:
    """Soft Reserved ranges of which a region or a window covers only a part, and these regions.

    No single resource can be such a range. A region that Linux gives up counts, too: it stays in
    iomem (drivers/cxl/core/region.c, __construct_region).
    """
    regions = _decoded(state)
    units = [unit for reserved in state.kernel_ranges() for unit in _units(reserved, state)]
    parts = (*regions, *state.windows)
    cut = [unit for unit in units if any(_overlaps_part(part, unit) for part in parts)]
    return [*cut, *_drawn_in(regions, cut)]


def _crossed(state: FirmwareState, _owners: Owners) -> Iterable[MemoryRange]:
    """Ranges in which a region begins or ends that reaches beyond them, and these regions.

    A region that Linux gives up counts, too.
    """
    regions = _decoded(state)
    crossed = [
        reserved.range
        for reserved in state.kernel_ranges()
        if any(
            _overlaps_part(region, reserved.range) and _overlaps_part(reserved.range, region)
            for region in regions
        )
    ]
    return [*crossed, *_drawn_in(regions, crossed)]


def _owned_by_cxl(state: FirmwareState, owners: Owners) -> Iterable[MemoryRange]:
    """Ranges that dax_cxl should own."""
    return [
        judged.range
        for judged in state.judged_ranges()
        if judged.name in owners and owners[judged.name].owner == "dax_cxl"
    ]


def _hmem_in_window(state: FirmwareState, owners: Owners) -> Iterable[MemoryRange]:
    """Ranges that overlap a window and that dax_hmem should own."""
    return [
        reserved.range
        for reserved in state.kernel_ranges()
        if owners[reserved.name].owner == "dax_hmem"
        and any(unit.overlaps(w) for unit in _units(reserved, state) for w in state.windows)
    ]


def _failed_region(state: FirmwareState, _owners: Owners) -> Iterable[MemoryRange]:
    """Regions that Linux cannot assemble, because their decoders disagree."""
    return [
        decoder.range
        for decoder in state.decoders
        if not decoder.hidden and decoder.ports_range != decoder.range
    ]


def _interleave_above_16k(state: FirmwareState, _owners: Owners) -> Iterable[MemoryRange]:
    """Regions whose granularity times the ways above a host bridge or switch exceeds 16 KiB."""
    return [
        decoder.range
        for decoder in state.decoders
        # The last of a path's ports leads to the device, which Linux does not check so.
        if any(len({*above}) * decoder.granularity > 16384 for above in _levels(decoder)[:-1])
    ]


def _interleave_high_bits_first(state: FirmwareState, _owners: Owners) -> Iterable[MemoryRange]:
    """Regions with a level of ports that selects by higher address bits than a lower level."""
    return [
        decoder.range
        for decoder in state.decoders
        if any(
            path != above[way % len({*above})]
            for above in _levels(decoder)
            for way, path in enumerate(above)
        )
    ]


def _levels(decoder: PlacedDecoder) -> list[list[tuple[str, ...]]]:
    """The beginnings of a decoder's paths: first the host bridges, at last the whole paths."""
    longest = max((len(path) for path in decoder.paths), default=0)
    return [[path[:depth] for path in decoder.paths] for depth in range(1, longest + 1)]


def _no_node(state: FirmwareState, _owners: Owners) -> Iterable[MemoryRange]:
    """Ranges that no entry of the SRAT describes."""
    described = [*state.ram, *state.hotplug_room, *(entry.range for entry in state.srat)]
    return [
        reserved.range
        for reserved in state.soft_reserved
        if reserved.range.minus(described) == (reserved.range,)
    ]


def _start_without_node(state: FirmwareState, _owners: Owners) -> Iterable[MemoryRange]:
    """Ranges that begin outside the SRAT's entries and the windows."""
    added = [entry.range for entry in state.srat]
    described = [*state.ram, *state.hotplug_room, *added, *state.windows]
    return [
        reserved.range
        for reserved in state.kernel_ranges()
        if not any(known.start <= reserved.range.start <= known.end for known in described)
    ]


def _range_beyond_srat(state: FirmwareState, _owners: Owners) -> Iterable[MemoryRange]:
    """Ranges that contain a dividing entry of the SRAT and more."""
    return [
        reserved.range
        for reserved in state.kernel_ranges()
        if any(reserved.range != e and reserved.range.contains(e) for e in state.dividing)
    ]


def _srat_entry_beyond(state: FirmwareState, _owners: Owners) -> Iterable[MemoryRange]:
    """Ranges that a dividing entry of the SRAT overlaps and exceeds, and these entries."""
    return [
        both
        for reserved in state.kernel_ranges()
        for entry in state.dividing
        if entry.overlaps(reserved.range) and not reserved.range.contains(entry)
        for both in (reserved.range, entry)
    ]


def _region_larger(state: FirmwareState, owners: Owners) -> Iterable[MemoryRange]:
    """Regions that dax_cxl should own, and that contain a range and are larger."""
    owned = list(_owned_by_cxl(state, owners))
    return [
        region.range
        for region in state.regions()
        if any(region.range.contains(span) and region.range != span for span in owned)
    ]


def _within_block(state: FirmwareState, owners: Owners) -> Iterable[MemoryRange]:
    """Parts of ranges or regions, to be System RAM, that are not a whole memory block.

    A block has 128 MiB, or with 64 GiB of RAM up to 2 GiB (arch/x86/mm/init_64.c,
    probe_memory_block_size()).
    """
    large = sum(bank.size for bank in state.ram) >= 64 * GIB - MIB
    block = 2 * GIB if large else 128 * MIB
    regions = [region.range for region in state.regions()]
    for judged in state.judged_ranges():
        if judged.name not in owners or owners[judged.name].use != "system_ram":
            continue
        by_cxl = owners[judged.name].owner == "dax_cxl"
        containing = [region for region in regions if by_cxl and region.contains(judged.range)]
        device = containing[0] if containing else judged.range
        first, end = -(-device.start // block) * block, (device.end + 1) // block * block
        yield from device.minus([MemoryRange(first, end - 1)] if first < end else [])


def _with_lock(locked: bool) -> Callable[[FirmwareState, Owners], Iterable[MemoryRange]]:
    """Ranges that dax_cxl should own, with decoders locked or not."""

    def find(state: FirmwareState, owners: Owners) -> Iterable[MemoryRange]:
        decoders = [decoder.range for decoder in state.decoders if decoder.locked is locked]
        return [
            span
            for span in _owned_by_cxl(state, owners)
            if any(decoder.contains(span) for decoder in decoders)
        ]

    return find


_FINDERS: Mapping[AddressCondition, Callable[[FirmwareState, Owners], Iterable[MemoryRange]]] = {
    "covered_in_part": _covered_in_part,
    "crossed_by_region": _crossed,
    "dax_cxl": _owned_by_cxl,
    "dax_hmem_in_window": _hmem_in_window,
    "failed_region": _failed_region,
    "interleave_above_16k": _interleave_above_16k,
    "interleave_high_bits_first": _interleave_high_bits_first,
    "locked_region": _with_lock(True),
    "no_node": _no_node,
    "range_beyond_srat": _range_beyond_srat,
    "region_larger": _region_larger,
    "srat_entry_beyond_range": _srat_entry_beyond,
    "start_without_node": _start_without_node,
    "unlocked_region": _with_lock(False),
    "within_memory_block": _within_block,
}


def _decoded(state: FirmwareState) -> list[MemoryRange]:
    """The ranges of which Linux makes regions, including regions that it gives up."""
    return [decoder.range for decoder in state.decoders if not decoder.hidden]


def _units(reserved: NamedRange, state: FirmwareState) -> tuple[MemoryRange, ...]:
    """The ranges that dax_hmem registers for a Soft Reserved range.

    Entries of the SRAT that overlap it are registered first, and then the range itself is not
    (drivers/acpi/numa/hmat.c; drivers/dax/hmem/device.c).
    """
    return tuple(entry for entry in state.dividing if entry.overlaps(reserved.range)) or (
        reserved.range,
    )


def _drawn_in(regions: list[MemoryRange], cut: list[MemoryRange]) -> list[MemoryRange]:
    return [region for region in regions if any(region.overlaps(other) for other in cut)]


def _overlaps_part(other: MemoryRange, span: MemoryRange) -> bool:
    return other.overlaps(span) and not other.contains(span)
