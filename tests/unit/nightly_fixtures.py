# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of nights share: a tree whose branch moves, and `ci/nightly` as a program."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fake_sources import edit, git, git_fake, stub_tools

PROGRAM = Path(__file__).with_name("fake_nightly.py")
SECONDS = 300
MATRIX = "kernels: [branch]\nscenarios: [exact_cover, partial_region]\n"


class Room:
    """A tree whose branch nights look at, and their state."""

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
        """Add a commit for each text, which the kernel then has; the last one's name."""
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

    def latest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            (self.state / "nights" / "latest" / "night.json").read_text()
        )
        return found

    def unfinished(self) -> bool:
        """Whether the second night is still to be done."""
        return len(self.rows_of("select id from nights where ended is not null")) < 2

    def rows(self) -> list[tuple[Any, ...]]:
        """What all nights found out, without times and folders."""
        return [
            *self.rows_of(
                "select id, branch, commit_name, subject, ended is not null, given_up from nights"
            ),
            *self.rows_of(
                "select night, line, verdict, known, failures, reason from results"
                " order by night, line"
            ),
            *self.rows_of(
                "select night, line, commit_name, subject from bisections order by night, line"
            ),
        ]

    def rows_of(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.state / "history.sqlite")) as connection:
            return connection.execute(query).fetchall()


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def changes(night: dict[str, Any]) -> dict[str, str]:
    return {row["scenario"]: row["change"] for row in night["rows"]}
