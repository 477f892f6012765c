# SPDX-License-Identifier: GPL-2.0-or-later
"""JUnit, KCIDB and mail."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from evidence_fixtures import stored, unjudged
from hypothesis import given
from hypothesis import strategies as st

from harness.contract.result import Verdict, read_result
from harness.reports.junit import junit_report
from harness.reports.kcidb import kcidb_report
from harness.reports.mail import COLUMNS, Person, mail_reply, reasons_against_tag
from harness.runs.result_files import KernelFacts, Manifest, SourceFacts, StoredRun

TESTER = Person("Jane Doe", "jane@example.org")
NASTY = "]]></failure></script>\x00\x1b[31m\ufffe <b>&amp;"
ONE_PATCH = {"name": "0001-x.patch", "sha256": "ab" * 32}
MANIFEST = {
    "source": {"origin": "git", "tree": "1" * 40, "commit": "2" * 40, "dirty": False},
    "series": {"path": "/p", "patches": [ONE_PATCH, {"name": "0002-y.patch", "sha256": "cd" * 32}]},
    "toolchain": {"kind": "gcc", "version": ["gcc 12.2.0", "GNU ld 2.40"]},
    "build": {"seconds": 23.7},
}


def known(result: dict[str, Any]) -> None:
    result["known_issue"] = "a reason that is long enough"


def mixed(root: Path) -> tuple[StoredRun, ...]:
    lost = unjudged(Verdict.INCONCLUSIVE, "the guest was lost")
    broken = unjudged(Verdict.UNBUILDABLE, "patch 2 does not apply")
    return (
        *stored(root / "a", "exact_cover-7.2", "partial_region-7.2"),
        *stored(root / "b", "partial_region-6.12", change=known),
        *stored(root / "c", "exact_cover-7.2", change=lost),
        *stored(root / "d", "exact_cover-6.12", change=broken),
    )


def made_up(**more: Any) -> StoredRun:
    return StoredRun(read_result({**LEAST, "verdict": "FAIL", **more}))


# --- JUnit -----------------------------------------------------------------------------------


def test_junit_has_a_suite_a_kernel_and_counts_what_is_in_it(tmp_path: Path) -> None:
    root = ElementTree.fromstring(junit_report(mixed(tmp_path)).encode())
    suites = {suite.attrib["name"].split(" ")[0]: suite for suite in root}
    assert set(suites) == {"debian:7.2", "debian:6.12"}
    for suite in suites.values():
        cases = suite.findall("testcase")
        assert suite.attrib["tests"] == str(len(cases))
        for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped",) * 2):
            assert suite.attrib[attribute] == str(sum(c.find(tag) is not None for c in cases))
    assert (suites["debian:7.2"].attrib["failures"], suites["debian:7.2"].attrib["errors"]) == (
        "1",
        "1",
    )
    assert suites["debian:6.12"].attrib["skipped"] == "1"


def test_junit_says_what_was_seen(tmp_path: Path) -> None:
    (run,) = stored(tmp_path, "partial_region-7.2")
    root = ElementTree.fromstring(junit_report([run]).encode())
    failure = root.find(".//failure")
    assert failure is not None and failure.text is not None
    assert "found nobody (stranded)" in failure.attrib["message"]
    assert "could not reserve region" in failure.text and "region0" in failure.text


@given(st.text(max_size=60))
def test_junit_is_well_formed_whatever_a_guest_prints(text: str) -> None:
    finding = {"rule": "6", "text": text, "dmesg": [text, NASTY]}
    runs = [
        made_up(reason=text, findings=[finding], load={"how": "at_once", "modules": [text]}),
        made_up(known_issue=f"x{text}", findings=[finding]),
        made_up(verdict="INCONCLUSIVE", reason=text, hint=NASTY),
    ]
    root = ElementTree.fromstring(junit_report(runs).encode())
    assert len(root.findall(".//testcase")) == 3


# --- KCIDB -----------------------------------------------------------------------------------


def validated(report: dict[str, Any]) -> dict[str, Any]:
    schema = pytest.importorskip("kcidb_io.schema", reason="kcidb-io is not installed")
    schema.V5_3.validate_exactly(report)
    return report


def test_kcidb_is_what_the_schema_asks_for(tmp_path: Path) -> None:
    report = validated(kcidb_report(mixed(tmp_path)))
    status = sorted(test["status"] for test in report["tests"])
    assert status == ["ERROR", "FAIL", "FAIL", "MISS", "PASS"]
    assert {test["path"] for test in report["tests"]} == {
        "cxl_ownership.exact_cover",
        "cxl_ownership.partial_region",
    }
    (issue,) = report["issues"]
    assert report["incidents"][0]["issue_id"] == issue["id"]
    assert sorted(build.get("status") for build in report["builds"]) == ["FAIL", "PASS", "PASS"]


def test_kcidb_ids_hang_together_and_stay_the_same(tmp_path: Path) -> None:
    runs = mixed(tmp_path)
    report = kcidb_report(runs)
    checkouts = {one["id"] for one in report["checkouts"]}
    builds = {one["id"] for one in report["builds"]}
    assert {one["checkout_id"] for one in report["builds"]} == checkouts
    assert {one["build_id"] for one in report["tests"]} == builds
    assert len({one["id"] for one in report["tests"]}) == len(runs)
    assert kcidb_report(tuple(reversed(runs)))["checkouts"][0]["id"] in checkouts


def test_kcidb_says_where_a_built_kernel_comes_from(tmp_path: Path) -> None:
    def series(result: dict[str, Any]) -> None:
        spec = "build:/home/me/linux@v7"
        result["request"] = {"spec": spec, "configs": ["builtin"], "series": "/p"}

    (run,) = stored(tmp_path, "exact_cover-7.2", change=series, manifest=MANIFEST)
    report = validated(kcidb_report([run], "my_lab"))
    (checkout,), (build,), (test,) = (report[k] for k in ("checkouts", "builds", "tests"))
    assert checkout["git_commit_hash"] == "2" * 40
    lines = f"{'ab' * 32}\n{'cd' * 32}\n"
    assert checkout["patchset_hash"] == hashlib.sha256(lines.encode()).hexdigest()
    assert (build["compiler"], build["duration"], build["config_name"]) == (
        "gcc 12.2.0",
        23.7,
        "builtin",
    )
    assert all(one["origin"] == "my_lab" for one in (checkout, build, test))
    assert test["duration"] == 3.1 and test["start_time"].endswith("+00:00")
    assert "10.0.2" in test["environment"]["comment"]


def test_kcidb_does_not_call_a_changed_tree_a_commit(tmp_path: Path) -> None:
    manifest = {**MANIFEST, "source": {"origin": "git", "commit": "2" * 40, "dirty": True}}
    (run,) = stored(tmp_path, "exact_cover-7.2", manifest=manifest)
    (checkout,) = validated(kcidb_report([run]))["checkouts"]
    assert "git_commit_hash" not in checkout
    assert checkout["misc"]["source"]["dirty"] is True


def test_kcidb_names_the_commit_that_does_not_build(tmp_path: Path) -> None:
    def broken(result: dict[str, Any]) -> None:
        unjudged(Verdict.UNBUILDABLE, "hmem.c:1: error")(result)
        spec = f"build:/my nights/trees/x@{'3' * 40}"
        result["request"] = {"spec": spec, "configs": ["builtin"]}
        result["kernel"] = {"release": None, "config_sha256": None}

    (run,) = stored(tmp_path, "exact_cover-7.2", change=broken)
    (checkout,) = validated(kcidb_report([replace(run, kernel=KernelFacts(), manifest=None)]))[
        "checkouts"
    ]
    assert checkout["git_commit_hash"] == "3" * 40
    assert f"/my nights/trees/x@{'3' * 40}" in checkout["comment"]


@given(st.text(max_size=60))
def test_kcidb_holds_whatever_a_guest_prints(text: str) -> None:
    finding = {"rule": "6", "text": text * 900, "dmesg": [NASTY]}
    run = made_up(
        scenario=text, reason=text, known_issue=f"x{text}", findings=[finding], evidence=text
    )
    validated(kcidb_report([replace(run, kernel=KernelFacts(command_line=NASTY))]))


# --- mail ------------------------------------------------------------------------------------


def test_mail_vouches_for_what_passed_and_names_what_was_not_run(tmp_path: Path) -> None:
    runs = stored(tmp_path, "exact_cover-7.2", "sr_outside_window-7.2")
    mail = mail_reply(runs, ("exact_cover", "sr_outside_window", "no_region"), TESTER)
    assert mail.endswith("\nTested-by: Jane Doe <jane@example.org>\n")
    assert "Not run (1 of 3 scenarios): no_region." in mail
    assert "2 runs: 2 PASS." in mail


def test_mail_shows_what_failed_and_does_not_vouch(tmp_path: Path) -> None:
    runs = stored(tmp_path, "exact_cover-7.2", "partial_region-7.2")
    mail = mail_reply(runs, (), TESTER)
    assert "Tested-by:" not in mail.replace("No Tested-by:", "")
    assert "No Tested-by: 1 of 2 runs did not pass." in mail
    assert "      110000000-18fffffff : CXL Window 0\n        110000000-14fffffff : region0" in mail
    assert "could not reserve region" in " ".join(mail.split())


def test_mail_names_series_patches_and_commit(tmp_path: Path) -> None:
    def series(result: dict[str, Any]) -> None:
        result["request"] = {"spec": "build:linux", "series": "patches/defer"}

    runs = stored(tmp_path, "exact_cover-7.2", change=series, manifest=MANIFEST)
    mail = mail_reply(runs, (), TESTER)
    assert "series:  patches/defer\n         0001-x\n         0002-y\n" in mail
    assert f"commit:  {'2' * 40}\n" in mail
    assert "Tested-by:" in mail


def test_nobody_vouches_for_what_cannot_be_told(tmp_path: Path) -> None:
    (run,) = stored(tmp_path, "exact_cover-7.2")
    assert reasons_against_tag([run]) == ()
    dirty = replace(run, manifest=Manifest(SourceFacts(dirty=True)))
    other = replace(run, kernel=KernelFacts("another"))
    nameless = replace(run, kernel=KernelFacts())
    step = {"step": "reload", "outcome": "not_done"}
    undone = replace(run, record=read_result({**LEAST, "steps": [step]}))
    guest = {"load": None, "verdict": "INCONCLUSIVE"}
    some = replace(run, record=read_result({**LEAST, "attempts": [guest]}))
    for runs, words in (
        ([], "nothing was run"),
        ([dirty], "uncommitted changes"),
        ([run, other], "2 different kernels were called debian:7.2"),
        ([nameless], "which kernel ran is missing"),
        ([undone], "steps were not done"),
        ([some], "some guests did not pass"),
    ):
        (reason,) = reasons_against_tag(runs)
        assert words in reason
        if runs:
            assert "\nTested-by:" not in mail_reply(runs, (), TESTER)


LEAST: dict[str, Any] = {
    "scenario": "s",
    "request": {"spec": "debian:7.2"},
    "policy": "per_range",
    "verdict": "PASS",
}


def test_nobody_vouches_who_is_not_named(tmp_path: Path) -> None:
    mail = mail_reply(stored(tmp_path, "exact_cover-7.2"), (), None)
    assert "\nTested-by:" not in mail
    assert "--tested-by" in mail


def test_a_known_failure_is_no_pass(tmp_path: Path) -> None:
    mail = mail_reply(stored(tmp_path, "partial_region-7.2", change=known), (), TESTER)
    assert "known FAIL" in mail and "\nTested-by:" not in mail


def columns(line: str) -> int:
    from unicodedata import combining, east_asian_width

    return sum(
        0 if combining(letter) else 2 if east_asian_width(letter) in "WF" else 1 for letter in line
    )


WORDS = st.text(max_size=120) | st.sampled_from(
    ["x" * 300, "a" * 40 + " 漢字" * 30, " " * 99 + "y"]
)


@given(WORDS, WORDS, st.sampled_from(["PASS", "FAIL", "INCONCLUSIVE"]))
def test_mail_is_never_wider_than_a_terminal_of_the_list(
    text: str, other: str, verdict: str
) -> None:
    finding = {"rule": "6", "text": text, "iomem": [other], "dmesg": [f"{text}\n{other}"]}
    run = made_up(
        scenario=text or "s",
        request={"spec": f"build:{other}", "series": text},
        kernel={"release": text},
        verdict=verdict,
        reason=other,
        findings=[finding],
        known_issue=text,
    )
    for line in mail_reply([run, made_up()], [text, other], TESTER).splitlines():
        assert columns(line) <= COLUMNS, line
        assert line.isprintable()
