# SPDX-License-Identifier: GPL-2.0-or-later
"""Which commands do a step, for a guest as it was last observed: on paper, nothing runs here."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.contract.observation import CxlRegion, DaxDevice, Observation
from harness.core.kernel_modules import MODPROBE, module_name
from harness.platform.firmware_state import FirmwareState
from harness.platform.memory_range import MemoryRange
from harness.scenario.post_boot_steps import Binding, BindingStep, GuestStep

# The bus gives new drivers no device while the command runs.
_UNBOUND = (
    "echo 0 > /sys/bus/platform/drivers_autoprobe; {}; status=$?; "
    "echo 1 > /sys/bus/platform/drivers_autoprobe; (exit $status)"
)


class StepError(ValueError):
    """The guest has nothing that the step could be done to."""


@dataclass(frozen=True)
class Command:
    """One command line of a step.

    Attributes:
        title: what it does, for the kernel's log and for findings.
        line: for the guest's shell.
        fails: name of the error that it must end with, or None.
    """

    title: str
    line: str
    fails: str | None = None


@dataclass(frozen=True)
class RegionMakeup:
    """What it takes to create a region again.

    Attributes:
        root: its root decoder.
        memdevs: its devices, in interleave order.
        granularity: bytes of one interleave step.
        size: bytes.
    """

    root: str
    memdevs: tuple[str, ...]
    granularity: int
    size: int


def commands_of(
    step: GuestStep,
    observation: Observation,
    state: FirmwareState,
    makeups: Mapping[str, RegionMakeup | None],
) -> tuple[Command, ...]:
    """The commands of a step that is not several others.

    Args:
        step: any but `reload_every_order` and `while_pending`.
        observation: the guest before the step.
        state: where the scenario's names lie.
        makeups: of the regions that steps have destroyed, by decoder; None of one that was not
            assembled.

    Raises:
        StepError: the guest has no such device or region.
    """
    if step.reload is not None:
        return reload_commands(step.reload, observation)
    title, name = str(step), getattr(step, step.verb)
    if step.load is not None:
        line = f"{MODPROBE} {shlex.quote(name)}"
    elif step.load_unbound is not None:
        line = _UNBOUND.format(f"{MODPROBE} {shlex.quote(name)}")
    elif step.unload is not None:
        line = f"rmmod {shlex.quote(module_name(name))}"
    elif step.bind is not None or step.unbind is not None:
        line = _binding_line(step.verb, name)
    elif step.verb in ("offline", "online", "reconfigure"):
        line = _memory_line(step, _devices(name, _range(name, state), observation))
    elif step.verb == "create_region":
        makeup = makeups[name]
        if makeup is None:
            raise StepError(f"the region of {name} was not assembled when it was destroyed")
        line = _create_line(makeup)
    else:
        line = _region_line(step.verb, region_over(name, state, observation))
    return (Command(title, line, step.fails),)


def reload_commands(order: Sequence[str], observation: Observation) -> tuple[Command, ...]:
    """The commands that unload modules in this order and load them in reverse.

    kmem gives back only memory that is offline, so what is about to lose its driver or its device
    is taken offline first, as an administrator would.
    """
    going = {module_name(name) for name in order}
    if going & {"cxl_acpi", "cxl_pci", "cxl_mem"}:
        going.add("dax_cxl")
    busy = [
        device.name
        for device in observation.dax
        if device.driver == "kmem"
        and ("kmem" in going or device.parent in going)
        and any(one.minus(observation.offline) for one in device.ranges)
    ]
    return (
        *(Command(f"offline {name}", f"daxctl offline-memory {name}") for name in busy),
        *(Command(f"rmmod {one}", f"rmmod {module_name(one)}") for one in order),
        *(Command(f"modprobe {one}", f"{MODPROBE} {one}") for one in reversed(order)),
    )


def binding_command(step: BindingStep) -> Command:
    """The command of one binding among several."""
    (verb,) = step.verbs()
    return Command(str(step), _binding_line(verb, getattr(step, verb)), step.fails)


def region_over(name: str, state: FirmwareState, observation: Observation) -> CxlRegion:
    """The guest's region of a decoder.

    Raises:
        StepError: there is none.
    """
    span = _range(name, state)
    for region in observation.regions:
        if region.range == span:
            return region
    have = ", ".join(f"{one.name} {one.range}" for one in observation.regions) or "none"
    raise StepError(f"no region is there over {name}, {span}; the guest's regions: {have}")


def read_makeup(text: str) -> RegionMakeup:
    """What `makeup_line` printed.

    Raises:
        ValueError: it is not that.
    """
    path, _, listed = text.partition("\n")
    try:
        (region,) = json.loads(listed)
        mappings = sorted(region["mappings"], key=lambda one: int(one["position"]))
        return RegionMakeup(
            root=path.strip().split("/")[-2],
            memdevs=tuple(str(one["memdev"]) for one in mappings),
            granularity=int(region["interleave_granularity"]),
            size=int(region["size"]),
        )
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"not a listed region: {error}: {text[:200]!r}") from None


def makeup_line(region: str) -> str:
    """The command that prints a region's place in sysfs and what it is made of."""
    return f"readlink -f /sys/bus/cxl/devices/{region} && cxl list -T -r {region}"


def _range(name: str, state: FirmwareState) -> MemoryRange:
    return next(one.range for one in state.named_ranges() if one.name == name)


def _devices(name: str, span: MemoryRange, observation: Observation) -> tuple[DaxDevice, ...]:
    devices = tuple(
        device for device in observation.dax if any(one.overlaps(span) for one in device.ranges)
    )
    if not devices:
        raise StepError(f"no dax device is there over {name}, {span}")
    return devices


def _memory_line(step: GuestStep, devices: Sequence[DaxDevice]) -> str:
    names = " ".join(device.name for device in devices)
    if step.reconfigure is not None:
        # --force: take the memory offline first, or leave putting it online to the kernel.
        return f"daxctl reconfigure-device --force --mode={step.mode} {names}"
    return f"daxctl {step.verb}-memory {names}"


def _region_line(verb: str, found: CxlRegion) -> str:
    region = found.name
    if verb == "destroy_region":
        if found.driver is None:
            # Not assembled: the cxl program does not list it, and so does not destroy it.
            return f"echo {region} > /sys/bus/cxl/devices/{region}/../delete_region"
        return f"cxl disable-region {region} && cxl destroy-region {region}"
    commit = f"/sys/bus/cxl/devices/{region}/commit"
    if verb == "decommit":
        return f"echo 0 > {commit}"
    return f"echo 1 > {commit} && echo {region} > /sys/bus/cxl/drivers/cxl_region/bind"


def _create_line(makeup: RegionMakeup) -> str:
    ways = len(makeup.memdevs)
    grain = f" -g {makeup.granularity}" if ways > 1 else ""
    return (
        f"cxl create-region -t ram -d {makeup.root} -w {ways}{grain} -s {makeup.size} "
        f"-m {' '.join(makeup.memdevs)}"
    )


def _binding_line(verb: str, binding: Binding) -> str:
    path = f"/sys/bus/{binding.bus}/drivers/{binding.driver}/{verb}"
    return f"echo {binding.device} > {path}"
