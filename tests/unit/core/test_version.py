# SPDX-License-Identifier: GPL-2.0-or-later
"""The version tells whether two hosts, or two nights, run the same harness."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.core import version


def test_files_that_affect_a_run_are_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "PROJECT", tmp_path)
    versions = set()
    names = (
        *("harness/contract/judge.py", "harness/guest/init.sh", "kernel_configs/base.config"),
        *("qemu_profiles/machine.j2", "tests/scenarios/exact_cover.yaml"),
        *("tests/known_issues.yaml", "tests/qemu_quirks.yaml"),
    )
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for text in ("one", "two"):
            path.write_text(text)
            versions.add(version.harness_version.__wrapped__())
    assert len(versions) == 2 * len(names)
