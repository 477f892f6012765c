# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures for nights: a tree with a branch, and `ci/nightly` as a program."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_sources import edit, git, git_fake, stub_tools

PROGRAM = Path(__file__).with_name("fake_nightly.py")
SECONDS = 300
MATRIX = "kernels: [branch]\nscenarios: [exact_cover, partial_region]\n"


class Workspace:
    """A tree with a branch, and the state of its nights."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tree = git_fake(root / "linux")
        git(self.tree, "branch", "cxl/next")
        git(self.tree, "checkout", "-q", "cxl/next")
        self.state = root / "state"
        self.matrix = root / "matrix.yaml"
        self.matrix.write_text(MATRIX)
        tools = stub_tools(root / "tools" / "bin")
        self.environment = os.environ | {
            "HARNESS_STORE": str(root / "store"),
            "HARNESS_EVIDENCE": str(root / "evidence"),
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": f"{PROGRAM.parents[2]}:{PROGRAM.parent}",
        }

    def commit(self, *texts: str) -> str:
        """Add a commit for each text, which the kernel then contains; return the last."""
        for text in texts:
            edit(self.tree, "/* Two. */", f"/* Two. */\n/* {text} */")
            git(self.tree, "commit", "-q", "-a", "-m", f"change: {text}")
        return git(self.tree, "rev-parse", "HEAD")

    def argv(self, *words: object, tree: object = None) -> list[str]:
        fixed = ["--tree", tree or self.tree, "--matrix", self.matrix, "--state", self.state]
        return [sys.executable, str(PROGRAM), *map(str, fixed), *map(str, words)]

    def night(self, *words: object, tree: object = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*words, tree=tree),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def expect_night(
        self, code: int, *words: object, tree: object = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a night that ends with this exit code."""
        done = self.night(*words, tree=tree)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def passed(self, *texts: str) -> str:
        """Add commits, run a night that passes, and return the last commit."""
        commit = self.commit(*texts)
        self.expect_night(0)
        return commit

    def killed(self, runs: int) -> None:
        """Run a night that is killed after a number of runs."""
        (self.root / "KILL_AT").write_text(str(runs))
        self.expect_night(-signal.SIGKILL)

    def latest(self) -> dict[str, Any]:
        path = self.state / "nights" / "latest" / "night.json"
        night: dict[str, Any] = json.loads(path.read_text())
        return night

    def rows(self) -> list[tuple[Any, ...]]:
        """The history of all nights, without times and folders."""
        queries = (
            "id, branch, commit_name, subject, ended is not null, given_up from nights",
            "night, entry, verdict, known, failures, reason from results order by night, entry",
            "night, entry, commit_name, subject from bisections order by night, entry",
        )
        return [row for query in queries for row in self.select(query)]

    def select(self, query: str) -> list[tuple[Any, ...]]:
        with self.history() as connection:
            return connection.execute(f"select {query}").fetchall()

    @contextmanager
    def history(self) -> Iterator[sqlite3.Connection]:
        """The database, for the length of the block; changes are committed."""
        with closing(sqlite3.connect(self.state / "history.sqlite")) as connection, connection:
            yield connection


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def changes(night: dict[str, Any]) -> dict[str, str]:
    return {row["scenario"]: row["change"] for row in night["rows"]}
