# SPDX-License-Identifier: GPL-2.0-or-later
"""The evidence of a real run is packed, judged again, replayed and reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.guest, pytest.mark.usefixtures("harness_host")]

SECONDS = 600.0  # only to detect a hang


def harness(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("harness")
    if not program.exists():
        pytest.skip("the harness is not installed with this Python")
    return subprocess.run(
        [str(program), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=folder,
        env=os.environ | {"HARNESS_EVIDENCE": str(folder / "evidence")},
    )


def test_a_run_is_replayed_from_its_bundle_alone(options: tuple[str, ...], tmp_path: Path) -> None:
    done = harness("run", "partial_region", "--json", "r.json", *options, folder=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    (result,) = json.loads((tmp_path / "r.json").read_text())
    evidence = Path(result["evidence"])
    packed = harness("bundle", evidence.name, "-o", "b.zip", folder=tmp_path)
    assert packed.returncode == 0, packed.stderr
    evidence.rename(tmp_path / "elsewhere")
    for recorded in ("b.zip", "elsewhere"):
        judged = harness("judge", recorded, folder=tmp_path)
        assert judged.returncode == 1, judged.stdout + judged.stderr
        assert judged.stdout.endswith("the same as recorded\n")
    again = harness("replay", "b.zip", *options, folder=tmp_path)
    assert again.returncode == 1, again.stdout + again.stderr
    assert again.stdout.startswith("recorded: FAIL partial_region")
    assert again.stdout.endswith("the same as recorded\n")
    assert "note: " not in again.stdout, "the same kernel, QEMU, layout and firmware"
    mail = harness("report", "--mail", "r.json", folder=tmp_path)
    assert "No Tested-by: 1 of 1 run did not pass" in mail.stdout
