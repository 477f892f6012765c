# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `report`, and files that cannot be written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_fixtures import Harness, assert_one_message, files
from evidence_fixtures import make_evidence

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
    assert "without a verdict" in ended.err and str(killed) in ended.err
    assert "No Tested-by: 1 run more have no verdict" in ended.out


@pytest.mark.parametrize("person", ["Jane", "jane@example.org", "<a@b>", "A <a@b>\nB <b@c>", ""])
def test_a_person_without_name_or_address(harness: Harness, person: str) -> None:
    assert_one_message(harness("report", "--mail", "--tested-by", person), "--tested-by", "Jane")


def test_a_report_of_nothing(harness: Harness, room: Path) -> None:
    assert_one_message(harness("report"), "no report is requested", "--junit")
    assert_one_message(harness("report", "-o", "x.html"), "evidence: there is no such file")
    Path("empty.json").write_text("[]")
    assert_one_message(harness("report", "--mail", "empty.json"), "no results in empty.json")
    assert files(room) == {room / "work" / "empty.json"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-o", "nowhere/x"), "nowhere/x: cannot be written"),
        (("-o", "x", "--junit", "x"), "have the same file"),
        (("--kcidb", "x", "--kcidb-origin", "My Lab"), "'My Lab' is not a valid name"),
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
    assert ended.err.endswith(f"  hint: choose another file with {option}\n")
