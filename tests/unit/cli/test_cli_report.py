# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands `report`, `bundle` and `replay`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import Harness, assert_one_message, files
from evidence_fixtures import make_evidence, requested

from harness.scenario.kernel_request import KernelRequest

pytestmark = pytest.mark.usefixtures("room")

MARKS = {"-o": "<!DOCTYPE html>", "--junit": "<?xml", "--kcidb": "{"}


@pytest.mark.parametrize("option", sorted(MARKS))
def test_a_report_of_the_usual_place_goes_to_a_file(
    harness: Harness, room: Path, option: str
) -> None:
    make_evidence(room / "evidence", "exact_cover-7.2")
    make_evidence(room / "evidence", "partial_region-7.2")
    ended = harness("report", option, "out")
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert Path("out").read_text().startswith(MARKS[option])


def test_a_reply_is_signed_as_git_has_it_or_as_asked(
    harness: Harness, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_evidence(room / "evidence", "exact_cover-7.2")
    (room / "home" / ".gitconfig").write_text("[user]\nname = Git Person\nemail = git@here.org\n")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert harness("report", "--mail", folder).out.endswith(
        "\nTested-by: Git Person <git@here.org>\n"
    )
    asked = harness("report", "--mail", folder, "--tested-by", "Jane Doe <jane@example.org>")
    assert asked.out.endswith("\nTested-by: Jane Doe <jane@example.org>\n")
    (room / "home" / ".gitconfig").unlink()
    nobody = harness("report", "--mail", folder)
    assert "No Tested-by: no tester is named" in nobody.out
    assert "no_region" in nobody.out, "scenarios that were not run are named"


def test_a_run_that_was_killed_is_not_left_out_in_silence(harness: Harness, room: Path) -> None:
    make_evidence(room / "evidence", "exact_cover-7.2")
    killed = make_evidence(room / "evidence", "partial_region-7.2")
    (killed / "verdict.json").unlink()
    ended = harness("report", "--mail", "--tested-by", "Jane Doe <jane@example.org>")
    assert "left out" in ended.err and str(killed) in ended.err
    assert "No Tested-by: 1 run more have no verdict" in ended.out


@pytest.mark.parametrize("person", ["Jane", "jane@example.org", "<a@b>", "A <a@b>\nB <b@c>", ""])
def test_a_person_without_name_or_address(harness: Harness, person: str) -> None:
    assert_one_message(harness("report", "--mail", "--tested-by", person), "--tested-by", "Jane")


def test_a_report_of_nothing(harness: Harness, room: Path) -> None:
    assert_one_message(harness("report"), "nothing is asked for", "--junit")
    assert_one_message(harness("report", "-o", "x.html"), "evidence: there is no such file")
    Path("empty.json").write_text("[]")
    assert_one_message(harness("report", "--mail", "empty.json"), "there is no result in it")
    assert files(room) == {room / "work" / "empty.json"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-o", "nowhere/x"), "nowhere/x: cannot be written"),
        (("-o", "x", "--junit", "x"), "to the same file"),
        (("--kcidb", "x", "--kcidb-origin", "My Lab"), "'My Lab' is not a name"),
        (("--mail", "gone.json"), "gone.json: there is no such file"),
    ],
)
def test_wrong_input_leaves_nothing(
    harness: Harness, room: Path, words: tuple[str, ...], said: str
) -> None:
    make_evidence(room / "evidence", "exact_cover-7.2")
    before = files(room)
    assert_one_message(harness("report", *words), said)
    assert files(room) == before


def test_a_foreign_file_is_named(harness: Harness, room: Path) -> None:
    Path("foreign.json").write_text(json.dumps({"version": 1}))
    ended = harness("report", "-o", "x.html", "foreign.json")
    assert_one_message(ended, "foreign.json: not the result of a run", "--json")
    assert not Path("x.html").exists()


def test_a_run_is_packed_by_name_and_judged_again(harness: Harness, room: Path) -> None:
    make_evidence(room / "evidence", "partial_region-7.2", name="one")
    packed = harness("bundle", "one")
    assert packed.code == 0 and "harness replay one.zip" in packed.out
    again = harness("replay", "one.zip", "--judge-only")
    assert again.code == 1, "what was found is a FAIL"
    assert again.out.startswith("recorded: FAIL partial_region on debian:7.2")
    assert again.out.endswith("the same as recorded\n")
    assert harness("bundle", "one").code == 2, "it is there already"


def test_a_replay_says_where_the_judge_differs_from_the_record(
    harness: Harness, room: Path
) -> None:
    def passed(result: dict[str, Any]) -> None:
        result.update(verdict="PASS", findings=[])

    make_evidence(room / "evidence", "partial_region-7.2", name="one", change=passed)
    harness("bundle", "one", "-o", "b.zip")
    again = harness("replay", "b.zip", "--judge-only")
    assert again.code == 1
    assert "differs: recorded PASS, now FAIL\n" in again.out


def test_a_replay_keeps_the_policy_unless_another_is_asked_for(
    harness: Harness, room: Path
) -> None:
    def other(result: dict[str, Any]) -> None:
        result["policy"] = "all_or_nothing"

    make_evidence(room / "evidence", "partial_region-7.2", name="one", change=other)
    harness("bundle", "one", "-o", "b.zip")
    for words, policy in (((), "all_or_nothing"), (("--policy", "per_range"), "per_range")):
        again = harness("replay", "b.zip", "--judge-only", *words)
        verdict = next(line for line in again.out.splitlines() if line.startswith("FAIL"))
        assert f"policy {policy}" in verdict
        left = "region0 is left, but CXL must be given up" in again.out
        assert left is (policy == "all_or_nothing")


def test_a_replay_of_a_kernel_that_is_elsewhere(harness: Harness, room: Path) -> None:
    evidence = make_evidence(
        room / "e", "exact_cover-7.2", change=requested(KernelRequest("image:/nowhere/linux"))
    )
    harness("bundle", evidence, "-o", "b.zip")
    ended = harness("replay", "b.zip")
    assert ended.code == 2 and "Traceback" not in ended.err
    assert "image:/nowhere/linux is not on this machine" in ended.err
    assert "--kernel" in ended.err


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("report", "-o"), "-o"),
        (("report", "--junit"), "--junit"),
        (("report", "--kcidb"), "--kcidb"),
        (("bundle", "RUN", "-o"), "-o"),
        (("replay", "b.zip", "--json"), "--json"),
    ],
)
def test_a_file_that_cannot_be_written_names_the_option_that_named_it(
    harness: Harness, room: Path, words: tuple[str, ...], option: str
) -> None:
    evidence = make_evidence(room / "evidence", "exact_cover-7.2")
    asked = [str(evidence) if word == "RUN" else word for word in words]
    ended = harness(*asked, "nowhere/x")
    assert_one_message(ended, "nowhere/x: cannot be written: its folder does not exist")
    assert ended.err.endswith(f"  hint: name another file with {option}\n")


def test_bad_bundles_and_runs(harness: Harness, room: Path) -> None:
    Path("text.zip").write_text("text")
    assert_one_message(harness("replay", "text.zip"), "text.zip: not a bundle")
    assert_one_message(harness("replay", "gone.zip"), "gone.zip: there is no such file")
    assert_one_message(harness("bundle", "gone"), "there is no evidence folder gone")
    assert_one_message(
        harness("replay", "gone.zip", "--judge-only", "--kernel", "debian:7.2"), "--judge-only"
    )
