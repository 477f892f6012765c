# SPDX-License-Identifier: GPL-2.0-or-later
"""Drawn layouts on real kernels: they can be judged, and a bug that is brought back is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.contract.result import Verdict
from harness.core.paths import PROJECT
from harness.fuzz.campaign import Campaign, ForgetfulHost, Tally
from harness.plugins.pytest_plugin import asked_kernel, report_text
from harness.runs.guest_run import Judging
from harness.runs.prepare import Host
from harness.runs.session import Session
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.known_issues import KnownIssues
from harness.scenario.scenario_files import load_case

pytestmark = pytest.mark.guest


def fuzz(
    host: Host, kernel: KernelRequest, known: KnownIssues, folder: Path, seed: int, minutes: float
) -> Tally:
    forgetful = ForgetfulHost(host.qemu, host.store, host.progress, host.accel)
    with Session(forgetful, Judging("per_range", folder / "runs", known)) as session:
        campaign = Campaign(
            session, kernel, "per_range", folder / "found", seed, shrink_seconds=0.0
        )
        return campaign.run(60 * minutes)


def test_drawn_layouts_can_be_judged(
    harness_host: Host, known_issues: KnownIssues, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    kernel = asked_kernel(request.config)
    tally = fuzz(harness_host, kernel, known_issues, tmp_path, seed=11, minutes=0.2)
    assert tally.layouts >= 3
    assert (tally.inconclusive, tally.refused) == ([], {})


def test_a_mutant_is_found_and_its_file_shows_it_again(
    harness_host: Host, known_issues: KnownIssues, tmp_path: Path
) -> None:
    mutant = PROJECT / "patches/mutants/deferral/hmem-does-not-wait"
    kernel = KernelRequest("build:debian:7.2", series=mutant)
    # The first layout of every seed is the simplest: a region covers a range exactly.
    tally = fuzz(harness_host, kernel, known_issues, tmp_path, seed=0, minutes=0.0)
    failure = next(one for one in tally.new if any("rule 2" in sign for sign in one.signature))
    with Session(harness_host, Judging("per_range", tmp_path / "again", known_issues)) as session:
        again = session.run(load_case(str(failure.file)), kernel)
    assert again.verdict is Verdict.FAIL, report_text(again)
    assert "2" in {one.rule for one in again.findings}
