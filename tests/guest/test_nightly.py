# SPDX-License-Identifier: GPL-2.0-or-later
"""`ci/nightly` with real builds, workers and guests: a branch gets a mutant; a night is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from avocado_fixtures import plugin_environment
from tree_fixtures import made_tree

from harness.core.deadline import Deadline
from harness.core.paths import PROJECT
from harness.core.progress import TerminalProgress
from harness.kernels.build.git import Repository
from harness.runs.prepare import Host

pytestmark = pytest.mark.guest

MUTANT = PROJECT / "patches/mutants/deferral/hmem-does-not-wait"
SECONDS = 3600
KILLS = 5


class Nights:
    """Nights of one branch with their own state."""

    def __init__(self, folder: Path, tree: Path) -> None:
        folder.mkdir()
        self.state = folder / "state"
        self._folder = folder
        self._argv = [sys.executable, str(PROJECT / "ci" / "nightly"), "--tree", str(tree)]
        self._argv += ["--branch", "cxl/next", "--matrix", str(folder / "m.yaml")]
        self._argv += ["--state", str(self.state)]
        (folder / "m.yaml").write_text(
            "kernels: [branch]\nscenarios: [exact_cover, no_region]\naccel: tcg\n"
        )

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._argv,
            cwd=self._folder,
            env=plugin_environment(self._folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def night(self, code: int) -> str:
        """Run a night without a kill, and return its output."""
        with self.start() as program:
            output, _ = program.communicate(timeout=SECONDS)
        assert program.returncode == code, output
        return output

    def rows(self) -> list[tuple[Any, ...]]:
        """The rows of the last night, without times and folders."""
        night = json.loads((self.state / "nights" / "latest" / "night.json").read_text())
        return [
            (night["night"], night["commit"]),
            *(
                (
                    *(row[key] for key in ("scenario", "verdict", "change", "before")),
                    row["failures"][:1],
                    row["first_bad"] and row["first_bad"]["commit"],
                )
                for row in night["rows"]
            ),
        ]


def qemus_of(folder: Path) -> list[str]:
    """QEMU processes that write into a folder."""
    done = subprocess.run(
        ["pgrep", "-af", f"qemu-system.*{folder}"], capture_output=True, text=True, check=False
    )
    return done.stdout.splitlines()


def test_a_night_that_is_killed_ends_as_one_that_is_not(harness_host: Host, tmp_path: Path) -> None:
    tree, commits = made_tree(harness_host.store, TerminalProgress(), MUTANT, 4, 3, "nights")
    repository = Repository(tree / ".git")
    whole, killed = Nights(tmp_path / "whole", tree), Nights(tmp_path / "killed", tree)

    repository.git("update-ref", "refs/heads/cxl/next", commits[1])
    assert "the first night of this branch" in whole.night(0)
    begin = time.monotonic()
    killed.night(0)
    seconds = time.monotonic() - begin
    repository.git("update-ref", "refs/heads/cxl/next", commits[4])
    output = whole.night(1)
    assert whole.rows() == [
        (2, commits[4]),
        (
            *("exact_cover", "FAIL", "regression"),
            {"night": 1, "commit": commits[1], "verdict": "PASS"},
            ["rule 2 sr0"],
            commits[3],
        ),
        (
            *("no_region", "PASS", "passes"),
            {"night": 1, "commit": commits[1], "verdict": "PASS"},
            [],
            None,
        ),
    ], output

    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    print(f"seed {seed}, a night without builds and bisection took {seconds:.1f} s")
    for _ in range(KILLS):
        with killed.start() as program:
            try:
                program.wait(chance.uniform(0, seconds / 2))
            except subprocess.TimeoutExpired:
                os.kill(program.pid, signal.SIGKILL)
            assert program.stdout is not None
            gone = Deadline(30, "the end of QEMU processes of the killed night")
            while left := qemus_of(killed.state):
                assert not gone.expired(), left
                time.sleep(0.05)
        assert program.returncode == -signal.SIGKILL, "the seed is printed above"
    killed.night(1)
    assert killed.rows() == whole.rows()
