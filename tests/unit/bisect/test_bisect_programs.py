# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands as programs: under the user's own git bisect run, and killed during a bisection."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_sources import edit, git, git_fake, stub_tools

from harness.core.paths import PROJECT

PROGRAM = PROJECT / "tests" / "unit" / "fake_guests.py"
SECONDS = 300


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    tools = stub_tools(tmp_path / "tools" / "bin")
    return os.environ | {
        "HARNESS_STORE": str(tmp_path / "store"),
        "HARNESS_EVIDENCE": str(tmp_path / "evidence"),
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": f"{PROGRAM.parents[2]}:{PROGRAM.parent}",
    }


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Eight commits on top of v0: the third cannot be judged, the sixth strands memory."""
    tree = git_fake(tmp_path / "linux")
    git(tree, "tag", "v0")
    for number in range(1, 9):
        text = {3: "lost", 4: "found", 6: "stranded"}.get(number, f"number {number}")
        edit(tree, "/* Two. */", f"/* Two. */\n/* {text} */")
        if number == 4:
            edit(tree, "/* lost */", "/* found */")
        git(tree, "commit", "-q", "-a", "-m", f"change {number}")
    return tree


def run(environment: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(PROGRAM), *map(str, words)]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=SECONDS)


def test_in_git_bisect_run(tree: Path, environment: dict[str, str]) -> None:
    git(tree, "bisect", "start", "main", "v0")
    step = [sys.executable, str(PROGRAM), "bisect-step", "--accel", "tcg"]

    def bisect_run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = ["git", "-C", str(tree), "bisect", "run", *step, *words]
        return subprocess.run(
            argv, env=environment, capture_output=True, text=True, timeout=SECONDS
        )

    # A wrong command line ends it, and marks no commit as bad.
    before = git(tree, "bisect", "log")
    for words in (("no_such",), ("exact_cover", "--no-such")):
        done = bisect_run(*words)
        assert done.returncode != 0
        assert git(tree, "bisect", "log") == before
    done = bisect_run("exact_cover")
    assert done.returncode == 0, done.stdout + done.stderr
    (first,) = re.findall(r"^([0-9a-f]{40}) is the first bad commit$", done.stdout, re.M)
    assert first == git(tree, "rev-parse", "main~2")


@pytest.mark.parametrize("runs", [1, 3])
def test_killed_and_started_again(
    tree: Path, environment: dict[str, str], tmp_path: Path, runs: int
) -> None:
    ends = ("--good", "v0", "--bad", "main")
    words = ("bisect", "exact_cover", "--accel", "tcg", "--tree", tree, *ends)
    (tmp_path / "KILL_AT").write_text(str(runs))
    done = run(environment, *words)
    assert done.returncode == -signal.SIGKILL
    done = run(environment, *words)
    assert done.returncode == 0, done.stderr
    assert f"steps made: {runs}" in done.stderr
    assert done.stdout.count("from before") == runs
    assert f"first bad commit: {git(tree, 'rev-parse', 'main~2')} change 6" in done.stdout
    assert not list((tmp_path / "store" / "bisections").iterdir())
    assert not list((tmp_path / "store" / "tmp").glob("*/*"))
