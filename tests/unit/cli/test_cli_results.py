# SPDX-License-Identifier: GPL-2.0-or-later
"""Files for results and evidence, and the exit code of several scenarios."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from cli_fixtures import Harness, assert_one_message, files, use_verdicts

from harness.contract.result import Verdict
from harness.core.errors import UsageError

pytestmark = pytest.mark.usefixtures("room")


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize("name", ["nowhere/results.json", "file/results.json"])
def test_results_that_cannot_be_written(harness: Harness, room: Path, name: str) -> None:
    Path("file").touch()
    before = files(room)
    ended = harness("run", "exact_cover", "--json", name)
    assert_one_message(ended, f"{name}: cannot be written", "--json")
    assert files(room) == before


@pytest.mark.usefixtures("no_guest")
def test_results_to_a_folder(harness: Harness, room: Path) -> None:
    Path("results.json").mkdir()
    ended = harness("run", "exact_cover", "--json", "results.json")
    assert (ended.code, ended.out) == (2, "")
    assert "results.json" in ended.err
    assert "--json" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.usefixtures("no_guest")
def test_results_to_a_file_without_permission(harness: Harness) -> None:
    Path("results.json").write_text("old")
    Path("results.json").chmod(0o400)
    if os.access("results.json", os.W_OK):
        pytest.skip("this user may write every file")
    ended = harness("run", "exact_cover", "--json", "results.json")
    assert_one_message(ended, "results.json: cannot be written", "--json")
    assert Path("results.json").read_text() == "old"


@pytest.mark.usefixtures("no_guest")
def test_results_of_a_run_that_did_not_start(harness: Harness, room: Path) -> None:
    """Leaves no empty file, and keeps the results of an earlier run."""
    kernel = "image:/nowhere/linux"
    assert harness("run", "exact_cover", "--kernel", kernel, "--json", "new.json").code == 2
    Path("old.json").write_text("[]\n")
    assert harness("run", "exact_cover", "--kernel", kernel, "--json", "old.json").code == 2
    assert Path("old.json").read_text() == "[]\n"
    assert files(room) == {room / "work" / "old.json"}


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize("place", ["file/below", "/proc/nowhere"])
@pytest.mark.parametrize("by_variable", [False, True])
def test_evidence_that_cannot_be_written(
    harness: Harness,
    room: Path,
    kernel: str,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    by_variable: bool,
) -> None:
    Path("file").touch()
    words: tuple[str, ...] = ("--evidence", place)
    if by_variable:
        monkeypatch.setenv("HARNESS_EVIDENCE", place)
        words = ()
    ended = harness("run", "exact_cover", "--kernel", kernel, "--accel", "tcg", *words)
    assert_one_message(ended, place, "evidence cannot be written", "--evidence", "HARNESS_EVIDENCE")
    assert Path("file").read_bytes() == b""


@pytest.mark.usefixtures("no_guest")
def test_evidence_to_a_file(harness: Harness, room: Path) -> None:
    Path("file").touch()
    ended = harness("run", "exact_cover", "--evidence", "file")
    assert (ended.code, ended.out) == (2, "")
    assert "--evidence" in ended.err
    assert files(room) == {room / "work" / "file"}


@pytest.mark.usefixtures("no_guest")
def test_a_store_that_cannot_be_made(
    harness: Harness, room: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").touch()
    before = files(room)
    monkeypatch.setenv("HARNESS_STORE", str(Path("file/store").absolute()))
    ended = harness("run", "exact_cover", "--kernel", kernel)
    assert_one_message(ended, "file/store", "cannot create the store", "HARNESS_STORE")
    assert files(room) == before


PASS, FAIL, LOST, UNBUILT = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.UNBUILDABLE


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ((PASS,), 0),
        ((FAIL,), 1),
        ((LOST,), 3),
        ((UNBUILT,), 4),
        ((PASS, PASS), 0),
        ((PASS, FAIL), 1),
        ((FAIL, PASS), 1),
        ((PASS, LOST), 3),
        ((LOST, UNBUILT), 4),
        ((UNBUILT, LOST), 4),
        ((LOST, FAIL), 1),
        ((UNBUILT, FAIL, PASS, LOST), 1),
    ],
)
def test_the_exit_code_of_several_runs(
    harness: Harness,
    monkeypatch: pytest.MonkeyPatch,
    verdicts: tuple[Verdict, ...],
    code: int,
) -> None:
    use_verdicts(monkeypatch, *verdicts)
    ended = harness("run", *["exact_cover"] * len(verdicts), "--json", "results.json")
    assert (ended.code, ended.err) == (code, "")
    names = [line.split(" ")[0] for line in ended.out.splitlines() if "exact_cover on " in line]
    assert names == [verdict.name for verdict in verdicts]
    results = json.loads(Path("results.json").read_text())
    assert [result["verdict"] for result in results] == names
    if len(verdicts) > 1:
        summary = ended.out.splitlines()[-1]
        counts = {f"{names.count(name)} {name}" for name in names}
        assert set(summary.split(", ")) == counts


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize(
    ("ending", "code"),
    [(KeyboardInterrupt(), 130), (UsageError("wrong", hint="right"), 1)],
    ids=["interrupted", "refused"],
)
def test_results_so_far_stay_when_a_later_run_breaks_off(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, ending: BaseException, code: int
) -> None:
    """A FAIL decides the exit code, whatever happens after it."""
    use_verdicts(monkeypatch, FAIL, ending)
    ended = harness("run", "exact_cover", "no_soft_reserved", "--json", "results.json")
    assert ended.code == code
    assert "Traceback" not in ended.err
    assert ended.out.startswith("FAIL exact_cover on ")
    (result,) = json.loads(Path("results.json").read_text())
    assert result["verdict"] == "FAIL"


@pytest.mark.usefixtures("no_guest")
def test_an_unexpected_error_never_looks_like_a_verdict(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 1 means that the kernel broke the contract: a bisection would take it as bad."""
    use_verdicts(monkeypatch, OSError(28, "No space left on device", "/evidence/verdict.json"))
    try:
        ended = harness("run", "exact_cover")
    except OSError:
        pytest.fail("the error reaches the interpreter, which ends with status 1: FAIL")
    assert ended.code not in (Verdict.PASS.exit_code, Verdict.FAIL.exit_code)
    assert "No space left on device" in ended.err


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EAGAIN, "ulimit -v and -u"),
        (errno.EROFS, "owner and permissions"),
        (errno.ENOTDIR, "check the path"),
    ],
)
def test_an_error_of_the_system_has_a_hint(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    use_verdicts(monkeypatch, OSError(number, os.strerror(number), "/some/file"))
    ended = harness("run", "exact_cover")
    assert ended.code == Verdict.INCONCLUSIVE.exit_code
    assert "/some/file" in ended.err
    assert remedy in ended.err.partition("\n  hint: ")[2]


@pytest.mark.usefixtures("no_guest")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_results_that_do_not_fit_on_the_disk(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_verdicts(monkeypatch, PASS)
    try:
        ended = harness("run", "exact_cover", "--json", "/dev/full")
    except OSError:
        pytest.fail("the error reaches the interpreter, which ends with status 1: FAIL")
    assert ended.code not in (Verdict.PASS.exit_code, Verdict.FAIL.exit_code)
    assert "Traceback" not in ended.err
    assert "/dev/full" in ended.err
    assert "hint: " in ended.err


@pytest.mark.usefixtures("no_guest", "kernel")
@pytest.mark.parametrize(
    ("error", "words"),
    [(MemoryError(), "out of memory"), (ValueError("odd"), "a bug in the harness")],
)
def test_an_unexpected_exception_is_not_a_verdict(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    use_verdicts(monkeypatch, error)
    ended = harness("run", "exact_cover", "--evidence", "evidence")
    assert ended.code == Verdict.INCONCLUSIVE.exit_code
    assert words in ended.err and "  hint: " in ended.err
