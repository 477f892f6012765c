# SPDX-License-Identifier: GPL-2.0-or-later
"""Results read back, and made into a grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evidence_fixtures import make_evidence, stored, unjudged, write_results

from harness.contract.result import (
    Attempt,
    Difference,
    Finding,
    NotAResultError,
    RunResult,
    Verdict,
    read_result,
)
from harness.core.errors import UsageError
from harness.platform.memory_range import MemoryRange
from harness.reports.report_data import KernelColumn, configs_of, job_of, telling_findings
from harness.runs.result_files import KernelFacts, load_runs
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.module_load import Load

LEAST = {
    "scenario": "s",
    "request": {"spec": "debian:7.2"},
    "policy": "per_range",
    "verdict": "PASS",
}


def record(**more: Any) -> RunResult:
    return read_result({**LEAST, **more})


def test_a_result_is_read_back_as_it_was_written() -> None:
    apart = Difference(2, "/e", "owners", 3, ("here",), ("there",))
    request = KernelRequest("build:/a b@v7", ("debug",), Path("/patches"), 3, "clang")
    result = RunResult(
        "s",
        request,
        "per_range",
        Verdict.FAIL,
        timings={"total": 1.5},
        load=Load("in_order", ("dax_hmem", "kmem")),
        findings=(Finding("1", "stranded", MemoryRange(0, 0xFFF)),),
        attempts=(Attempt(Load("at_once", ("kmem",)), Verdict.FAIL, "nobody"),),
        compared=4,
        differences=(apart,),
    )
    raw = json.loads(json.dumps(result.as_json()))
    assert raw["format"] == 1
    assert raw["request"]["series"] == "/patches" and raw["kernel"]["spec"] == str(request)
    assert read_result(raw) == result


def test_unknown_fields_are_ignored() -> None:
    newer = record(invented=[1], steps=[{"step": "reload", "outcome": "held", "new": 1}])
    assert newer.steps[0].outcome == "held"


def test_a_piece_in_another_node_than_the_stated_one_is_wrong() -> None:
    piece = {"range": "110000000-18fffffff", "owner": "dax_cxl", "use": "system_ram"}
    owned = {"name": "sr0", "range": "110000000-18fffffff"}
    for stated, seen, count in ((2, 2, 0), (2, 1, 1), (2, None, 1), (None, 1, 0)):
        expected = {"owner": "dax_cxl", "use": "system_ram", "node": stated}
        observed = [piece | {"node": seen}]
        run = record(owners=[owned | {"expected": expected, "observed": observed}])
        assert len(run.owners[0].wrong_pieces()) == count


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ([], "Expected `object`"),
        ({}, "scenario"),
        ({**LEAST, "verdict": "MAYBE"}, "verdict"),
        ({**LEAST, "format": 2}, "format 2, and this version reads format 1"),
        ({**LEAST, "owners": [{"name": "sr0", "range": "x-y"}]}, "invalid literal"),
        ({**LEAST, "owners": [{"name": "sr0", "range": 5}]}, "range: Expected `str`"),
        ({**LEAST, "policy": "mine"}, "policy: Invalid enum value 'mine'"),
        ({**LEAST, "request": {"spec": "x", "upto": "x"}}, "request.upto: Expected `int"),
        ({**LEAST, "findings": [{"rule": "1", "text": "t", "range": "9-1"}]}, "not a range"),
        ({**LEAST, "kernel": "debian:7.2"}, "kernel"),
    ],
)
def test_what_is_no_result_is_refused(raw: object, words: str) -> None:
    with pytest.raises(NotAResultError, match=words):
        read_result(raw)


def test_a_folder_of_evidence_is_read_at_any_depth(tmp_path: Path) -> None:
    make_evidence(tmp_path / "a" / "b", "exact_cover-7.2")
    make_evidence(tmp_path / "c", "partial_region-7.2")
    runs = load_runs([tmp_path])
    assert sorted(run.record.verdict.name for run in runs) == ["FAIL", "PASS"]
    assert all(run.observation for run in runs)


def test_a_file_of_results_finds_the_evidence_and_no_run_is_read_twice(tmp_path: Path) -> None:
    folder = make_evidence(tmp_path, "exact_cover-7.2")
    results = [json.loads((folder / "verdict.json").read_text())]
    file = write_results(tmp_path / "results.json", results)
    (run,) = load_runs([file, tmp_path])
    assert run.folder == folder
    assert run.kernel.identity == "id-7.2"


def test_guests_that_a_combined_result_counts_are_not_shown_beside_it(tmp_path: Path) -> None:
    first = make_evidence(tmp_path, "exact_cover-7.2", name="one")
    second = make_evidence(tmp_path, "exact_cover-7.2", name="two")
    results = json.loads((first / "verdict.json").read_text())
    attempt = {"load": None, "verdict": "PASS"}
    results["attempts"] = [{**attempt, "evidence": str(one)} for one in (first, second)]
    (run,) = load_runs([write_results(tmp_path / "r.json", [results]), tmp_path])
    assert len(run.record.attempts) == 2


def test_evidence_that_is_gone_or_damaged_leaves_the_result(tmp_path: Path) -> None:
    folder = make_evidence(tmp_path, "exact_cover-7.2")
    (folder / "observation" / "iomem").write_text("nonsense")
    (folder / "kernel.json").write_text("[")
    (run,) = load_runs([folder])
    assert (run.record.passed, run.observation, run.kernel) == (True, None, KernelFacts())
    (gone,) = load_runs([write_results(tmp_path / "r.json", [{**LEAST, "evidence": "/gone"}])])
    assert gone.folder is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ('[{"a": 1}]', "result 1: not the result of a run"),
        ("5", "not the result of a run"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"results\.json") as caught:
        load_runs([file])
    assert words in str(caught.value)


def test_a_folder_without_results_and_a_path_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="there is no"):
            load_runs([path])


def test_the_grid_has_each_kernel_once_whatever_configuration_a_scenario_needs() -> None:
    kernel, spec = {"release": "7.2"}, "build:debian:7.2"
    plain = record(request={"spec": spec}, kernel=kernel)
    other = record(request={"spec": spec, "configs": ["no_cxl"]}, kernel=kernel)
    job = job_of([plain, other, record(request={"spec": "debian:6.9"})])
    assert job.kernels == (
        KernelColumn("build:debian:7.2", "7.2"),
        KernelColumn("debian:6.9", ""),
    )
    chips = job.cells["s", job.kernels[0]]
    assert [(chip.label, chip.runs) for chip in chips] == [("", (0,)), ("no_cxl", (1,))]
    assert configs_of(other) == "no_cxl"


def test_versions_are_sorted_as_numbers() -> None:
    job = job_of(record(request={"spec": f"debian:{v}"}) for v in ("6.18", "6.9", "7.2"))
    assert [one.spec for one in job.kernels] == ["debian:6.9", "debian:6.18", "debian:7.2"]


def test_chips_count_runs_alike_and_put_the_worst_first() -> None:
    fail = {"verdict": "FAIL", "reason": "r"}
    job = job_of([record(), record(), record(**fail), record(**fail, known_issue="why")])
    (chips,) = job.cells.values()
    assert [(chip.outcome, chip.runs) for chip in chips] == [
        ("FAIL", (2,)),
        ("KNOWN", (3,)),
        ("PASS", (0, 1)),
    ]
    assert job.counts == (("FAIL", 1), ("KNOWN", 1), ("PASS", 2))


def test_failures_that_differ_only_in_numbers_are_one_group() -> None:
    stranded = {"rule": "1", "text": "by dax1.0", "kind": "owner", "expected": {"owner": "dax_cxl"}}
    findings = [stranded, {**stranded, "text": "by dax2.0", "subject": "sr1"}]
    job = job_of([record(verdict="FAIL", findings=[one]) for one in findings])
    assert [group.runs for group in job.failures] == [(0, 1)]
    other = record(verdict="FAIL", findings=[{"rule": "1", "text": "by dax1.0", "kind": "use"}])
    assert len(job_of([*job.records, other]).failures) == 2


@pytest.mark.parametrize(
    ("spec", "short"),
    [
        ("build:/home/me/linux@v7", "build:…/linux@v7"),
        ("build:debian:7.2 --series /p/patches/x", "build:debian:7.2 --series …/x"),
        ("debian:7.2", "debian:7.2"),
    ],
)
def test_long_paths_are_shortened_for_headings(spec: str, short: str) -> None:
    assert KernelColumn(spec, "").short == short


def test_complaints_that_stand_with_a_range_are_said_once(tmp_path: Path) -> None:
    (run,) = stored(tmp_path, "partial_region-7.2")
    rules = [one.rule for one in run.record.findings]
    assert rules == ["1", "6", "6", "6", "6"]
    assert [one.rule for one in telling_findings(run.record.findings)] == ["1"]
    alone = [one for one in run.record.findings if one.rule == "6"]
    assert len(telling_findings(alone)) == 4


def test_a_run_that_was_not_judged(tmp_path: Path) -> None:
    change = unjudged(Verdict.INCONCLUSIVE, "the guest was lost")
    (run,) = stored(tmp_path, "exact_cover-7.2", change=change)
    (group,) = job_of([run.record]).failures
    assert (group.outcome, group.text) == ("INCONCLUSIVE", "the guest was lost")
