# SPDX-License-Identifier: GPL-2.0-or-later
"""Concurrent fake runs, builds and prunes on one store, some killed; `ci/crowd` has real ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.core.paths import PROJECT

CROWD = PROJECT / "ci" / "crowd"


def crowd(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    argv = [sys.executable, str(CROWD), "--fake", "--grace", "1", "--kills", "0.4", *words]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("seed", ["1"])
def test_a_crowd_of_fake_runs(tmp_path: Path, seed: str) -> None:
    done = crowd(tmp_path, "--seconds", "3", "--crowd", "16", "--seed", seed)
    assert done.returncode == 0, done.stdout + done.stderr
    counted = {what: int(count) for count, what in re.findall(r"(\d+) (.+)", done.stdout)}
    assert counted["runs: PASS"] >= 4
    assert sum(count for what, count in counted.items() if what.startswith("runs: killed")) >= 1
    assert counted["builds: exit 0"] >= 1
    assert counted["prunes: exit 0"] >= 1
    assert counted["entries looked at"] >= 2
    assert "0 problems" in done.stdout
    assert list(tmp_path.iterdir()) == []
