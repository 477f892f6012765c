# SPDX-License-Identifier: GPL-2.0-or-later
"""Real guests under avocado: verdicts, and no QEMU left behind however a run is ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from avocado_fixtures import plugin_environment, python

from harness.core.deadline import Deadline
from harness.runs.prepare import Host

pytestmark = pytest.mark.guest


def qemus(room: Path) -> list[int]:
    """The guests of jobs that were started in a room."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes()
                environment = (process / "environ").read_bytes()
            except OSError:
                continue
            guest = b"qemu-system" in words.split(b"\0")[0] and b"/serial.log" in words
            if guest and str(room).encode() in environment:
                found.append(int(process.name))
    return found


def wait_for(what: str, condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = Deadline(seconds, what)
    while not condition():
        deadline.check()
        time.sleep(0.05)


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harness_host: Host) -> Iterator[Path]:
    # QEMU keeps TMPDIR of its environment, which tells whose it is.
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("HARNESS_STORE", str(harness_host.store.root))
    yield tmp_path
    assert qemus(tmp_path) == []


def test_avocado_run_gives_verdict_and_evidence(room: Path, request: pytest.FixtureRequest) -> None:
    accel = f"accel={request.config.getoption('accel')}"
    done = python(
        room, "avocado", "run", "--disable-sysinfo", "--job-results-dir", "res",
        f"ownership:partial_region?{accel}", f"ownership:no_cxl?kernel=image:/x&{accel}",
        timeout=600,
    )  # fmt: skip
    results = json.loads((room / "res/latest/results.json").read_text())
    status = {one["name"].split()[0]: one for one in results["tests"]}
    assert status["partial_region"]["status"] == "WARN", done.stdout + done.stderr
    assert "known issue: sr0" in status["partial_region"]["fail_reason"]
    assert status["no_cxl"]["status"] == "ERROR"
    verdict = json.loads(status["partial_region"]["whiteboard"])
    assert verdict["verdict"] == "FAIL"
    assert (Path(verdict["evidence"]) / "observation" / "iomem").is_file()
    assert "CXL Window 0" in (Path(status["partial_region"]["logdir"]) / "debug.log").read_text()


def ended_by_avocado(room: Path, spawner: str, seconds: int) -> bool:
    """Whether a QEMU was running before avocado's timeout struck; that it left none."""
    (room / "a.conf").write_text(f"[task.timeout]\nrunning = {seconds}\n")
    running: list[int] = []
    with subprocess.Popen(
        [
            sys.executable, "-m", "avocado", "--config", "a.conf", "run", "--disable-sysinfo",
            "--spawner", spawner, "--job-results-dir", "res",
            "ownership:exact_cover?accel=tcg&repeat=9999",
        ],
        cwd=room,
        env=plugin_environment(room),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as job:  # fmt: skip

        def begun_or_ended() -> bool:
            running[:] = qemus(room)
            return bool(running) or job.poll() is not None

        wait_for("a QEMU, or the end of the job", begun_or_ended, 600)
        said, _ = job.communicate(timeout=600)
    assert "INTERRUPTED: Test interrupted: Timeout reached" in said, said
    assert qemus(room) == []
    assert list((room / "tmp").glob("ownership-*")) == []
    return bool(running)


@pytest.mark.parametrize("spawner", ["process", "ownership"])
def test_avocados_timeout_leaves_no_qemu(room: Path, spawner: str) -> None:
    """Where it struck before there was a QEMU it shows nothing, and is given more time."""
    times = (5, 20, 80, 320)
    assert any(ended_by_avocado(room, spawner, seconds) for seconds in times), (
        "no QEMU was running when the timeout struck, however late"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_runner_that_is_killed_leaves_no_qemu(room: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [
            sys.executable, "-m", "harness.plugins.avocado_plugin",
            "runnable-run", "-k", "ownership", "-u", "ownership:exact_cover?accel=tcg&repeat=9",
        ],
        cwd=room,
        env=plugin_environment(room),
        stdout=subprocess.DEVNULL,
    ) as runner:  # fmt: skip
        wait_for("a QEMU", lambda: qemus(room))
        os.kill(runner.pid, number)
        runner.wait(30)
        wait_for("its end", lambda: not qemus(room), 10)


def test_a_worker_that_is_killed_is_replaced_and_leaves_no_qemu(room: Path) -> None:
    (room / "m.yaml").write_text("kernels: [debian:7.2]\nscenarios: [exact_cover]\naccel: tcg\n")
    with subprocess.Popen(
        [sys.executable, "-m", "harness", "matrix", "m.yaml", "-j", "1", "--results", "res"],
        cwd=room,
        env=plugin_environment(room),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as job:
        wait_for("a QEMU", lambda: qemus(room))
        (first,) = qemus(room)
        (worker,) = subprocess.run(
            ["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        os.kill(int(worker), signal.SIGKILL)
        wait_for("its end", lambda: first not in qemus(room), 10)
        said, _ = job.communicate(timeout=600)
    assert job.returncode == 0, said
    assert "1 PASS" in said
    (log,) = (room / "res/latest/test-results").glob("*/debug.log")
    assert "lost here, running on another host" in log.read_text()
