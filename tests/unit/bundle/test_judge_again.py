# SPDX-License-Identifier: GPL-2.0-or-later
"""Recorded evidence is judged again, from its folder or its bundle."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from evidence_fixtures import Change, make_evidence
from layouts import layout_of, state_of

from harness.bundle.judge import Recording, judge_again, open_recording
from harness.bundle.pack import pack
from harness.contract.result import RunResult, Verdict
from harness.core.errors import UsageError
from harness.core.paths import PROFILES, SCENARIOS
from harness.runs.evidence import (
    JUDGING,
    KERNEL_MANIFEST,
    LAYOUT,
    PROFILE,
    SCENARIO,
    STATE,
    Evidence,
    layout_as_json,
    layout_from_json,
    write_inputs,
)
from harness.runs.minimize import requested_load
from harness.runs.prepare import Prepared
from harness.scenario.scenario_files import load_case

CAPTURES = ["partial_region-7.2", "exact_cover-7.2", "thread_hmat_maxmem-6.18"]


def judged(folder: Path) -> tuple[Recording, RunResult, tuple[str, ...]]:
    with open_recording(folder) as recording:
        return recording, *judge_again(recording)


def edit(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_recorded_observation_is_judged_as_it_was(tmp_path: Path, capture: str) -> None:
    folder = make_evidence(tmp_path / "evidence", capture)
    for evidence in (folder, pack(folder, tmp_path / "run.zip").path):
        recording, result, differences = judged(evidence)
        assert result.verdict is recording.run.record.verdict
        assert differences == ()


def passing(result: dict[str, Any]) -> None:
    (owned,) = result["owners"]
    owned["observed"] = [{"range": owned["range"], "owner": "dax_hmem", "use": "system_ram"}]
    result.update(verdict="PASS", findings=[])


def test_differences_from_the_recorded_result(tmp_path: Path) -> None:
    folder = make_evidence(tmp_path, "partial_region-7.2", change=passing)
    decoders = json.loads((folder / "firmware.json").read_text())
    (folder / "firmware.json").write_text(json.dumps(decoders[1:]))
    _, result, differences = judged(folder)
    assert result.verdict is Verdict.FAIL
    assert differences == (
        "sr0: recorded 110000000-18fffffff dax_hmem/system_ram; now 110000000-18fffffff nobody",
        "recorded PASS, now FAIL",
        "firmware: this version commits other decoders",
    )


def state_dax_cxl(folder: Path) -> None:
    """Let the recorded scenario state another owner than the contract's."""
    edit(folder, SCENARIO, "owner: dax_hmem", "owner: dax_cxl")
    reason = "why_not_the_contract: this test wants another owner"
    edit(folder, SCENARIO, "\nexpect:", f"\nexpect:\n  {reason}")


def loaded(*modules: str) -> Change:
    load = {"how": "in_order", "modules": list(modules)}
    return lambda result: result.update(load=load)


def test_the_recorded_scenario_counts_and_not_the_current_one(tmp_path: Path) -> None:
    folder = make_evidence(tmp_path, "partial_region-7.2")
    state_dax_cxl(folder)
    (owned,) = judged(folder)[1].owners
    assert owned.expected.owner == "dax_cxl"


def test_stated_owners_do_not_count_for_another_load(tmp_path: Path) -> None:
    folder = make_evidence(tmp_path, "partial_region-7.2", change=loaded("dax_hmem", "kmem"))
    state_dax_cxl(folder)
    (owned,) = judged(folder)[1].owners
    assert owned.expected.owner == "dax_hmem"


@pytest.mark.parametrize(
    ("observed", "built_in", "use"),
    [(True, [], "system_ram"), (False, ["kmem"], "system_ram"), (False, [], "none")],
)
def test_modules_that_are_not_in_the_recorded_load(
    tmp_path: Path, observed: bool, built_in: list[str], use: str
) -> None:
    """The guest may have loaded kmem although the record does not name it, or have it built in."""
    modules = ("cxl_acpi", "cxl_pci", "cxl_mem", "dax_cxl")
    folder = make_evidence(tmp_path, "exact_cover-7.2", change=loaded(*modules))
    inputs = json.loads((folder / JUDGING).read_text())
    (folder / JUDGING).write_text(json.dumps(inputs | {"built_in": built_in}))
    section = folder / "observation" / "modules"
    lines = section.read_text().splitlines(keepends=True)
    section.write_text("".join(line for line in lines if observed or not line.startswith("kmem")))
    recording, result, _ = judged(folder)
    assert not recording.case.as_stated
    assert recording.case.scenario.guest.load == modules
    (owned,) = result.owners
    assert (owned.expected.owner, owned.expected.use) == ("dax_cxl", use)


