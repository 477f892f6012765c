# SPDX-License-Identifier: GPL-2.0-or-later
"""Running an unpacked bundle again, or judging again what its guest showed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.bundle.pack import SERIES, read_json
from harness.contract.dmesg import StepMarks, in_phases
from harness.contract.expected import expectations
from harness.contract.judge import Judgement, judge
from harness.contract.observation import SECTIONS, ObservationError, Undecoded
from harness.contract.observation_parser import parse_observation
from harness.contract.oracle import as_run
from harness.contract.preflight import window_problems
from harness.contract.result import OwnedRange, RunResult
from harness.core.errors import UsageError
from harness.kernels.build.tree import split_ref
from harness.kernels.spec import parse_kernel_spec
from harness.platform.acpi_tables import AcpiTableError
from harness.platform.firmware_state import FirmwareState, place_firmware
from harness.platform.hdm_decoders import plan_decoders
from harness.platform.memory_range import MemoryRange
from harness.runs.evidence import (
    JUDGING,
    LAYOUT,
    PROFILE,
    SCENARIO,
    layout_from_json,
)
from harness.runs.minimize import requested_load
from harness.runs.result_files import (
    VERDICT,
    KernelFacts,
    StoredRun,
    load_runs,
    read_kernel,
    read_text,
)
from harness.scenario.checks import check_scenario
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.profile import read_profile
from harness.scenario.scenario import Policy, read_scenario
from harness.scenario.scenario_files import Case


@dataclass(frozen=True)
class Recording:
    """A run as somebody recorded it.

    Attributes:
        folder: the unpacked evidence.
        run: the result, with its evidence.
        case: the scenario as it was, loading what was loaded.
        policy: by which it was judged.
    """

    folder: Path
    run: StoredRun
    case: Case
    policy: Policy

    @property
    def record(self) -> RunResult:
        """The result."""
        return self.run.record


def read_recording(folder: Path) -> Recording:
    """Read an unpacked bundle.

    Raises:
        UsageError: its result, scenario or profile is not what this version of the harness reads.
    """
    (run,) = load_runs([folder / VERDICT])
    document = read_scenario(read_text(folder / SCENARIO), SCENARIO)
    profile_text = read_text(folder / PROFILE)
    profile = read_profile(profile_text, PROFILE).value
    check_scenario(document, profile)
    case = Case(run.record.scenario, document, profile, profile_text=profile_text)
    if run.record.load is not None:
        case = requested_load(case, run.record.load.option())
    return Recording(folder, run, case, run.record.policy)


def request_of(recording: Recording) -> KernelRequest:
    """The kernel that was asked for, with the series that the bundle brings.

    Raises:
        UsageError: it lies on the other person's machine; says what it was.
    """
    request = recording.record.request
    spec = parse_kernel_spec(request.spec)
    at = split_ref(spec.value)[0] if spec.source == "build" else Path(spec.value).expanduser()
    if spec.source in ("image", "build") and not at.exists():
        raise UsageError(
            f"the kernel {request.spec} is not on this machine: {_what_it_was(recording)}",
            where=recording.record.scenario,
            hint="get such a kernel and name it with --kernel; --judge-only needs none",
        )
    series = request.series
    packed = recording.folder / SERIES
    if series is None:
        return request
    if packed.is_dir():
        # The bundle has the patches up to `upto`, and no others.
        return replace(request, series=packed, upto=None)
    if series.expanduser().exists():
        return request
    raise UsageError(
        f"the series {series} is neither on this machine nor in the bundle",
        where=recording.record.scenario,
        hint="get the series, and name kernel and series with --kernel and --series",
    )


def _what_it_was(recording: Recording) -> str:
    manifest = recording.run.manifest
    words = [f"Linux {recording.record.kernel.release or 'of unknown version'}"]
    if manifest is not None and manifest.source is not None:
        source = manifest.source
        words.append(f"of {source.origin}")
        if source.commit:
            changed = ", with uncommitted changes" if source.dirty else ""
            words.append(f"commit {source.commit}{changed}")
    if recording.record.kernel.config_sha256:
        words.append(f"with the config of SHA-256 {recording.record.kernel.config_sha256}")
    return " ".join(map(str, words))


@dataclass(frozen=True)
class Rejudged:
    """What the oracle and the judge of today say about a recorded observation."""

    judgement: Judgement
    state: FirmwareState


def judge_again(recording: Recording) -> Rejudged:
    """Judge the recorded observation, without any guest.

    What a guest did after its boot, and modules that did not load, are not in an observation.

    Raises:
        UsageError: there is no whole observation in it, or it is one of another machine.
    """
    layout = layout_from_json(read_json(recording.folder / LAYOUT), LAYOUT)
    case = recording.case
    try:
        state = place_firmware(case.document, case.profile, layout)
    except AcpiTableError as error:
        raise UsageError(
            f"the recorded SRAT is malformed: {error}",
            where=LAYOUT,
            hint="the file was changed: ask for the bundle again",
        ) from None
    sections = recording.run.sections
    missing = [name for name in SECTIONS if name not in sections]
    try:
        if missing:
            raise ObservationError(f"no section {', '.join(missing)}")
        observation = parse_observation(sections)
    except ObservationError as error:
        raise UsageError(
            f"its guest was not observed: {error}",
            where=recording.record.scenario,
            hint="leave --judge-only out, and the scenario is run again",
        ) from None
    problems = window_problems(observation, state)
    if problems:
        raise UsageError(
            "; ".join(problems),
            where=recording.record.scenario,
            hint="observation and layout are of different machines: the bundle was changed",
        )
    inputs = read_json(recording.folder / JUDGING)
    try:
        marks = StepMarks(str(inputs["step_marks"]))
        patterns = [re.compile(one) for one in inputs["expected_messages"]]
        undecoded = tuple(
            Undecoded(MemoryRange.parse(one["range"]), str(one["text"]))
            for one in inputs.get("undecoded", ())
        )
        built_in = [str(one) for one in inputs.get("built_in", ())]
        options = dict(inputs.get("driver_options", {}))
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise UsageError(
            f"not what a judgement rests on: {type(error).__name__}: {error}",
            where=JUDGING,
            hint="the file was changed, or another version of the harness wrote it",
        ) from None
    if (
        not inputs.get("boot_counts")
        and case.scenario.guest.modules
        and not any(marks.step_of(one.text) for one in observation.dmesg)
    ):
        # All of it would be of the boot, and count for nothing.
        raise UsageError(
            "its kernel log has lost the mark of the first step",
            where=recording.record.scenario,
            hint="leave --judge-only out, and the scenario is run again",
        )
    loaded = {*observation.modules, *built_in}
    scenario = as_run(case.scenario, loaded, options, observation.release)
    expected = expectations(scenario, state, recording.policy, as_stated=case.as_stated)[0]
    judgement = judge(
        replace(observation, dmesg=in_phases(observation.dmesg, marks), undecoded=undecoded),
        state,
        expected,
        patterns,
        boot_counts=bool(inputs.get("boot_counts")),
    )
    return Rejudged(judgement, state)


def owner_differences(record: RunResult, owners: Sequence[OwnedRange]) -> tuple[str, ...]:
    """Where owners differ from the recorded ones, one line for each range."""
    before = {
        one.name: [f"{piece.range} {piece.ownership}" for piece in one.observed]
        for one in record.owners
    }
    after = {
        one.name: [f"{piece.range} {piece.ownership}" for piece in one.observed] for one in owners
    }
    return tuple(
        f"{name}: recorded {', '.join(before.get(name, ['nothing']))}; "
        f"now {', '.join(after.get(name, ['nothing']))}"
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    )


def run_differences(recording: Recording, result: RunResult) -> tuple[str, ...]:
    """In what the new run was another than the recorded one: kernel, machine, firmware."""
    again = Path(result.evidence)
    found = []
    old, new = recording.run.kernel, read_kernel(again)
    if old.identity != new.identity:
        found.append(f"another kernel: recorded {_kernel(old)}, now {_kernel(new)}")
    versions = [_qemu(one) for one in (old, new)]
    if versions[0] != versions[1]:
        found.append(f"another QEMU: recorded {versions[0]}, now {versions[1]}")
    for name, what in ((LAYOUT, "machine's layout"), ("firmware_state.json", "firmware state")):
        if read_json(recording.folder / name) != read_json(again / name):
            found.append(f"the {what} is another: compare {name} of both")
    if old.command_line != new.command_line:
        found.append("the kernel's command line is another: compare kernel.json of both")
    return tuple(found)


def program_differs(recording: Recording, state: FirmwareState) -> bool:
    """Whether today's firmware program has other decoders than the recorded one."""
    return plan_decoders(recording.case.profile, state) != recording.run.decoders


def _kernel(kernel: KernelFacts) -> str:
    return f"{kernel.release or 'unknown'} ({kernel.identity[:12]})"


def _qemu(kernel: KernelFacts) -> str:
    return kernel.qemu.version_text or "unknown"
