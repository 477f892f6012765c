# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of the steps after boot, and running them in the guest over SSH.

Each command writes a mark into the kernel's log first.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.contract.module_holders import parse_holders
from harness.contract.observation import CxlRegion, DaxDevice, Observation
from harness.contract.result import Finding
from harness.core.deadline import Deadline
from harness.core.errors import GuestLostError, MomentMissedError
from harness.core.kernel_modules import MODPROBE, module_name
from harness.guest.ssh import GuestCommand, GuestShell
from harness.platform.firmware_state import FirmwareState
from harness.platform.memory_range import MemoryRange
from harness.scenario.post_boot_steps import Binding, BindingStep, GuestStep

_STEP_SECONDS = 60.0
_SEE_LOG = "see serial.log in the evidence, and run it again"
# With autoprobe off, the bus gives a new driver no device.
_UNBOUND = (
    "echo 0 > /sys/bus/platform/drivers_autoprobe; {}; status=$?; "
    "echo 1 > /sys/bus/platform/drivers_autoprobe; (exit $status)"
)


class StepError(ValueError):
    """The guest has no device or region for the step."""


@dataclass(frozen=True)
class Command:
    """One command line of a step.

    Attributes:
        title: its action, for the kernel's log and for findings.
        line: for the guest's shell.
        fails: name of the error that is expected, None for success.
    """

    title: str
    line: str
    fails: str | None = None


@dataclass(frozen=True)
class RegionMakeup:
    """The parameters to create a region again.

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
    """The commands of a step that stands for one action.

    Args:
        step: any but `reload_every_order` and `while_pending`.
        observation: the guest before the step.
        state: the ranges of the scenario's names.
        makeups: of the regions that steps have destroyed, by decoder; None for a region that was
            not assembled.

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

    kmem releases only offline memory, so memory that is about to lose its driver or its device is
    taken offline first, as an administrator would.
    """
    unloaded = {module_name(name) for name in order}
    if unloaded & {"cxl_acpi", "cxl_pci", "cxl_mem"}:
        unloaded.add("dax_cxl")
    busy = [
        device.name
        for device in observation.dax
        if device.driver == "kmem"
        and ("kmem" in unloaded or device.parent in unloaded)
        and any(span.minus(observation.offline) for span in device.ranges)
    ]
    return (
        *(Command(f"offline {name}", f"daxctl offline-memory {name}") for name in busy),
        *(Command(f"rmmod {name}", f"rmmod {module_name(name)}") for name in order),
        *(Command(f"modprobe {name}", f"{MODPROBE} {name}") for name in reversed(order)),
    )


def binding_command(step: BindingStep) -> Command:
    """The command of one binding of `while_pending`."""
    (verb,) = step.verbs()
    return Command(str(step), _binding_line(verb, getattr(step, verb)), step.fails)


def region_over(name: str, state: FirmwareState, observation: Observation) -> CxlRegion:
    """The guest's region of a decoder.

    Raises:
        StepError: no region has the decoder's range.
    """
    span = _range(name, state)
    for region in observation.regions:
        if region.range == span:
            return region
    existing = ", ".join(f"{one.name} {one.range}" for one in observation.regions) or "none"
    raise StepError(f"no region over {name}, {span}; the guest's regions: {existing}")


def read_makeup(text: str) -> RegionMakeup:
    """Read the output of `makeup_line`.

    Raises:
        ValueError: it describes no region.
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
    """The command that prints a region's path in sysfs and its devices."""
    return f"readlink -f /sys/bus/cxl/devices/{region} && cxl list -T -r {region}"


def _range(name: str, state: FirmwareState) -> MemoryRange:
    return next(one.range for one in state.named_ranges() if one.name == name)


def _devices(name: str, span: MemoryRange, observation: Observation) -> tuple[DaxDevice, ...]:
    devices = tuple(
        device for device in observation.dax if any(one.overlaps(span) for one in device.ranges)
    )
    if not devices:
        raise StepError(f"no dax device over {name}, {span}")
    return devices


def _memory_line(step: GuestStep, devices: Sequence[DaxDevice]) -> str:
    names = " ".join(device.name for device in devices)
    if step.reconfigure is not None:
        # --force: take the memory offline first, or let the kernel online it.
        return f"daxctl reconfigure-device --force --mode={step.mode} {names}"
    return f"daxctl {step.verb}-memory {names}"


def _region_line(verb: str, cxl_region: CxlRegion) -> str:
    region = cxl_region.name
    if verb == "destroy_region":
        if cxl_region.driver is None:
            # Not assembled: the cxl program does not list it, and cannot destroy it.
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


