# SPDX-License-Identifier: GPL-2.0-or-later
"""`ci/nightly` as a program: nights of a branch, and errors in its input and its surroundings."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from fake_sources import edit, git
from nightly_fixtures import Workspace, changes, workspace

from harness.core.cache import Store

__all__ = ["workspace"]


def assert_refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 2) -> None:
    """It ended with one message and a hint, which contain these words."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("  hint: ") == 1
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr


def test_nights_of_a_branch(workspace: Workspace) -> None:
    first = workspace.commit("one", "two")
    assert "the first night of this branch" in workspace.expect_night(0).stdout
    assert changes(workspace.latest()) == {"exact_cover": "passes", "partial_region": "passes"}

    bad = workspace.commit("three", "stranded")
    last = workspace.commit("four", "five", "six")
    done = workspace.expect_night(1)
    night = workspace.latest()
    assert (night["night"], night["commit"], night["new_commits"]) == (2, last, 5)
    assert night["last"] == {"night": 1, "commit": first}
    assert set(changes(night).values()) == {"regression"}
    for row in night["rows"]:
        assert row["before"] == {"night": 1, "commit": first, "verdict": "PASS"}
        assert row["first_bad"]["commit"] == bad
    assert done.stdout.count(f"first bad commit: {bad} change: stranded") == 2

    # The same failure in the next night is neither a regression nor bisected.
    workspace.expect_night(0)
    assert set(changes(workspace.latest()).values()) == {"fails as before"}
    assert not [row for row in workspace.latest()["rows"] if row["first_bad"]]

    # A night that can judge nothing hides no change, and is no success.
    for before, now, code, change in (
        ("stranded", "lost", 3, "could not be judged"),
        ("lost", "found", 0, "fixed"),
    ):
        edit(workspace.tree, f"/* {before} */", f"/* {now} */")
        git(workspace.tree, "commit", "-q", "-a", "-m", f"change: {now}")
        workspace.expect_night(code)
        assert set(changes(workspace.latest()).values()) == {change}
    latest = workspace.state / "nights" / "latest"
    for name in ("summary.txt", "report.html", "results.json", "junit.xml"):
        assert (latest / name).stat().st_size > 0
    assert "2 fixed" in (latest / "report.html").read_text()


def test_a_night_without_results_names_its_summary(workspace: Workspace) -> None:
    (workspace.root / "NO_RESULT").write_text("NotApplicable: the kernel has no CXL")
    done = workspace.expect_night(3)
    assert set(changes(workspace.latest()).values()) == {"does not apply to this kernel"}
    (name,) = [line for line in done.stdout.splitlines() if line.startswith("report: ")]
    assert Path(name.removeprefix("report: ")).read_text() in done.stdout


def test_a_kernel_that_does_not_build_is_a_regression_and_not_run(workspace: Workspace) -> None:
    workspace.passed("one")
    edit(workspace.tree, "/* one */", "#error no")
    git(workspace.tree, "commit", "-q", "-a", "-m", "break the build")
    done = workspace.expect_night(1)
    for row in workspace.latest()["rows"]:
        assert (row["verdict"], row["change"]) == ("UNBUILDABLE", "regression")
        assert "no" in row["reason"] and row["first_bad"] is None
    # It is built once, not for each scenario.
    assert len(list((workspace.root / "store").glob("outputs/*"))) == 1
    assert done.stderr.count("hint:") == 1
    workspace.expect_night(0)
    assert set(changes(workspace.latest()).values()) == {"fails as before"}


def test_a_rebased_branch(workspace: Workspace) -> None:
    workspace.passed("one", "two")
    git(workspace.tree, "reset", "-q", "--hard", "HEAD~1")
    bad = workspace.commit("stranded")
    workspace.commit("other")
    assert "the branch was rebased: " in workspace.expect_night(1).stderr
    assert workspace.latest()["rows"][0]["first_bad"]["commit"] == bad


def test_a_passing_commit_that_is_gone(workspace: Workspace) -> None:
    workspace.passed("one", "two")
    git(workspace.tree, "reset", "-q", "--hard", "HEAD~1")
    workspace.commit("stranded")
    git(workspace.tree, "reflog", "expire", "--expire=now", "--all")
    git(workspace.tree, "gc", "-q", "--prune=now")
    done = workspace.expect_night(1)
    assert "the branch was rebased, and " in done.stderr
    assert "not bisected: the commit that passed" in done.stdout


