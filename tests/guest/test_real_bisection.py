# SPDX-License-Identifier: GPL-2.0-or-later
"""`harness bisect` with real builds and guests finds a mutant."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tree_fixtures import made_tree

from harness.core.paths import PROJECT
from harness.core.progress import TerminalProgress
from harness.runs.prepare import Host

pytestmark = pytest.mark.guest

MUTANT = PROJECT / "patches/mutants/deferral/hmem-does-not-wait"
SECONDS = 3600
# Does not conflict with the mutant.
COMMENT = """\
From: A <a@localhost>
Subject: [PATCH] {file}: comment

--- a/{file}
+++ b/{file}
@@ -1,2 +1,3 @@
 // SPDX-License-Identifier: GPL-2.0
+/* a comment */
 /* Copyright(c) {years} Intel Corporation. All rights reserved. */
"""


def bisect(*words: object) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("harness")
    if not program.exists():
        pytest.skip("the harness is not installed next to this Python")
    argv = [str(program), "bisect", "exact_cover", *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_mutant_among_commits(
    harness_host: Host, options: tuple[str, ...], evidence_folder: Path, tmp_path: Path
) -> None:
    tree, commits = made_tree(harness_host.store, TerminalProgress(), MUTANT, 5, 3, "test")
    before = (tree / ".git/HEAD").read_bytes(), sorted(tree.rglob("*"))
    result = tmp_path / "steps.json"
    ends = ("--tree", tree, "--good", commits[0], "--bad", commits[-1], "--json", result)
    bisect(*ends, "--evidence", evidence_folder, *options)
    found = json.loads(result.read_text())
    assert found["first"]["commit"] == commits[3]
    assert found["first"]["subject"] == f"mutant: {MUTANT.name}"
    assert 2 < len(found["steps"]) <= 5
    changed = next(step for step in found["steps"] if step["commit"] == commits[3])
    assert changed["scenarios"][0]["failures"][0] == "rule 2 sr0"
    assert ((tree / ".git/HEAD").read_bytes(), sorted(tree.rglob("*"))) == before


def test_a_mutant_in_a_series(
    options: tuple[str, ...], evidence_folder: Path, tmp_path: Path
) -> None:
    series = tmp_path / "series"
    series.mkdir()
    (series / "0001-comment.patch").write_text(
        COMMENT.format(file="drivers/dax/kmem.c", years="2016-2019")
    )
    (mutant,) = MUTANT.glob("*.patch")
    (series / "0002-mutant.patch").write_bytes(mutant.read_bytes())
    (series / "0003-comment.patch").write_text(
        COMMENT.format(file="drivers/dax/bus.c", years="2017-2018")
    )
    done = bisect(
        *("--tree", "debian:7.2", "--series", series, "--evidence", evidence_folder, *options)
    )
    assert "first bad commit: patch 2 of 3 dax/hmem: Do not wait for CXL" in done.stdout
