# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel and series of a recorded run, and the differences of a new run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from evidence_fixtures import make_evidence, requested

from harness.bundle.judge import Recording, open_recording
from harness.bundle.pack import pack
from harness.bundle.replay import request_of, run_differences
from harness.contract.result import RunResult
from harness.core.errors import UsageError
from harness.core.paths import PROJECT
from harness.kernels.build.series import read_series
from harness.runs.evidence import LAYOUT, STATE
from harness.scenario.kernel_request import KernelRequest

SERIES = PROJECT / "patches/mutants/deferral/hmem-does-not-wait"


@contextmanager
def unpacked(root: Path, kernel: KernelRequest, manifest: dict[str, Any]) -> Iterator[Recording]:
    """The bundle of a run of a kernel."""
    change = requested(kernel)
    evidence = make_evidence(root, "partial_region-7.2", change=change, manifest=manifest)
    with open_recording(pack(evidence, root / "run.zip").path) as recording:
        yield recording


def manifest_of(path: Path) -> dict[str, Any]:
    patches = read_series(path).patches
    listed = [{"name": p.name, "sha256": hashlib.sha256(p.data).hexdigest()} for p in patches]
    return {"series": {"path": str(path), "patches": listed}}


def test_the_kernel_is_requested_with_the_series_of_the_bundle(tmp_path: Path) -> None:
    kernel = KernelRequest("build:debian:7.2", ("builtin",), SERIES, 1, "clang")
    with unpacked(tmp_path, kernel, manifest_of(SERIES)) as recording:
        request = request_of(recording)
        assert (request.spec, request.configs) == ("build:debian:7.2", ("builtin",))
        assert (request.toolchain, request.upto) == ("clang", None)
        assert request.series == recording.folder / "series"
        assert read_series(request.series).digest == read_series(SERIES).digest


def test_a_series_with_repaired_whitespace(tmp_path: Path) -> None:
    mine = shutil.copytree(SERIES, tmp_path / "mine")
    with (mine / "series.yaml").open("a") as description:
        description.write("repair_whitespace: true\n")
    kernel = KernelRequest("build:debian:7.2", series=mine)
    with unpacked(tmp_path, kernel, manifest_of(mine)) as recording:
        request = request_of(recording)
        assert request.series is not None
        assert read_series(request.series).repair_whitespace


def changed_manifest() -> dict[str, Any]:
    manifest = manifest_of(SERIES)
    manifest["series"]["patches"][0]["sha256"] = "0" * 64
    return manifest


@pytest.mark.parametrize(
    ("manifest", "note"),
    [
        (changed_manifest(), "was changed since the kernel was built"),
        ({"series": {"path": "/nowhere/s", "patches": []}}, "/nowhere/s: there is no such file"),
        ({}, "the evidence does not name its patches"),
    ],
)
def test_a_series_that_cannot_be_packed(
    tmp_path: Path, manifest: dict[str, Any], note: str
) -> None:
    change = requested(KernelRequest("build:debian:7.2", series=tmp_path / "gone"))
    evidence = make_evidence(tmp_path, "exact_cover-7.2", change=change, manifest=manifest)
    packed = pack(evidence, tmp_path / "a.zip")
    assert note in packed.note
    with (
        open_recording(packed.path) as recording,
        pytest.raises(UsageError, match="neither on this machine nor in the bundle"),
    ):
        request_of(recording)


@pytest.mark.parametrize("text", ["", "'", "x --y", "debian:"])
def test_a_kernel_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    with (
        unpacked(tmp_path, KernelRequest(text), {}) as recording,
        pytest.raises(UsageError, match="does not name a kernel"),
    ):
        request_of(recording)


def test_a_path_may_contain_an_at_sign(tmp_path: Path) -> None:
    (tmp_path / "me@here" / "linux").mkdir(parents=True)
    kernel = KernelRequest(f"build:{tmp_path}/me@here/linux@cxl")
    with unpacked(tmp_path, kernel, {}) as recording:
        assert request_of(recording) == kernel


def test_a_kernel_of_another_machine_is_described(tmp_path: Path) -> None:
    manifest = {"source": {"origin": "cxl/next", "commit": "a" * 40, "dirty": True}}
    with (
        unpacked(tmp_path, KernelRequest("build:/nowhere/linux@cxl"), manifest) as recording,
        pytest.raises(UsageError) as caught,
    ):
        request_of(recording)
    for word in ("a" * 40, "uncommitted changes", "c" * 64, "--kernel", "harness judge"):
        assert word in str(caught.value)


def test_differences_of_the_new_run(tmp_path: Path) -> None:
    again = make_evidence(tmp_path / "again", "partial_region-7.2")
    kernel = KernelRequest("debian:7.2")
    result = RunResult("partial_region", kernel, "per_range", evidence=str(again))
    with open_recording(make_evidence(tmp_path, "partial_region-7.2")) as recording:
        assert list(run_differences(recording, result)) == []
        kernel = json.loads((again / "kernel.json").read_text())
        kernel.update(identity="other", qemu={"version_text": "11.1"}, command_line="quiet")
        (again / "kernel.json").write_text(json.dumps(kernel))
        for name in (LAYOUT, STATE):
            (again / name).write_text("{}")
        differences = "\n".join(run_differences(recording, result))
    for words in (
        "another kernel: recorded id-7.2, now other",
        "now 11.1",
        LAYOUT,
        STATE,
        "command line",
    ):
        assert words in differences
