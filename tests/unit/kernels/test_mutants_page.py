# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/mutants.md has a row for each mutant of patches/mutants, and the score that they make."""

from __future__ import annotations

import re

from harness.core.paths import PROJECT
from harness.kernels.build.series import GUIDE, SeriesDescription
from harness.scenario.scenario_files import scenario_names
from harness.scenario.yaml_document import read_document

PAGE = (PROJECT / "docs" / "mutants.md").read_text()
ROW = re.compile(r"^\| `([a-z0-9-]+)` \|.*\| (?:`(\w+)` \| (\w+)|survives \|) \|$", re.M)


def test_each_mutant_is_in_a_row_with_the_scenario_and_the_rule_that_it_names() -> None:
    named = {}
    for path in (PROJECT / "patches" / "mutants").glob("*/*/series.yaml"):
        mutant = read_document(path.read_text(), str(path), SeriesDescription, GUIDE).value.mutant
        assert mutant is None or mutant.scenario in scenario_names(), path
        named[path.parent.name] = (mutant.scenario, mutant.rule) if mutant else ("", "")
    assert {name: (scenario, rule) for name, scenario, rule in ROW.findall(PAGE)} == named
    killed = sum(1 for scenario, _ in named.values() if scenario)
    assert (
        f"Score: {killed} of {len(named)} mutants are killed, {len(named) - killed} survive" in PAGE
    )
