# SPDX-License-Identifier: GPL-2.0-or-later
"""Each mutant of patches/ is seen by the scenario that it names, with the finding that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from harness.model.kernel_request import KernelRequest
from harness.model.known_issues import KnownIssues
from harness.model.verdict import RULES, Verdict
from harness.paths import PROJECT
from harness.pytest_plugin import report_text
from harness.runs.catalogue import load_case
from harness.runs.prepare import Host
from harness.runs.run_guest import Judging
from harness.runs.run_scenario import run_scenario

MUTANTS = sorted((PROJECT / "patches").glob("mutant-*"))


def test_there_are_mutants() -> None:
    assert len(MUTANTS) >= 5


@pytest.mark.guest
@pytest.mark.parametrize("folder", MUTANTS, ids=lambda folder: folder.name)
def test_a_mutant_is_seen(
    folder: Path, harness_host: Host, known_issues: KnownIssues, evidence_folder: Path
) -> None:
    series = yaml.safe_load((folder / "series.yaml").read_text())
    seen = series["mutant"]
    assert seen["rule"] in RULES
    kernel = KernelRequest(f"build:debian:{series['base']}", series=folder)
    result = run_scenario(
        harness_host,
        load_case(seen["scenario"]),
        kernel,
        Judging(series["policy"], evidence_folder, known_issues),
    )
    assert result.verdict is Verdict.FAIL, report_text(result)
    assert not result.known_issue, report_text(result)
    found = [one for one in result.findings if one.rule == seen["rule"]]
    assert any(re.search(seen["finding"], one.text) for one in found), report_text(result)
