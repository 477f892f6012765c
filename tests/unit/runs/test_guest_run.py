# SPDX-License-Identifier: GPL-2.0-or-later
"""Observing and judging a guest, with guests that show captures of real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_guest import QUICK, CapturedShell, booted, prepared_of
from machines import CXL, NOBODY

from harness.contract.expected import Expected
from harness.contract.result import RunResult, Verdict
from harness.core.errors import GuestLostError
from harness.guest.settle import Settling
from harness.machine.console_watch import CrashWatch
from harness.runs.evidence import Evidence, Timings
from harness.runs.guest_run import GuestRun, Judging, RunningGuest
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.known_issues import KnownIssues
from harness.scenario.module_load import Load

LEAKS = "CONFIG_A=y\nCONFIG_DEBUG_KMEMLEAK=y\n"
STALL = "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"
EXPECTED = Expected({"sr0": CXL}, False, {})


class Clocked(CrashWatch):
    """A console whose clock runs 16 times as fast as the host's."""

    clock_rate = 16.0


def running(
    folder: Path,
    shell: CapturedShell,
    *,
    settling: Settling = QUICK,
    watch: CrashWatch | None = None,
    **kernel: Any,
) -> RunningGuest:
    judging = Judging("per_range", folder, KnownIssues(issues=()), settling=settling)
    before = RunResult("exact_cover", KernelRequest("debian:7.2"), "per_range")
    prepared = prepared_of(folder / "k", **kernel)
    run = GuestRun(prepared, Load("in_order", ()), judging, before)
    return RunningGuest(run, booted(shell, watch), Evidence(folder), Timings())


def test_an_observation_is_recorded_and_judged(tmp_path: Path) -> None:
    shell = CapturedShell("exact_cover-7.2")
    guest = running(tmp_path, shell)
    seen = guest.observe({"sr0": CXL}, "step-01-load")
    assert (tmp_path / "step-01-load" / "iomem").read_text() == shell.sections["iomem"]
    assert not (tmp_path / "step-01-load" / "end").exists()
    assert guest.judge(seen, EXPECTED).verdict is Verdict.PASS
    assert guest.judge(seen, Expected({"sr0": NOBODY}, False, {})).verdict is Verdict.FAIL
    assert guest.judge(seen, replace(EXPECTED, no_region=True)).findings[0].rule == "3"
    assert guest.judging_inputs(seen)["step_marks"] == "secret"


@pytest.mark.parametrize(
    ("owners", "watched"), [({"sr0": CXL}, False), ({"sr0": NOBODY}, True), ({}, True)]
)
def test_only_memory_that_is_expected_online_makes_the_watching_short(
    tmp_path: Path, owners: dict[str, Any], watched: bool
) -> None:
    shell = CapturedShell("exact_cover-7.2")
    running(tmp_path, shell, settling=Settling(0.0, 0.2, 5.0)).observe(owners, "x")
    assert (shell.commands.index(_observations(shell)[0]) > 3) is watched


def _observations(shell: CapturedShell) -> list[str]:
    return [command for command in shell.commands if command.startswith("observe ")]


@pytest.mark.parametrize(
    ("config", "requested", "scans"), [(LEAKS, True, 1), (LEAKS, False, 0), (None, True, 0)]
)
def test_a_kernel_with_kmemleak_is_scanned_and_observed_again(
    tmp_path: Path, config: str | None, requested: bool, scans: int
) -> None:
    leak = "unreferenced object 0xffff888100000000 (size 64):\n"
    shell = CapturedShell("exact_cover-7.2", failing={"kmemleak": (0, leak)})
    running(tmp_path, shell, config=config).observe({"sr0": CXL}, "x", leaks=requested)
    assert len(_observations(shell)) == 1 + scans
    assert (tmp_path / "x" / "kmemleak").exists() == bool(scans)
    if scans:
        assert (tmp_path / "x" / "kmemleak").read_text() == leak


def _another_mark(shell: CapturedShell) -> None:
    shell.begin("modprobe kmem")


@pytest.mark.parametrize(("damage", "lost"), [(lambda _: None, False), (_another_mark, True)])
def test_a_log_that_may_lack_a_line_is_not_judged(
    tmp_path: Path, damage: Callable[[CapturedShell], None], lost: bool
) -> None:
    shell = CapturedShell("exact_cover-7.2")
    shell.begin("modprobe cxl_acpi")
    guest = running(tmp_path, shell)
    seen = guest.observe({"sr0": CXL}, "x")
    damage(shell)
    if lost:
        with pytest.raises(GuestLostError, match="kernel log cannot be trusted"):
            guest.judge(seen, EXPECTED)
    else:
        assert guest.judge(seen, EXPECTED).findings == ()


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        (STALL, True),
        ("INFO: task modprobe:9 blocked for more than 120 seconds.", True),
        ("kmem dax0.0: probe with driver kmem failed with error -16", False),
    ],
)
def test_slowness_by_a_fast_clock_is_no_finding(tmp_path: Path, text: str, refused: bool) -> None:
    shell = CapturedShell("exact_cover-7.2")
    shell.sections["dmesg"] += f"<6>[  998.0] {shell.marks.line('modprobe kmem')}\n"
    shell.sections["dmesg"] += f"<3>[  998.5] {text}\n"
    guest = running(tmp_path, shell, watch=Clocked())
    seen = guest.observe({"sr0": CXL}, "x")
    shell.begin("modprobe kmem")
    if refused:
        with pytest.raises(GuestLostError, match=r"16\.0 times as fast"):
            guest.judge(seen, EXPECTED)
    else:
        assert [one.rule for one in guest.judge(seen, EXPECTED).findings] == ["6"]


def test_the_timeout_scale_of_the_kernel_counts(tmp_path: Path) -> None:
    fast = running(tmp_path / "a", CapturedShell("exact_cover-7.2")).run.settling
    shell = CapturedShell("exact_cover-7.2")
    slow = running(tmp_path / "b", shell, config="CONFIG_A=y\nCONFIG_KASAN=y\n")
    assert slow.run.settling == fast.slower(10)
