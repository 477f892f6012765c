# SPDX-License-Identifier: GPL-2.0-or-later
"""One run in one file: packed, checked, unpacked, judged again, run again."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from evidence_fixtures import make_evidence, requested
from layouts import layout_of, state_of

from harness.bundle.pack import INDEX, pack, unpack
from harness.bundle.replay import (
    judge_again,
    owner_differences,
    program_differs,
    read_recording,
    request_of,
    run_differences,
)
from harness.contract.result import RunResult, Verdict
from harness.core.errors import UsageError
from harness.core.paths import PROFILES, PROJECT, SCENARIOS
from harness.kernels.build.series import read_series
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
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario_files import load_case

SERIES = PROJECT / "patches/mutants/deferral/hmem-does-not-wait"


def packed(root: Path, capture: str = "partial_region-7.2", **more: Any) -> Path:
    return pack(make_evidence(root / "evidence", capture, **more), root / "run.zip").path


def unpacked(root: Path, capture: str = "partial_region-7.2", **more: Any) -> Path:
    (root / "out").mkdir()
    return unpack(packed(root, capture, **more), root / "out")


def rewritten(bundle: Path, change: dict[str, bytes | None], index: dict[str, Any]) -> Path:
    """The bundle with files changed, added or (None) left out, and fields of its index."""
    with zipfile.ZipFile(bundle) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    listed = json.loads(contents.pop(INDEX))
    listed.update(index)
    for name, data in change.items():
        contents.pop(name, None)
        if data is not None:
            contents[name] = data
    target = bundle.with_name("changed.zip")
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(INDEX, json.dumps(listed))
        for name, data in contents.items():
            archive.writestr(name, data)
    return target


def entry(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def with_file(bundle: Path, name: str, data: bytes) -> Path:
    """The bundle with another file that the index names rightly."""
    with zipfile.ZipFile(bundle) as archive:
        files = json.loads(archive.read(INDEX))["files"]
    return rewritten(bundle, {name: data}, {"files": {**files, name: entry(data)}})


def test_what_is_packed_comes_out_as_it_was(tmp_path: Path) -> None:
    folder = unpacked(tmp_path)
    evidence = tmp_path / "evidence" / "run-partial_region-7.2"
    names = {path.relative_to(evidence) for path in evidence.rglob("*") if path.is_file()}
    assert {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} == names
    assert all((folder / name).read_bytes() == (evidence / name).read_bytes() for name in names)


def test_the_same_evidence_makes_the_same_bytes(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path, "exact_cover-7.2")
    first, second = (pack(evidence, tmp_path / name).path for name in ("a.zip", "b.zip"))
    assert first.read_bytes() == second.read_bytes()


def test_links_do_not_bring_files_from_elsewhere(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path, "exact_cover-7.2")
    (tmp_path / "secret").write_text("secret")
    (evidence / "link").symlink_to(tmp_path / "secret")
    with zipfile.ZipFile(pack(evidence, tmp_path / "a.zip").path) as archive:
        assert "link" not in archive.namelist()


@pytest.mark.parametrize("name", ["verdict.json", "scenario.yaml", "profile.yaml", "layout.json"])
def test_evidence_that_cannot_be_replayed_is_not_packed(tmp_path: Path, name: str) -> None:
    evidence = make_evidence(tmp_path, "exact_cover-7.2")
    (evidence / name).unlink()
    with pytest.raises(UsageError, match=f"there is no {name} in it"):
        pack(evidence, tmp_path / "a.zip")
    assert not list(tmp_path.glob("*.zip*"))


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path, "exact_cover-7.2")
    (tmp_path / "a.zip").write_text("mine")
    with pytest.raises(UsageError, match="already"):
        pack(evidence, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    ["../escaped", "/tmp/escaped", "a/../../escaped", "a\\..\\escaped", ".hidden", "a//b", "é"],
)
def test_no_file_is_written_outside_the_folder(tmp_path: Path, name: str) -> None:
    bundle = with_file(packed(tmp_path), name, b"x")
    (tmp_path / "out").mkdir()
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="name"):
        unpack(bundle, tmp_path / "out")
    assert set(tmp_path.rglob("*")) == before


def test_a_bundle_that_was_changed_is_refused(tmp_path: Path) -> None:
    bundle = packed(tmp_path)
    verdict: dict[str, bytes | None] = {"verdict.json": b"{}"}
    more: dict[str, bytes | None] = {"more": b"x"}
    gone: dict[str, bytes | None] = {"qemu.argv": None}
    many = {f"f{n}": entry(b"") for n in range(2001)}
    with zipfile.ZipFile(bundle) as archive:
        argv = archive.read("qemu.argv")
    edited: dict[str, bytes | None] = {"qemu.argv": argv.replace(b"x86_64", b"x86_63")}
    for change, index, words in (
        (edited, {}, "qemu.argv is not what the index says"),
        (verdict, {}, "verdict.json is not what the index says"),
        (more, {}, "other files than its index names"),
        (gone, {}, "other files than its index names"),
        ({}, {"form": 2}, "another form"),
        ({}, {"files": [1]}, "makes no sense"),
        ({}, {"files": many}, "larger than the evidence"),
        ({}, {"files": {"a": {"size": 1 << 40, "sha256": ""}}}, "larger than the evidence"),
        ({}, {"files": {"a": {"size": -1, "sha256": ""}}}, "larger than the evidence"),
    ):
        with pytest.raises(UsageError) as caught:
            unpack(rewritten(bundle, change, index), tmp_path / "out")
        assert words in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_a_member_that_unpacks_to_more_than_it_says_is_refused(tmp_path: Path) -> None:
    bundle = packed(tmp_path)
    data = b"0" * (8 << 20)
    with zipfile.ZipFile(bundle) as archive:
        files = json.loads(archive.read(INDEX))["files"]
    lie = {**files, "bomb": {"size": 10, "sha256": hashlib.sha256(data[:10]).hexdigest()}}
    with pytest.raises(UsageError, match="bomb is not what the index says"):
        unpack(rewritten(bundle, {"bomb": data}, {"files": lie}), tmp_path / "out")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"text", b"\0" * 10_000])
def test_what_is_no_bundle_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(UsageError, match=r"x\.zip: not a bundle"):
        unpack(tmp_path / "x.zip", tmp_path)
    whole = packed(tmp_path).read_bytes()
    for share in range(1, 8):
        (tmp_path / "x.zip").write_bytes(whole[: len(whole) * share // 8])
        with pytest.raises(UsageError, match="not a bundle"):
            unpack(tmp_path / "x.zip", tmp_path)


def test_a_damaged_byte_is_noticed(tmp_path: Path) -> None:
    bundle = packed(tmp_path)
    whole = bundle.read_bytes()
    for place in range(200, len(whole) - 4000, 997):
        bundle.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            unpack(bundle, tmp_path / "out")
        except UsageError:
            continue
        evidence = tmp_path / "evidence" / "run-partial_region-7.2"
        for path in evidence.rglob("*"):
            if path.is_file():  # the byte had no meaning, such as a date
                copy = tmp_path / "out" / path.relative_to(evidence)
                assert copy.read_bytes() == path.read_bytes()


# --- replay ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "capture", ["partial_region-7.2", "exact_cover-7.2", "thread_hmat_maxmem-6.18"]
)
def test_a_recorded_observation_is_judged_as_it_was(tmp_path: Path, capture: str) -> None:
    recording = read_recording(unpacked(tmp_path, capture))
    again = judge_again(recording)
    assert again.judgement.verdict is recording.record.verdict
    assert owner_differences(recording.record, again.judgement.owners) == ()
    assert not program_differs(recording, again.state)


def test_a_verdict_that_was_another_is_said(tmp_path: Path) -> None:
    def passed(result: dict[str, Any]) -> None:
        (owned,) = result["owners"]
        owned["observed"] = [{"range": owned["range"], "owner": "dax_hmem", "use": "system_ram"}]

    recording = read_recording(unpacked(tmp_path, change=passed))
    again = judge_again(recording)
    assert again.judgement.verdict is Verdict.FAIL
    assert owner_differences(recording.record, again.judgement.owners) == (
        "sr0: recorded 110000000-18fffffff dax_hmem/system_ram; now 110000000-18fffffff nobody",
    )


def test_the_scenario_is_judged_as_it_was_then(tmp_path: Path) -> None:
    """Not as the scenario of that name is today."""
    folder = unpacked(tmp_path)
    text = (folder / "scenario.yaml").read_text()
    reason = "\n  why_not_the_contract: this test wants another owner"
    changed = text.replace("owner: dax_hmem", "owner: dax_cxl")
    (folder / "scenario.yaml").write_text(changed.replace("\nexpect:", f"\nexpect:{reason}"))
    assert (folder / "scenario.yaml").read_text() != text
    (owned,) = judge_again(read_recording(folder)).judgement.owners
    assert owned.expected.owner == "dax_cxl"


def test_another_load_than_the_scenarios_is_judged_by_the_oracle(tmp_path: Path) -> None:
    def only_cxl(result: dict[str, Any]) -> None:
        modules = ["cxl_acpi", "cxl_pci", "cxl_mem", "dax_cxl"]
        result["load"] = {"how": "in_order", "modules": modules}

    recording = read_recording(unpacked(tmp_path, "exact_cover-7.2", change=only_cxl))
    assert not recording.case.as_stated
    assert recording.case.scenario.guest.load == ("cxl_acpi", "cxl_pci", "cxl_mem", "dax_cxl")
    (owned,) = judge_again(recording).judgement.owners
    # The guest has loaded kmem, whatever the record names.
    assert (owned.expected.owner, owned.expected.use) == ("dax_cxl", "system_ram")


def test_an_observation_of_another_machine_is_not_judged(tmp_path: Path) -> None:
    folder = unpacked(tmp_path)
    layout = folder / LAYOUT
    layout.write_text(layout.read_text().replace("110000000-18fffffff", "120000000-19fffffff"))
    with pytest.raises(UsageError, match="requested windows"):
        judge_again(read_recording(folder))
    (folder / "observation" / "dmesg").unlink()
    with pytest.raises(UsageError, match="not observed: no section dmesg"):
        judge_again(read_recording(folder))


def test_a_log_without_its_marks_is_not_judged(tmp_path: Path) -> None:
    folder = unpacked(tmp_path, "exact_cover-7.2")
    path, log = folder / JUDGING, folder / "observation" / "dmesg"
    path.write_text(path.read_text().replace("true", "false"))
    with pytest.raises(UsageError, match="has lost the mark of the first step"):
        judge_again(read_recording(folder))
    log.write_text(f"<6>[    1.0] harness: modprobe kmem [secret]\n{log.read_text()}")
    assert judge_again(read_recording(folder)).judgement.verdict is Verdict.PASS


def test_memory_that_was_not_decoded_is_judged_again(tmp_path: Path) -> None:
    folder = unpacked(tmp_path, "exact_cover-7.2")
    path = folder / JUDGING
    inputs = json.loads(path.read_text())
    undecoded = {"range": "110000000-18fffffff", "text": "memory of dax_cxl is not decoded"}
    path.write_text(json.dumps(inputs | {"undecoded": [undecoded]}))
    judgement = judge_again(read_recording(folder)).judgement
    assert [(one.rule, one.text) for one in judgement.findings] == [("decode", undecoded["text"])]
    damaged: list[Any] = [[{"range": "x", "text": ""}], [{}], [5], 5]
    for wrong in damaged:
        path.write_text(json.dumps(inputs | {"undecoded": wrong}))
        with pytest.raises(UsageError, match="not what a judgement rests on"):
            judge_again(read_recording(folder))


def test_a_layout_survives_and_a_foreign_one_is_refused(tmp_path: Path) -> None:
    raw = json.loads((unpacked(tmp_path) / "layout.json").read_text())
    assert layout_as_json(layout_from_json(raw, "x")) == raw
    for wrong in ({}, {**raw, "SRAT": "zz"}, {**raw, "windows": [{}]}, {**raw, "bridges": 5}):
        with pytest.raises(UsageError, match="not an address map"):
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
    assert [one["name"] for one in reserved] == ["sr0"]


def test_what_was_another_in_the_new_run_is_said(tmp_path: Path) -> None:
    recording = read_recording(unpacked(tmp_path))
    again = make_evidence(tmp_path / "again", "partial_region-7.2")
    result = RunResult(
        "partial_region", KernelRequest("debian:7.2"), "per_range", evidence=str(again)
    )
    assert run_differences(recording, result) == ()
    kernel = json.loads((again / "kernel.json").read_text())
    kernel.update(identity="other", qemu={"version_text": "11.1"}, command_line="quiet")
    (again / "kernel.json").write_text(json.dumps(kernel))
    for name in (LAYOUT, STATE):
        (again / name).write_text("{}")
    said = "\n".join(run_differences(recording, result))
    for words in ("another kernel", "now 11.1", LAYOUT, STATE, "command line"):
        assert words in said


def manifest_of(path: Path) -> dict[str, Any]:
    patches = read_series(path).patches
    listed = [{"name": p.name, "sha256": hashlib.sha256(p.data).hexdigest()} for p in patches]
    return {"series": {"path": str(path), "patches": listed}}


def test_the_kernel_is_asked_for_again_with_the_series_of_the_bundle(tmp_path: Path) -> None:
    asked = KernelRequest("build:debian:7.2", ("builtin",), SERIES, 1, "clang")
    change, manifest = requested(asked), manifest_of(SERIES)
    folder = unpacked(tmp_path, change=change, manifest=manifest)
    request = request_of(read_recording(folder))
    assert (request.spec, request.configs, request.upto) == ("build:debian:7.2", ("builtin",), None)
    assert request.toolchain == "clang"
    assert request.series == folder / "series"
    assert read_series(request.series).digest == read_series(SERIES).digest


def test_a_series_that_is_repaired_is_repaired_again(tmp_path: Path) -> None:
    mine = shutil.copytree(SERIES, tmp_path / "mine")
    with (mine / "series.yaml").open("a") as description:
        description.write("repair_whitespace: true\n")
    change = requested(KernelRequest("build:debian:7.2", series=mine))
    folder = unpacked(tmp_path, change=change, manifest=manifest_of(mine))
    request = request_of(read_recording(folder))
    assert request.series is not None
    assert read_series(request.series).repair_whitespace


def test_a_series_that_was_changed_since_is_not_packed(tmp_path: Path) -> None:
    manifest = manifest_of(SERIES)
    manifest["series"]["patches"][0]["sha256"] = "0" * 64
    change = requested(KernelRequest("build:debian:7.2", series=tmp_path / "gone"))
    evidence = make_evidence(tmp_path, "exact_cover-7.2", change=change, manifest=manifest)
    done = pack(evidence, tmp_path / "a.zip")
    assert "was changed since" in done.notes[0]
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="neither on this machine nor in the bundle"):
        request_of(read_recording(unpack(done.path, tmp_path / "out")))


@pytest.mark.parametrize("text", ["", "'", "x --y", "debian:"])
def test_a_kernel_that_makes_no_sense(tmp_path: Path, text: str) -> None:
    recording = read_recording(unpacked(tmp_path, change=requested(KernelRequest(text))))
    with pytest.raises(UsageError, match="does not name a kernel"):
        request_of(recording)


def test_an_at_sign_may_be_part_of_a_path(tmp_path: Path) -> None:
    (tmp_path / "me@here" / "linux").mkdir(parents=True)
    change = requested(KernelRequest(f"build:{tmp_path}/me@here/linux@cxl"))
    request = request_of(read_recording(unpacked(tmp_path, change=change)))
    assert request.spec == f"build:{tmp_path}/me@here/linux@cxl"


def test_a_kernel_of_another_machine_is_described(tmp_path: Path) -> None:
    manifest = {"source": {"origin": "cxl/next", "commit": "a" * 40, "dirty": True}}
    change = requested(KernelRequest("build:/nowhere/linux@cxl"))
    recording = read_recording(unpacked(tmp_path, change=change, manifest=manifest))
    with pytest.raises(UsageError) as caught:
        request_of(recording)
    for word in ("a" * 40, "uncommitted changes", "c" * 64, "--kernel", "--judge-only"):
        assert word in str(caught.value)
