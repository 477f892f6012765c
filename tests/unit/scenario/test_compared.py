# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/compared.md, which `harness compare` is the source of, is about today's scenarios."""

from __future__ import annotations

import fnmatch
import re

from harness.core.paths import SCENARIOS
from harness.scenario.scenario_files import load_case, scenario_names

COMPARED = (SCENARIOS.parents[1] / "docs" / "compared.md").read_text()
ROWS = [line for line in COMPARED.splitlines() if line.startswith("| `")]

LEFT_OUT = [
    name
    for line in COMPARED.splitlines()
    if line.startswith("Left out: ")
    for name in re.findall(r"`(\w+)`", line)
]
SERVED = [name for name in scenario_names() if not load_case(name).scenario.kernel.configs]


def test_every_scenario_that_a_prebuilt_kernel_serves_is_in_one_row_or_left_out() -> None:
    named: list[str] = []
    for row in ROWS:
        for pattern, count in re.findall(r"`([a-z0-9_*]+)`(?: \((\d+)\))?", row.split("|")[1]):
            found = fnmatch.filter(scenario_names(), pattern)
            assert len(found) == int(count or 1), f"{pattern} stands for {found}"
            named += found
    assert sorted([*named, *LEFT_OUT]) == SERVED


def test_the_counts_are_those_of_the_rows_and_of_the_readme() -> None:
    counted = re.search(
        r"(\d+) the same, (\d+) regressions?, (\d+) fixes, (\d+) other failures", COMPARED
    )
    said = re.search(r"for (\d+) scenarios", " ".join(COMPARED.split()))
    assert counted is not None and said is not None
    assert sum(map(int, counted.groups())) == int(said[1]) == len(SERVED) - len(LEFT_OUT)
    readme = " ".join((SCENARIOS.parents[1] / "README.md").read_text().split())
    _, regressions, fixes, others = counted.groups()
    words = {"1": "one regression", "0": "no regression"}.get(regressions, f"{regressions} regres")
    assert f"reports {fixes} fixes, {words}, and {others} scenarios that fail differently" in readme
