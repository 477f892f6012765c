# SPDX-License-Identifier: GPL-2.0-or-later
"""Judge recorded evidence again, with the oracle and the rules of this version."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from harness.bundle.pack import check_evidence, unpack
from harness.contract.dmesg import StepMarks, in_phases
from harness.contract.expected import expectations
from harness.contract.judge import judge
from harness.contract.observation import SECTIONS, Observation, ObservationError, Undecoded
from harness.contract.observation_parser import parse_observation
from harness.contract.oracle import as_run
from harness.contract.preflight import window_problems
from harness.contract.result import OwnedRange, RunKernel, RunResult
from harness.core.errors import UsageError
from harness.platform.acpi_tables import AcpiTableError
from harness.platform.firmware_state import place_firmware
from harness.platform.hdm_decoders import plan_decoders
from harness.platform.memory_range import MemoryRange
from harness.runs.evidence import JUDGING, LAYOUT, PROFILE, SCENARIO, layout_from_json
from harness.runs.minimize import requested_load
from harness.runs.result_files import VERDICT, StoredRun, load_runs, read_text
from harness.scenario.checks import check_scenario
from harness.scenario.profile import read_profile
from harness.scenario.scenario import Policy, read_scenario
from harness.scenario.scenario_files import Case


class _Undecoded(msgspec.Struct, frozen=True):
    range: str
    text: str


class _Inputs(msgspec.Struct, frozen=True):
    """The object of `judging.json`, see `judging_inputs`."""

    step_marks: str
    expected_messages: tuple[str, ...]
    boot_counts: bool = False
    built_in: tuple[str, ...] = ()
    driver_options: dict[str, Any] = {}
    undecoded: tuple[_Undecoded, ...] = ()


@dataclass(frozen=True)
class Recording:
    """The evidence of a run.

    Attributes:
        run: the result, with its evidence.
        case: the scenario as it was, with the load of the run.
        policy: the policy to judge by.
    """

    folder: Path
    run: StoredRun
    case: Case
    policy: Policy


@contextmanager
def open_recording(path: Path, policy: Policy | None = None) -> Iterator[Recording]:
    """Open the evidence of a run, from its folder or its bundle, for the length of the block.

    Args:
        policy: the policy to judge by, None for the recorded one.

    Raises:
        UsageError: this version of the harness cannot read it.
    """
    if path.is_dir():
        check_evidence(path)
        yield _recording(path, policy)
        return
    with TemporaryDirectory(prefix="harness-bundle-") as folder:
        unpack(path, Path(folder))
        yield _recording(Path(folder), policy)


def _recording(folder: Path, policy: Policy | None) -> Recording:
    (run,) = load_runs([folder / VERDICT])
    record = run.record
    document = read_scenario(read_text(folder / SCENARIO), SCENARIO)
    profile_text = read_text(folder / PROFILE)
    profile = read_profile(profile_text, PROFILE).value
    check_scenario(document, profile)
    case = Case(record.scenario, document, profile, profile_text=profile_text)
    if record.load is not None:
        case = requested_load(case, record.load.option())
    return Recording(folder, run, case, policy or record.policy)


def judge_again(recording: Recording) -> tuple[RunResult, tuple[str, ...]]:
    """Judge a recorded observation.

    Steps after boot, and modules that failed to load, are not in an observation.

    Returns:
        The result, and its differences from the recorded one.

    Raises:
        UsageError: the evidence is incomplete, was edited, or has no mark of the first step.
    """
    case, record = recording.case, recording.run.record
    try:
        inputs = msgspec.json.decode(read_text(recording.folder / JUDGING), type=_Inputs)
        marks = StepMarks(inputs.step_marks)
        patterns = [re.compile(pattern) for pattern in inputs.expected_messages]
        layout = layout_from_json(read_json(recording.folder / LAYOUT), LAYOUT)
        state = place_firmware(case.document, case.profile, layout)
        observation = _observation(recording, inputs, marks)
    except (ValueError, RecursionError, re.error, AcpiTableError, ObservationError) as error:
        raise _unusable(recording, str(error)) from None
    problems = window_problems(observation, state)
    if problems:
        raise _unusable(recording, "; ".join(problems))
    loaded = {*observation.modules, *inputs.built_in}
    scenario = as_run(case.scenario, loaded, inputs.driver_options, observation.release)
    expected = expectations(scenario, state, recording.policy, as_stated=case.as_stated)[0]
    judgement = judge(observation, state, expected, patterns, boot_counts=inputs.boot_counts)
    result = RunResult(
        scenario=record.scenario,
        request=record.request,
        policy=recording.policy,
        kernel=RunKernel(record.kernel.release),
        verdict=judgement.verdict,
        owners=judgement.owners,
        findings=judgement.findings,
        reason="judged again from the recorded observation; steps are not in it",
    )
    differences = result_differences(record, result)
    if plan_decoders(case.profile, state) != recording.run.decoders:
        differences += ("firmware: this version commits other decoders",)
    return result, differences


def _observation(recording: Recording, inputs: _Inputs, marks: StepMarks) -> Observation:
    """The observation as it was judged.

    Raises:
        ObservationError: it is incomplete.
        ValueError: a range is malformed.
    """
    sections = recording.run.sections
    missing = [name for name in SECTIONS if name not in sections]
    if missing:
        raise ObservationError(f"no section {', '.join(missing)}")
    observation = parse_observation(sections)
    has_steps = not inputs.boot_counts and recording.case.scenario.guest.modules
    if has_steps and not any(marks.step_of(line.text) for line in observation.dmesg):
        # All of the log would count as part of the boot.
        raise ObservationError("the kernel log has lost the mark of the first step")
    return replace(
        observation,
        dmesg=in_phases(observation.dmesg, marks),
        undecoded=tuple(
            Undecoded(MemoryRange.parse(piece.range), piece.text) for piece in inputs.undecoded
        ),
    )


def _unusable(recording: Recording, message: str) -> UsageError:
    return UsageError(
        f"the evidence cannot be judged: {message}",
        where=recording.run.record.scenario,
        hint="it was edited, or written by another version of the harness: run the scenario again "
        "with harness replay",
    )


def result_differences(record: RunResult, result: RunResult) -> tuple[str, ...]:
    """The differences in owners and verdict from the recorded result, one line each."""
    before = {owned.name: _pieces(owned) for owned in record.owners}
    after = {owned.name: _pieces(owned) for owned in result.owners}
    differences = [
        f"{name}: recorded {before.get(name, 'nothing')}; now {after.get(name, 'nothing')}"
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]
    if record.verdict is not result.verdict:
        differences.append(f"recorded {record.verdict.name}, now {result.verdict.name}")
    return tuple(differences)


def _pieces(owned: OwnedRange) -> str:
    return ", ".join(f"{piece.range} {piece.ownership}" for piece in owned.observed)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of the evidence, empty if the file is missing or has something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError, RecursionError):
        return {}
