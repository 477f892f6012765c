# SPDX-License-Identifier: GPL-2.0-or-later
"""The report of a night as text."""

from __future__ import annotations

import shlex

from harness.matrix.plan import Plan
from harness.nightly.diff import Earlier, EntryKey, Row
from harness.nightly.history import Night
from harness.nightly.night import NightResult
from harness.nightly.outcome import Outcome
from harness.nightly.report import night_lines

NIGHT = Night(2, "/linux", "cxl/next", "", "1", "a" * 40, "a subject", 0.0)
PASSED = Earlier(1, "b" * 40, Outcome("PASS"))


def lines_of(row: Row, spec: str = "build:x") -> list[str]:
    return list(night_lines(NightResult(NIGHT, None, (row,), {}, spec, Plan((), ()), 1, ())))


def test_a_command_line_can_be_pasted() -> None:
    spec = f"build:/home/me/my nights/trees/x@{NIGHT.commit}"
    key = EntryKey("/home/me/my case.yaml", "branch", "debug", "/my patches/x", "per_range", "/q u")
    row = Row(key, Outcome("FAIL"), PASSED, PASSED)
    (command,) = [line for line in lines_of(row, spec) if line.startswith("    harness run")]
    words = ["harness", "run", key.scenario, "--kernel", spec, "--config", "debug"]
    words += ["--series", key.series, "--policy", "per_range", "--qemu", key.qemu]
    assert shlex.split(command) == words


def test_a_scenario_that_no_longer_applies_is_listed() -> None:
    key = EntryKey("no_region", "branch", "base", "", "per_range", "")
    now = Outcome("SKIPPED", reason="the kernel has no CXL_REGION")
    lines = lines_of(Row(key, now, PASSED, PASSED))
    at = lines.index("judged before, but no longer apply to this kernel:")
    assert lines[at + 1].startswith("  no_region on branch per_range: SKIPPED, was PASS in night 1")
    assert lines[at + 2] == "    the kernel has no CXL_REGION"
