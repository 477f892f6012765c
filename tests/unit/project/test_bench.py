# SPDX-License-Identifier: GPL-2.0-or-later
"""ci/bench, with a fake harness that only prints outcomes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.core.paths import PROJECT

HARNESS = """\
#!{python}
import json, sys
words = sys.argv[1:]
count = {folder!r} + "/count"
with open(count, "a") as file:
    file.write(".")
runs = len(open(count).read())
start = words[words.index("--start") + 1] if "--start" in words else "cold"
verdict = "FAIL" if ({odd!r}, runs) == (start, {at}) else "PASS"
attempts = [
    {{"load": load, "verdict": verdict, "outcome": "sr0 dax_cxl", "start": start}}
    for load in ("kmem, cxl_acpi", "cxl_acpi, kmem")
]
with open(words[words.index("--json") + 1], "w") as file:
    json.dump([{{"attempts": attempts}}], file)
sys.exit(0)
"""


@pytest.mark.parametrize(
    ("odd", "at", "said", "code"),
    [("none", 0, "the same", 0), ("warm", 2, "DIFFERENT", 1), ("cold", 5, "DIFFERENT", 1)],
)
def test_orders_ends_with_1_when_restored_guests_end_otherwise(
    tmp_path: Path, odd: str, at: int, said: str, code: int
) -> None:
    """The first run fills the store; then warm and cold runs alternate."""
    program = tmp_path / "harness"
    program.write_text(HARNESS.format(python=sys.executable, folder=str(tmp_path), odd=odd, at=at))
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, str(PROJECT / "ci" / "bench"), "orders", "--pairs", "2"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(PROJECT)},
    )
    assert f"2 orders, {said} verdicts and owners" in done.stdout, done.stderr
    assert done.returncode == code
