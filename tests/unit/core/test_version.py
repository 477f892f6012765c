# SPDX-License-Identifier: GPL-2.0-or-later
"""What tells that two machines, or two nights, run the same harness."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.core import version


@pytest.mark.parametrize(
    "name",
    [
        *("harness/contract/judge.py", "harness/guest/init.sh", "kernel_configs/base.config"),
        *("qemu_profiles/machine.j2", "tests/scenarios/exact_cover.yaml"),
        *("tests/known_issues.yaml", "tests/qemu_quirks.yaml"),
    ],
)
def test_what_decides_what_comes_of_a_run_is_part_of_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "PROJECT", tmp_path)
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    versions = set()
    for text in ("one", "two"):
        path.write_text(text)
        versions.add(version.harness_version.__wrapped__())
    assert len(versions) == 2
