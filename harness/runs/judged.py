# SPDX-License-Identifier: GPL-2.0-or-later
"""Judging one guest by what was observed in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.guest.observe import require_whole_log
from harness.model.boot_phases import in_phases
from harness.model.dmesg import is_about_time
from harness.model.expected import Expected
from harness.model.judge import Judgement, judge
from harness.model.observation import Observation
from harness.runs.booted_guest import BootedGuest
from harness.runs.prepare import Prepared


def judging_inputs(guest: BootedGuest, prepared: Prepared) -> dict[str, Any]:
    """What a judgement rests on beside the observation and the scenario, for the evidence."""
    return {
        "step_marks": guest.shell.marks.token,
        "boot_counts": prepared.boot_counts,
        "built_in": list(prepared.built_in_drivers()),
        "driver_options": prepared.bootable.driver_options,
        "expected_messages": [one.pattern for one in prepared.expected_lines()],
    }


def judge_guest(
    guest: BootedGuest,
    prepared: Prepared,
    observation: Observation,
    expected: Expected,
) -> Judgement:
    """Hold what was observed in a guest against the owners that it must have by now.

    Args:
        guest: the guest, which knows how its steps are marked in the kernel's log.
        prepared: its scenario.
        observation: what was observed.
        expected: what must be so by now.

    Raises:
        GuestLostError: a line that counts may be missing from the guest's log, or the log says that
            something took too long by a clock that runs too fast.
    """
    marks = guest.shell.marks
    require_whole_log(observation.dmesg, marks, from_boot=prepared.boot_counts)
    judgement = judge(
        replace(observation, dmesg=in_phases(observation.dmesg, marks)),
        prepared.state,
        expected.owners,
        quirks=prepared.expected_lines(),
        boot_counts=prepared.boot_counts,
        no_region=expected.no_region,
        stated_at=expected.stated_at,
    )
    if any(is_about_time(one.text) for one in judgement.findings):
        guest.watch.check_clock()
    return judgement
