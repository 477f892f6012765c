# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands `bundle`, `judge` and `replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import Harness, assert_one_message
from evidence_fixtures import Change, make_evidence, requested

from harness.scenario.kernel_request import KernelRequest

pytestmark = pytest.mark.usefixtures("room")


def changed(**fields: Any) -> Change:
    return lambda result: result.update(fields)


def test_a_run_is_packed_and_judged_by_name(harness: Harness, room: Path) -> None:
    make_evidence(room / "evidence", "partial_region-7.2", name="one")
    packed = harness("bundle", "one")
    assert packed.code == 0 and "harness replay one.zip" in packed.out
    for evidence in ("one", "one.zip", room / "evidence" / "one"):
        again = harness("judge", evidence)
        assert again.code == 1, "the verdict is FAIL"
        assert again.out.startswith("recorded: FAIL partial_region on debian:7.2")
        assert again.out.endswith("the same as recorded\n")
    assert_one_message(harness("bundle", "one"), "one.zip: the file exists")


def test_judge_prints_the_differences(harness: Harness, room: Path) -> None:
    change = changed(verdict="PASS", findings=[])
    make_evidence(room / "evidence", "partial_region-7.2", name="one", change=change)
    again = harness("judge", "one")
    assert again.code == 1
    assert "differs: recorded PASS, now FAIL\n" in again.out
    assert "the same as recorded" not in again.out


def test_judge_takes_the_recorded_policy_without_another(harness: Harness, room: Path) -> None:
    change = changed(policy="all_or_nothing")
    make_evidence(room / "evidence", "partial_region-7.2", name="one", change=change)
    for words, policy in (((), "all_or_nothing"), (("--policy", "per_range"), "per_range")):
        again = harness("judge", "one", *words)
        verdict = next(line for line in again.out.splitlines() if line.startswith("FAIL"))
        assert f"policy {policy}" in verdict
        left = "region0 is left, but CXL must be given up" in again.out
        assert left is (policy == "all_or_nothing")


def test_replay_of_a_kernel_on_another_machine(harness: Harness, room: Path) -> None:
    change = requested(KernelRequest("image:/nowhere/linux"))
    evidence = make_evidence(room / "e", "exact_cover-7.2", change=change)
    harness("bundle", evidence, "-o", "b.zip")
    ended = harness("replay", "b.zip")
    assert ended.code == 2 and "Traceback" not in ended.err
    assert "image:/nowhere/linux is not on this machine" in ended.err
    assert "--kernel" in ended.err


def test_errors_in_the_input(harness: Harness, room: Path) -> None:
    Path("text.zip").write_text("text")
    Path("empty").mkdir()
    for command in ("judge", "replay"):
        assert_one_message(harness(command, "text.zip"), "text.zip: not a bundle")
        assert_one_message(harness(command, "gone.zip"), "gone.zip: there is no such file")
        assert_one_message(harness(command, "empty"), "empty: files are missing: verdict.json")
    assert_one_message(harness("bundle", "gone"), "there is no evidence folder gone")
    assert_one_message(harness("bundle", "empty"), "empty: files are missing: verdict.json")
