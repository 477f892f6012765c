# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from machines import observed

from harness.errors import GuestLostError
from harness.machine.crash_watch import CrashWatch
from harness.model.boot_phases import StepMarks
from harness.model.judge import Judgement
from harness.model.load import Load
from harness.model.verdict import Finding, Verdict
from harness.runs import judged
from harness.runs.run_guest import require_loaded

SEEN = replace(observed("100-1ff : System RAM"), modules=("kmem", "dax_hmem"))


def test_a_module_that_was_loaded_and_is_not_there_is_noticed() -> None:
    files = ("kmem", "dax_hmem", "cxl_acpi")
    require_loaded(Load("in_order", ("kmem", "dax-hmem")), files, SEEN)
    with pytest.raises(GuestLostError, match="/proc/modules lacks cxl_acpi"):
        require_loaded(Load("in_order", ("kmem", "cxl_acpi")), files, SEEN)


def test_a_driver_that_is_built_in_is_no_module() -> None:
    require_loaded(Load("in_order", ("kmem", "cxl_acpi")), ("kmem",), SEEN)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("a stall: rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", True),
        ("a hung task: INFO: task modprobe:9 blocked for more than 120 seconds.", True),
        ("an error: kmem dax0.0: probe with driver kmem failed with error -16", False),
    ],
)
def test_what_took_too_long_by_a_fast_clock_is_no_finding(
    monkeypatch: pytest.MonkeyPatch, text: str, refused: bool
) -> None:
    found = Judgement(Verdict.FAIL, (), (Finding("6", text),))
    monkeypatch.setattr(judged, "judge", lambda *_words, **_named: found)
    monkeypatch.setattr(judged, "require_whole_log", lambda *_words, **_named: None)
    watch = CrashWatch()
    monkeypatch.setattr(CrashWatch, "clock_rate", 16.0)
    guest = SimpleNamespace(watch=watch, shell=SimpleNamespace(marks=StepMarks("0")))
    prepared = SimpleNamespace(boot_counts=False, state=None, expected_lines=lambda: ())

    def look() -> Judgement:
        return judged.judge_guest(cast(Any, guest), cast(Any, prepared), SEEN, {})

    if refused:
        with pytest.raises(GuestLostError, match=r"16\.0 times as fast"):
            look()
    else:
        assert look() is found