@dataclass(frozen=True)
class StepDone:
    """The result of a step.

    Attributes:
        transcript: its commands and their output.
        problem: the first command with an unexpected result, or None.
    """

    transcript: str
    problem: Finding | None


def run_commands(shell: GuestShell, commands: Sequence[Command]) -> StepDone:
    """Run the commands of a step, up to the first with an unexpected result.

    Raises:
        GuestLostError: the guest is gone.
        DeadlineExpiredError: a command does not end.
    """
    transcript = []
    for command in commands:
        deadline = Deadline(_STEP_SECONDS, f"{command.title!r} to end in the guest")
        done = shell.run(f"{shell.begin(command.title)}; {command.line}", deadline)
        transcript.append(_recorded(command, done.status, done.output))
        problem = _problem(command, done.status, done.output)
        if problem is not None:
            return StepDone("".join(transcript), problem)
    return StepDone("".join(transcript), None)


def run_while_pending(shell: GuestShell, commands: Sequence[Command]) -> StepDone:
    """Run commands together, while the kernel's deferred work is held up.

    Raises:
        GuestLostError: the guest is gone, or could not hold the work up.
        MomentMissedError: a command succeeded after the work had run.
        DeadlineExpiredError: the commands do not end.
    """
    token = secrets.token_hex(16)
    deadline = Deadline(_STEP_SECONDS, "steps with held-up work to end in the guest")
    lines = " ".join(shlex.quote(f"{shell.begin(one.title)}; {one.line}") for one in commands)
    done = shell.run(f"while_pending {token} {lines}", deadline)
    *outputs, end = done.output.split(f"{token} ")
    if len(outputs) != len(commands) + 1 or not end.startswith(("held", "not held")):
        raise GuestLostError(
            f"the guest could not hold up its deferred work: {done.output[-500:].strip()!r}",
            hint="see serial.log in the evidence; can the guest run realtime programs?",
        )
    transcript, problem, printed = [], None, outputs[0]
    for command, after in zip(commands, outputs[1:], strict=True):
        status, _, more = after.partition("\n")
        if not status.isdecimal():
            raise GuestLostError(
                f"the guest printed {status[:40]!r} as an exit status", hint=_SEE_LOG
            )
        transcript.append(_recorded(command, int(status), printed))
        problem = problem or _problem(command, int(status), printed)
        printed = more
    if problem is not None and not end.startswith("held"):
        # The work had run, so the kernel was right.
        raise MomentMissedError(
            "the kernel's deferred work was not pending during the steps",
            hint="use a less busy host; this needs a kernel that defers the work",
        )
    return StepDone("".join(transcript), problem)


def read_module_holders(shell: GuestShell) -> dict[str, tuple[str, ...]]:
    """The loaded modules, each with the modules that use it.

    Raises:
        GuestLostError: the guest is gone, or its list is malformed.
        DeadlineExpiredError: no reply in time.
    """
    done = _query(shell, "cat /proc/modules", "the guest's list of modules")
    try:
        return parse_holders(done.output)
    except ValueError as error:
        raise GuestLostError(str(error), hint=_SEE_LOG) from None


def read_region_makeup(shell: GuestShell, region: CxlRegion) -> RegionMakeup | None:
    """The parameters to create a region again; None for a region that is not assembled.

    Raises:
        GuestLostError: the guest is gone, or the output of `cxl` is malformed.
        DeadlineExpiredError: no reply in time.
    """
    if region.driver is None:
        return None  # not listed by cxl
    done = _query(shell, makeup_line(region.name), f"the description of {region.name}")
    try:
        return read_makeup(done.output)
    except ValueError as error:
        raise GuestLostError(str(error), hint="does the guest's cxl list this region?") from None


def _query(shell: GuestShell, line: str, what: str) -> GuestCommand:
    return shell.run(line, Deadline(_STEP_SECONDS, what))


def _recorded(command: Command, status: int, output: str) -> str:
    body = f"{output.strip()}\n" if output.strip() else ""
    return f"$ {command.line}\n{body}status {status}\n"


def _problem(command: Command, status: int, output: str) -> Finding | None:
    text = _problem_text(command, status, output)
    if text is None:
        return None
    subject = f"{command.title}: {' '.join(output.split())}"
    return Finding("step", text, kind="command_failed", subject=subject)


def _problem_text(command: Command, status: int, output: str) -> str | None:
    printed = " ".join(output.split())
    if command.fails is None:
        if status == 0:
            return None
        return f"{command.title} ended with status {status}: {printed}"
    if status == 0:
        return f"{command.title}: it succeeded"
    message = os.strerror(getattr(errno, command.fails))
    if message in output:
        return None
    return f"{command.title}: it failed with another error, status {status}: {printed}"
