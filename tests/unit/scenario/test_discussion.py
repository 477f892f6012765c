# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import re

from harness.core.paths import SCENARIOS
from harness.scenario.scenario_files import scenario_names

DISCUSSION = SCENARIOS.parents[1] / "docs" / "discussion.md"


def test_each_part_of_the_discussion_names_scenarios_that_exist_and_none_is_left_out() -> None:
    rows = [line for line in DISCUSSION.read_text().splitlines() if line.startswith("| ")]
    named = {name for row in rows for name in re.findall(r"`([a-z0-9_]+)`", row.split("|")[2])}
    assert len(rows) > 15
    assert named == set(scenario_names())