def test_a_deleted_branch(workspace: Workspace) -> None:
    assert_refused(workspace.night("--branch", "cxl/nxt"), "there is no branch cxl/nxt", "cxl/next")
    workspace.passed("one")
    git(workspace.tree, "branch", "-m", "cxl/fixes")
    before = workspace.rows()
    done = workspace.night()
    assert_refused(done, "there is no branch cxl/next", "night 1 found it at", "cxl/fixes")
    assert workspace.rows() == before


def test_a_damaged_history_is_kept_aside(workspace: Workspace) -> None:
    workspace.passed("one")
    path = workspace.state / "history.sqlite"
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"x" * 4096
    for damaged in (bytes(content), b"no database at all" * 300):
        path.write_bytes(damaged)
        done = workspace.expect_night(0)
        assert "is damaged" in done.stderr
        assert "the first night of this branch" in done.stdout
    # The new history reuses no folder of an earlier night.
    names = sorted(file.name for file in (workspace.state / "nights").iterdir())
    assert names == ["1", "2", "3", "latest"]
    assert workspace.latest()["night"] == 3
    kept = sorted(workspace.state.glob("history.sqlite.damaged-*"))
    assert [file.read_bytes() for file in kept] == [bytes(content), b"no database at all" * 300]


def test_the_history_of_a_newer_harness(workspace: Workspace) -> None:
    workspace.expect_night(0)
    with workspace.history() as connection:
        connection.execute("pragma user_version = 99")
    before = (workspace.state / "history.sqlite").read_bytes()
    assert_refused(workspace.night(), "written by a newer harness", "--state")
    assert (workspace.state / "history.sqlite").read_bytes() == before


def test_two_nights_in_the_same_folder(workspace: Workspace) -> None:
    workspace.state.mkdir()
    with Store(workspace.state).lock("nightly", what="a night", wait=False):
        assert_refused(workspace.night(), "another harness is running a night in")


def test_errors_in_the_input_are_reported_before_the_fetch(workspace: Workspace) -> None:
    hosts, file, plain = (workspace.root / name for name in ("hosts.yaml", "file", "plain"))
    file.touch()
    plain.mkdir()
    for content, words in (
        ("kernels: [branch]\nplanets: [mars]\n", ("matrix.yaml:2", "planets")),
        ("kernels: [debian:7.2]\n", ("matrix.yaml:1: kernels", "needs the kernel 'branch'")),
    ):
        matrix = workspace.root / "wrong" / "matrix.yaml"
        matrix.parent.mkdir(exist_ok=True)
        matrix.write_text(content)
        assert_refused(workspace.night("--matrix", matrix), *words)
    assert_refused(workspace.night("--hosts", hosts), "hosts.yaml", "cannot read")
    hosts.write_text("hosts:\n- {name: a, shs: b}\n")
    assert_refused(workspace.night("--hosts", hosts), "hosts.yaml:2", "unknown key 'shs'")
    assert_refused(workspace.night("--state", file / "state"), "cannot be made", "--state")
    # A matrix with configurations is planned before the commit is known.
    workspace.matrix.write_text(
        "kernels: [branch]\nconfigs: [debug]\nscenarios: [exact_cover]\n"
        "policies: [all_or_nothing]\n"
    )
    assert_refused(workspace.night(tree=workspace.root / "nowhere"), "there is no folder")
    assert_refused(workspace.night(tree=plain), "not a git tree")
    assert_refused(workspace.night("--branch", "no/such"), "there is no branch no/such")
    url = f"file://{workspace.root}/nowhere.git"
    assert_refused(workspace.night(tree=url), "git cannot fetch", url, code=3)
    assert not (workspace.state / "nights").exists()


def test_a_branch_behind_a_url(workspace: Workspace) -> None:
    last = workspace.commit("one")
    workspace.expect_night(0, tree=f"file://{workspace.tree}")
    assert workspace.latest()["commit"] == last


def test_old_evidence_is_removed(workspace: Workspace) -> None:
    for _ in range(3):
        workspace.expect_night(0, "--keep", "2")
    names = sorted(file.name for file in (workspace.state / "nights").iterdir())
    assert names == ["2", "3", "latest"]
    assert workspace.select("count(*) from nights") == [(3,)]
    results = workspace.select("night, result from results order by night")
    whole = {night: "timings" in json.loads(result) for night, result in results}
    assert whole == {1: False, 2: True, 3: True}
