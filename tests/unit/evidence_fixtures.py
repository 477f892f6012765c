# SPDX-License-Identifier: GPL-2.0-or-later
"""Evidence folders made from the golden corpus: what a run of such a guest would have left."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from corpus import layout_from, sections_of

from harness.contract.expected import Expected
from harness.contract.judge import judge
from harness.contract.observation_parser import parse_observation
from harness.contract.result import RunKernel, RunResult, Verdict
from harness.platform.firmware_state import place_firmware
from harness.platform.hdm_decoders import plan_decoders
from harness.platform.json_values import to_json
from harness.platform.kernel_cmdline import kernel_command_line
from harness.runs.evidence import (
    JUDGING,
    LAYOUT,
    PROFILE,
    SCENARIO,
    STATE,
    Evidence,
    layout_as_json,
)
from harness.runs.result_files import StoredRun, load_runs
from harness.scenario.allowed_messages import allowed_messages
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.module_load import Load
from harness.scenario.scenario_files import load_case

Change = Callable[[dict[str, Any]], None]


def make_evidence(
    root: Path,
    capture: str,
    *,
    name: str = "",
    dmesg: str | None = None,
    change: Change = lambda _result: None,
    manifest: dict[str, Any] | None = None,
) -> Path:
    """The evidence of a run whose guest showed what a capture of the corpus has.

    Args:
        root: the folder in which it is made.
        capture: a folder of the corpus, such as `partial_region-7.2`.
        name: of the evidence folder, the capture's when left out.
        dmesg: another log than the captured one.
        change: changes the result before it is written.
        manifest: the manifest of a stored kernel.
    """
    scenario, _, release = capture.rpartition("-")
    case = load_case(scenario)
    layout = layout_from(capture, case)
    state = place_firmware(case.document, case.profile, layout)
    sections = sections_of(capture)
    if dmesg is not None:
        sections["dmesg"] = dmesg
    seen = parse_observation(sections)
    stated = case.scenario.expect.owners("per_range")
    judgement = judge(seen, state, Expected(stated), allowed_messages(case.scenario, case.profile))
    folder = root / (name or f"run-{capture}")
    folder.mkdir(parents=True)
    evidence = Evidence(folder)
    load = case.scenario.guest.load
    result = RunResult(
        scenario=scenario,
        request=KernelRequest(f"debian:{release}"),
        policy="per_range",
        kernel=RunKernel(seen.release, "c" * 64),
        accel="tcg",
        verdict=judgement.verdict,
        owners=judgement.owners,
        findings=judgement.findings,
        timings={"prepare": 0.1, "boot": 2.5, "observe": 0.5, "total": 3.1},
        evidence=str(folder),
        load=Load("in_order", load) if isinstance(load, tuple) else None,
    ).as_json()
    change(result)
    line = kernel_command_line(state, case.scenario.kernel.cmdline, case.scenario.guest.async_probe)
    qemu = {"version_text": "10.0.2 (Made up)"}
    evidence.json("kernel.json", {"identity": f"id-{release}", "command_line": line, "qemu": qemu})
    settings = plan_decoders(case.profile, state)
    evidence.json("firmware.json", [asdict(one) for one in settings])
    evidence.command("qemu.argv", ["qemu-system-x86_64", "-serial", f"file:{folder}/serial.log"])
    evidence.text(SCENARIO, case.document.text)
    evidence.text(PROFILE, case.profile_text)
    evidence.json(LAYOUT, layout_as_json(layout))
    evidence.json(JUDGING, {"step_marks": "secret", "boot_counts": True, "expected_messages": []})
    evidence.json(STATE, asdict(state))
    if manifest is not None:
        evidence.json("kernel_manifest.json", manifest)
    for section, text in sections.items():
        if section != "end":
            evidence.text(f"observation/{section}", text)
    evidence.json("verdict.json", result)
    return folder


def stored(root: Path, *captures: str, **more: Any) -> tuple[StoredRun, ...]:
    """These captures as runs that were read back."""
    return load_runs([make_evidence(root, capture, **more) for capture in captures])


def unjudged(verdict: Verdict, reason: str) -> Change:
    """Makes a result one that was not judged."""

    def change(result: dict[str, Any]) -> None:
        result.update(verdict=verdict.name, reason=reason, owners=[], findings=[])

    return change


def write_results(path: Path, results: list[Any]) -> Path:
    path.write_text(json.dumps(results))
    return path


def requested(request: KernelRequest) -> Change:
    """Change a result to one of another requested kernel."""

    def change(result: dict[str, Any]) -> None:
        result["request"] = to_json(request)

    return change
