# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that break in a step of the scenario, and guests that only look as if they did."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.contract.result import RunResult, Verdict
from harness.core.deadline import Deadline
from harness.core.paths import PROJECT, SCENARIOS
from harness.guest import modules
from harness.plugins.pytest_plugin import asked_kernel, report_text
from harness.runs.boot import BootedGuest
from harness.runs.guest_run import Judging
from harness.runs.prepare import Host
from harness.runs.session import Session
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.known_issues import KnownIssues
from harness.scenario.scenario_files import load_case

pytestmark = pytest.mark.guest

Runner = Callable[[Callable[[BootedGuest], None]], RunResult]


@pytest.fixture
def run_with(
    harness_host: Host,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Runner:
    """Runs exact_cover with a step of the test's own instead of the scenario's."""

    def run(step: Callable[[BootedGuest], None]) -> RunResult:
        monkeypatch.setattr(
            "harness.runs.attempt._run_steps", lambda running, _result: step(running.guest)
        )
        return run_case(harness_host, "exact_cover", asked_kernel(request.config), tmp_path)

    return run


def run_case(host: Host, scenario: str, kernel: KernelRequest, folder: Path) -> RunResult:
    judging = Judging("per_range", folder, KnownIssues(issues=()))
    with Session(host, judging) as session:
        return session.run(load_case(scenario), kernel)


def test_a_guest_that_resets_itself_without_a_word(run_with: Runner) -> None:
    def reset(guest: BootedGuest) -> None:
        mark = guest.shell.begin("sudden end")
        guest.shell.run(f"{mark}; echo b > /proc/sysrq-trigger", Deadline(60, "the end"))

    result = run_with(reset)
    assert result.verdict is Verdict.FAIL, report_text(result)
    (finding,) = result.findings
    assert "the guest reset its machine" in finding.text
    assert finding.phase == "sudden end"
    assert finding.dmesg
    assert not any("harness:" in line for line in finding.dmesg)


def test_a_soft_lockup_is_not_waited_for_until_the_deadline_of_the_step(run_with: Runner) -> None:
    """As the kernel's watchdog says it; the shell itself goes on, so that only the line tells."""
    said = "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [modprobe:123]"
    deadline = Deadline(120, "a lockup to end")
    left = []

    def lock_up(guest: BootedGuest) -> None:
        mark = guest.shell.begin("lockup")
        try:
            guest.shell.run(f"{mark}; echo '<0>{said}' > /dev/kmsg; sleep 600", deadline)
        finally:
            left.append(deadline.remaining())

    result = run_with(lock_up)
    assert result.verdict is Verdict.FAIL, report_text(result)
    (finding,) = result.findings
    assert (finding.rule, finding.phase) == ("6", "lockup")
    assert finding.text == f"a stall: {said} (during lockup)"
    assert any(said in line for line in finding.dmesg)
    assert left[0] > deadline.seconds / 2


def test_a_command_that_only_takes_long_is_no_hang_of_the_kernel(run_with: Runner) -> None:
    def linger(guest: BootedGuest) -> None:
        guest.shell.run(f"{guest.shell.begin('nap')}; sleep 300", Deadline(2, "a nap to end"))

    result = run_with(linger)
    assert result.verdict is Verdict.INCONCLUSIVE, report_text(result)
    assert result.reason == "timed out after 2 s waiting for a nap to end"
    assert "RIP" in Path(result.evidence, "cpus.txt").read_text()
    assert not Path(result.evidence, "stuck_tasks.txt").exists()


def test_a_qemu_that_is_stopped_is_no_hang_of_the_kernel(run_with: Runner) -> None:
    def stop(guest: BootedGuest) -> None:
        os.kill(guest.machine.pid, signal.SIGSTOP)
        guest.shell.run("true", Deadline(1, "an answer"))

    result = run_with(stop)
    assert result.verdict is Verdict.INCONCLUSIVE, report_text(result)
    assert "QEMU did not answer the QMP command query-status" in result.reason


def test_a_guest_that_qemu_has_paused_is_no_hang_of_the_kernel(run_with: Runner) -> None:
    def pause(guest: BootedGuest) -> None:
        guest.machine.command("stop")
        guest.shell.run("true", Deadline(1, "an answer"))

    result = run_with(pause)
    assert result.verdict is Verdict.INCONCLUSIVE, report_text(result)
    assert "QEMU has stopped the guest (paused)" in result.reason


def mutant(name: str) -> KernelRequest:
    return KernelRequest("build:debian:7.2", series=PROJECT / "patches/mutants" / name)


def test_an_oops_is_not_waited_for_until_the_deadline_of_the_step(
    harness_host: Host, tmp_path: Path
) -> None:
    """The module that waits for the worker that oopsed never finishes loading."""
    result = run_case(harness_host, "exact_cover", mutant("crashes/oops-in-hmem"), tmp_path)
    assert result.verdict is Verdict.FAIL, report_text(result)
    (finding,) = result.findings
    assert (finding.rule, finding.phase) == ("6", "modprobe dax_hmem")
    assert any("oops_work+0x" in line for line in finding.dmesg)
    assert any("---[ end trace" in line for line in finding.dmesg)
    assert result.timings["load"] < modules._LOAD_SECONDS
    (note,) = result.notes
    assert "not decoded: it was built without debug information" in note


def test_the_stack_of_a_module_that_hangs_is_in_the_finding(
    harness_host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules, "_LOAD_SECONDS", 10.0)
    result = run_case(harness_host, "exact_cover", mutant("crashes/hang-in-hmem"), tmp_path)
    assert result.verdict is Verdict.FAIL, report_text(result)
    (finding,) = result.findings
    assert (finding.rule, finding.phase) == ("step", "modprobe dax_hmem")
    assert any("dax_hmem_platform_probe+0x" in line for line in finding.dmesg)
    assert json.loads(Path(result.evidence, "verdict.json").read_text())["verdict"] == "FAIL"


def test_a_guest_that_says_nothing_tells_an_nmi_where_it_is(
    harness_host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules, "_LOAD_SECONDS", 10.0)
    result = run_case(harness_host, "exact_cover", mutant("crashes/dead-in-hmem"), tmp_path)
    assert result.verdict is Verdict.FAIL, report_text(result)
    (finding,) = result.findings
    assert finding.phase == "modprobe dax_hmem"
    assert any("hmem_spin+0x" in line for line in finding.dmesg)
    assert "RIP" in Path(result.evidence, "cpus.txt").read_text()


def test_a_warning_that_the_user_has_made_fatal(harness_host: Host, tmp_path: Path) -> None:
    text = (SCENARIOS / "no_soft_reserved.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("guest:\n", "kernel: {cmdline: [panic_on_warn=1]}\nguest:\n"))
    kernel = mutant("flush/flush-uninitialised-work")
    result = run_case(harness_host, str(path), kernel, tmp_path)
    assert result.verdict is Verdict.FAIL, report_text(result)
    (finding,) = result.findings
    assert finding.text.startswith("the guest's kernel panicked: kernel: panic_on_warn set")
    assert any("WARNING: " in line and "__flush_work" in line for line in finding.dmesg)


def test_a_trace_with_files_and_lines(harness_host: Host, tmp_path: Path) -> None:
    kernel = KernelRequest(
        "build:debian:7.2",
        configs=("debug_info",),
        series=PROJECT / "patches/mutants/crashes/oops-in-hmem",
    )
    result = run_case(harness_host, "exact_cover", kernel, tmp_path)
    assert result.verdict is Verdict.FAIL, report_text(result)
    (finding,) = result.findings
    # Of a module, the kernel's script asks addr2line without naming the section, and so finds no
    # line for what stands at its very beginning, as the function that oopses here does.
    assert any("oops_work (" in line and "dax_hmem" in line for line in finding.decoded)
    assert any("kernel/workqueue.c:" in line for line in finding.decoded)
    assert "kernel/workqueue.c:" in Path(result.evidence, "decoded.txt").read_text()
