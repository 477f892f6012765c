# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines that are lost on the way, a harness that is killed, and two at once."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
from bench_fixtures import EARLY, LATE, Bench, assert_inconclusive, await_true, finished

from harness.contract.result import Verdict
from harness.core.deadline import Deadline
from harness.core.errors import GuestCrashedError
from harness.guest import modules
from harness.guest.ssh import GuestShell
from harness.plugins.pytest_plugin import asked_kernel
from harness.runs.guest_run import Judging
from harness.runs.prepare import Host
from harness.runs.session import Session
from harness.scenario.known_issues import KnownIssues
from harness.scenario.scenario_files import load_case

pytestmark = pytest.mark.guest


def test_a_kernel_that_panics_in_a_step_of_the_scenario(
    harness_host: Host,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds: list[float] = []

    def crash(shell: GuestShell, *_arguments: object) -> None:
        begin = time.monotonic()
        try:
            shell.run("echo c > /proc/sysrq-trigger", Deadline(120, "the guest to die"))
        except GuestCrashedError:
            seconds.append(time.monotonic() - begin)
            raise

    monkeypatch.setattr(modules, "load_module", crash)
    judging = Judging("per_range", tmp_path, KnownIssues(issues=()))
    with Session(harness_host, judging) as session:
        result = session.run(load_case("exact_cover"), asked_kernel(request.config))
    assert result.verdict is Verdict.FAIL
    assert len(seconds) == 1
    assert seconds[0] < 30, "the dead guest was waited for"
    (finding,) = result.findings
    assert finding.rule == "6"
    assert "the guest's kernel panicked: sysrq triggered crash" in finding.text
    trace = "\n".join(finding.dmesg)
    serial = Path(result.evidence, "serial.log").read_text(errors="replace")
    for text in (trace, serial):
        assert "Kernel panic - not syncing: sysrq triggered crash" in text
        assert "Call Trace:" in text
        assert "sysrq_handle_crash" in text
        assert "</TASK>" in text, "the trace has its end"
    assert json.loads(Path(result.evidence, "verdict.json").read_text())["verdict"] == "FAIL"


@pytest.mark.parametrize("moment", [EARLY, LATE])
def test_a_qemu_that_is_killed(bench: Bench, moment: str) -> None:
    with bench.started("run", "exact_cover") as child:
        os.kill(bench.await_console(moment), signal.SIGKILL)
        assert_inconclusive(finished(child), "QEMU ended killed by signal 9")
    (folder,) = bench.evidence.iterdir()
    assert json.loads((folder / "verdict.json").read_text())["verdict"] == "INCONCLUSIVE"
    assert bench.leftovers() == []


@pytest.mark.parametrize(
    ("number", "moment", "status"),
    [
        (signal.SIGKILL, EARLY, -signal.SIGKILL),
        (signal.SIGTERM, LATE, 128 + signal.SIGTERM),
        (signal.SIGINT, EARLY, 128 + signal.SIGINT),
    ],
)
def test_a_harness_that_is_killed_leaves_no_machine(
    bench: Bench, number: signal.Signals, moment: str, status: int
) -> None:
    with bench.started("run", "exact_cover") as child:
        bench.await_console(moment)
        child.send_signal(number)
        done = finished(child)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert done.stdout == "", "no verdict"
    await_true(lambda: bench.machines() == [], "an end of QEMU", seconds=10)
    assert bench.leftovers() == []
    (folder,) = bench.evidence.iterdir()
    assert moment in (folder / "serial.log").read_text(errors="replace")
    assert shlex.split((folder / "qemu.argv").read_text().replace("\\\n", " "))[0].startswith("/")
    for name in ("kernel.json", "firmware.json"):
        assert json.loads((folder / name).read_text())
    assert not (folder / "verdict.json").exists()


# What it starts does not get the signal that it gets itself when the harness dies.
WRAPPER = """\
#!{python}
import subprocess, sys
sys.exit(subprocess.run([{qemu!r}, *sys.argv[1:]], close_fds=False).returncode)
"""


def test_a_machine_that_outlives_its_harness_is_ended_by_the_next(
    bench: Bench, harness_host: Host
) -> None:
    wrapper = bench.root / "qemu"
    wrapper.write_text(WRAPPER.format(python=sys.executable, qemu=str(harness_host.qemu.path)))
    wrapper.chmod(0o755)
    qemu = ("--qemu", str(wrapper))
    with bench.started("run", "exact_cover", *qemu) as child:
        bench.await_text(EARLY)
        assert len(bench.machines()) == 2, "the wrapper and its QEMU"
        child.kill()
        finished(child)
    await_true(lambda: len(bench.machines()) == 1, "an end of the wrapper", seconds=10)
    (left,) = bench.machines()
    again = bench.finish("run", "exact_cover")
    assert again.returncode == Verdict.PASS.exit_code, again.stdout
    assert f"killed process {left}" in again.stderr
    await_true(lambda: bench.machines() == [], "an end of QEMU", seconds=10)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_harness_was_building_is_swept(bench: Bench, number: signal.Signals) -> None:
    whole = bench.store / "initramfs"
    whole.rename(bench.root / "initramfs")
    with bench.started("boot", "--print", "exact_cover") as child:
        await_true(
            lambda: child.poll() is not None or any(bench.store.glob("tmp/work/initramfs.*/*")),
            "a half-written initramfs",
        )
        child.send_signal(number)
        assert finished(child).returncode not in (0, 1)
    assert bool(bench.leftovers()) == (number is signal.SIGKILL)
    assert not whole.exists(), "a half-written entry looks whole"
    # The next harness that builds anything, here something else, cleans up.
    (bench.root / "initramfs").rename(whole)
    bench.forget("layouts")
    again = bench.finish("boot", "--print", "exact_cover")
    assert again.returncode == 0, again.stderr
    assert bench.leftovers() == []


def test_two_runs_at_once_do_not_meet(bench: Bench) -> None:
    """They also find the same two store entries missing."""
    bench.forget("initramfs", "layouts")
    ports: dict[int, set[int]] = {}
    with (
        bench.started("run", "exact_cover") as one,
        bench.started("run", "exact_cover") as two,
    ):
        while one.poll() is None or two.poll() is None:
            for machine in bench.machines():
                ports.setdefault(machine, set()).update(listening(machine))
            time.sleep(0.05)
        ended = [finished(one), finished(two)]
    for done in ended:
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith("PASS exact_cover")
    assert len(list(bench.evidence.iterdir())) == 2
    assert [len(used) for used in ports.values()] == [1, 1], ports
    assert len(set.union(*ports.values())) == 2, ports
    assert bench.leftovers() == []


def listening(process: int) -> set[int]:
    """The TCP ports of this host's loopback on which a process listens."""
    sockets = set()
    try:
        for path in Path(f"/proc/{process}/fd").iterdir():
            sockets.add(os.readlink(path))
    except OSError:
        pass  # it has ended, or has closed a file
    ports = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        address, _, port = words[1].partition(":")
        if f"socket:[{words[9]}]" in sockets and words[3] == "0A" and address == "0100007F":
            ports.add(int(port, 16))
    return ports
