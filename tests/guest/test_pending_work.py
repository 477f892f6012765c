# SPDX-License-Identifier: GPL-2.0-or-later
"""The step while_pending holds deferred work up, whichever worker is to run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.contract.result import RunResult, Verdict
from harness.core.paths import PROJECT
from harness.plugins.pytest_plugin import report_text
from harness.runs.guest_run import Judging
from harness.runs.prepare import Host
from harness.runs.session import Session
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.known_issues import KnownIssues
from harness.scenario.scenario_files import load_case

PER_CPU = PROJECT / "patches" / "series-hmem-work-per-cpu"


@pytest.mark.guest
@pytest.mark.parametrize("series", [None, PER_CPU], ids=["unbound", "per-cpu"])
def test_work_is_held_up_on_any_workqueue(
    harness_host: Host, known_issues: KnownIssues, tmp_path: Path, series: Path | None
) -> None:
    kernel = KernelRequest("build:debian:7.2" if series else "debian:7.2", series=series)
    judging = Judging("per_range", tmp_path, known_issues)
    with Session(harness_host, judging) as session:
        (result,) = session.run_all([load_case("rebind_pending_hmem_platform")], kernel)
    assert isinstance(result, RunResult)
    assert result.verdict is Verdict.PASS, report_text(result)