def test_memory_that_was_not_decoded_is_a_finding(tmp_path: Path) -> None:
    folder = make_evidence(tmp_path, "exact_cover-7.2")
    inputs = json.loads((folder / JUDGING).read_text())
    undecoded = {"range": "110000000-18fffffff", "text": "memory of dax_cxl is not decoded"}
    (folder / JUDGING).write_text(json.dumps(inputs | {"undecoded": [undecoded]}))
    findings = judged(folder)[1].findings
    assert [(finding.rule, finding.text) for finding in findings] == [("decode", undecoded["text"])]


def test_a_log_without_step_marks_is_not_judged(tmp_path: Path) -> None:
    folder = make_evidence(tmp_path, "exact_cover-7.2")
    edit(folder, JUDGING, "true", "false")
    with pytest.raises(UsageError, match="has lost the mark of the first step"):
        judged(folder)
    log = folder / "observation" / "dmesg"
    log.write_text(f"<6>[    1.0] harness: modprobe kmem [secret]\n{log.read_text()}")
    assert judged(folder)[1].verdict is Verdict.PASS


def policy_of_the_future(result: dict[str, Any]) -> None:
    result["policy"] = "first_come"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (JUDGING, b"{", "cannot be judged"),
        (JUDGING, b"{}", "cannot be judged"),
        (JUDGING, b'{"step_marks": "s", "expected_messages": ["("]}', "cannot be judged"),
        *(
            (
                JUDGING,
                b'{"step_marks": "s", "expected_messages": [], "undecoded": %s}' % undecoded,
                "cannot be judged",
            )
            for undecoded in (b'[{"range": "x", "text": ""}]', b"[{}]", b"[5]", b"5")
        ),
        (LAYOUT, b"[]", "layout"),
        ("observation/dmesg", None, "cannot be judged: no section dmesg"),
        (SCENARIO, b"profile: one_window\n", SCENARIO),
        (PROFILE, b"windows: 5\n", PROFILE),
        ("verdict.json", b"{}", "not the result of a run"),
        ("verdict.json", None, "files are missing: verdict.json"),
    ],
)
def test_evidence_that_was_edited_is_refused(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    folder = make_evidence(tmp_path, "exact_cover-7.2")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(UsageError, match=words):
        judged(folder)


def test_an_observation_of_another_machine_is_refused(tmp_path: Path) -> None:
    folder = make_evidence(tmp_path, "partial_region-7.2")
    edit(folder, LAYOUT, "110000000-18fffffff", "120000000-19fffffff")
    with pytest.raises(UsageError, match=r"cannot be judged: .* windows"):
        judged(folder)


def test_an_unknown_policy_is_refused(tmp_path: Path) -> None:
    change: Change = policy_of_the_future
    with pytest.raises(UsageError, match="first_come"):
        judged(make_evidence(tmp_path, "exact_cover-7.2", change=change))


def test_a_layout_survives_and_another_object_is_refused(tmp_path: Path) -> None:
    raw = json.loads((make_evidence(tmp_path, "partial_region-7.2") / LAYOUT).read_text())
    assert layout_as_json(layout_from_json(raw, "x")) == raw
    for wrong in ({}, {**raw, "SRAT": "zz"}, {**raw, "windows": [{}]}, {**raw, "bridges": 5}):
        with pytest.raises(UsageError, match="not "):
            layout_from_json(wrong, "x")


def test_the_inputs_of_a_run_are_written_as_they_were_read(tmp_path: Path) -> None:
    case = requested_load(load_case("partial_region"), "dax_hmem,kmem")
    layout = layout_of(case.profile)
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / "manifest.json").write_text('{"spec": "x"}')
    kernel = SimpleNamespace(image=tmp_path / "kernel" / "vmlinuz")
    prepared = SimpleNamespace(
        case=case,
        layout=layout,
        state=state_of(case),
        bootable=SimpleNamespace(kernel=kernel),
    )
    write_inputs(Evidence(tmp_path), cast(Prepared, prepared))
    assert (tmp_path / SCENARIO).read_text() == (SCENARIOS / "partial_region.yaml").read_text()
    profile = (PROFILES / f"{case.scenario.profile}.yaml").read_text()
    assert (tmp_path / PROFILE).read_text() == profile
    assert layout_from_json(json.loads((tmp_path / LAYOUT).read_text()), LAYOUT) == layout
    assert json.loads((tmp_path / KERNEL_MANIFEST).read_text()) == {"spec": "x"}
    reserved = json.loads((tmp_path / STATE).read_text())["soft_reserved"]
    assert [position["name"] for position in reserved] == ["sr0"]
