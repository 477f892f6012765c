# SPDX-License-Identifier: GPL-2.0-or-later
"""A night as text for a person."""

from __future__ import annotations

import shlex

from harness.matrix.plan import Plan
from harness.nightly.diff import Earlier, Line, Row, Seen
from harness.nightly.history import Night
from harness.nightly.night import NightResult
from harness.nightly.report import night_lines

NIGHT = Night(2, "/linux", "cxl/next", "", "1", "a" * 40, "a subject", 0.0)


def test_a_command_line_can_be_pasted() -> None:
    spec = f"build:/home/me/my nights/trees/x@{NIGHT.commit}"
    line = Line("/home/me/my case.yaml", "branch", "debug", "/my patches/x", "per_range", "")
    row = Row(line, Seen("FAIL"), Earlier(1, "b" * 40, Seen("PASS")))
    result = NightResult(NIGHT, None, (row,), {}, spec, Plan((), ()), 1, ())
    (command,) = [one for one in night_lines(result) if one.startswith("    harness run")]
    words = ["harness", "run", line.scenario, "--kernel", spec, "--config", "debug"]
    assert shlex.split(command) == [*words, "--series", line.series, "--policy", "per_range"]


def test_what_the_branch_takes_away_from_a_scenario_is_told() -> None:
    line = Line("no_region", "branch", "base", "", "per_range", "")
    now = Seen("SKIPPED", reason="the kernel has no CXL_REGION")
    row = Row(line, now, *[Earlier(1, "b" * 40, Seen("PASS"))] * 2)
    lines = night_lines(NightResult(NIGHT, None, (row,), {}, "build:x", Plan((), ()), 1, ()))
    at = lines.index("were judged before, and do not concern this kernel any more:")
    assert lines[at + 1].startswith("  no_region on branch per_range: SKIPPED, was PASS in night 1")
    assert lines[at + 2] == "    the kernel has no CXL_REGION"
