# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests in containers, by avocado's spawner podman, and what is left when their job ends badly."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from avocado_fixtures import plugin_environment
from test_avocado_guests import wait_for

from harness.core.paths import PROJECT
from harness.runs.prepare import Host

pytestmark = pytest.mark.guest

CONTAINER = PROJECT / "ci" / "container"


def qemus(room: Path) -> list[int]:
    """The guests whose evidence is below a folder, in whatever container."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"qemu-system" in words[0] and any(os.fsencode(room) in word for word in words):
            found.append(int(process.name))
    return found


def podman(*words: str) -> list[str]:
    return subprocess.run(
        ["podman", *words], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()


def containers(job: Path) -> list[str]:
    """Those of one job, running or ended: each has the job's folder."""
    (folder,) = job.glob("ownership-container-*")
    return podman("ps", "--all", "--quiet", f"--filter=volume={folder}")


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harness_host: Host) -> Iterator[Path]:
    if not shutil.which("podman"):
        pytest.skip("podman is not installed")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("HARNESS_STORE", str(harness_host.store.root))
    yield tmp_path
    assert qemus(tmp_path) == []
    assert list((tmp_path / "tmp").iterdir()) == []


@contextmanager
def job(room: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A job in containers. A test is skipped where podman cannot run them."""
    with subprocess.Popen(
        [sys.executable, str(CONTAINER), "--disable-sysinfo", "--job-results-dir", "res", *words],
        cwd=room,
        env=plugin_environment(room),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as started:
        try:
            wait_for("a job", lambda: started.poll() is not None or (room / "res/latest").exists())
            if started.poll() == 2 and started.stdout is not None:
                said = started.stdout.read()
                if "runc is not installed" in said or not os.environ.get("CI"):
                    pytest.skip(f"podman cannot be used here: {said}")
                pytest.fail(said)
            yield started
        finally:
            started.send_signal(signal.SIGTERM)


def statuses(room: Path) -> dict[str, tuple[str, str]]:
    tests = json.loads((room / "res/latest/results.json").read_text())["tests"]
    return {one["id"].split("-")[0]: (one["status"], one["fail_reason"]) for one in tests}


def test_a_lost_container_leaves_no_qemu_and_the_next_gives_verdict_and_evidence(
    room: Path, request: pytest.FixtureRequest
) -> None:
    accel = f"accel={request.config.getoption('accel')}"
    references = (f"ownership:exact_cover?{accel}&repeat=9", f"ownership:exact_cover?{accel}")
    with job(room, "--max-parallel-tasks", "1", *references) as started:
        wait_for("a QEMU", lambda: qemus(room))
        (container,) = containers(room / "tmp")
        podman("kill", "--signal", "KILL", container)
        wait_for("its end", lambda: not qemus(room), 10)
        said, _ = started.communicate(timeout=600)
    found = statuses(room)
    assert found["1"] == ("ERROR", "INCONCLUSIVE: the container was lost (status 137)"), said
    assert found["2"][0] == "PASS", said
    (whiteboard,) = (room / "res/latest/test-results").glob("2-*/whiteboard")
    verdict = json.loads(whiteboard.read_text())
    assert verdict["verdict"] == "PASS"
    assert (Path(verdict["evidence"]) / "observation" / "iomem").is_file()
    assert "Executing ('create'" in (room / "res/latest/full.log").read_text()
    assert podman("ps", "--all", "--quiet", f"--filter=id={container}") == []


def test_avocados_timeout_leaves_no_qemu(room: Path) -> None:
    with job(room, "--job-timeout", "15", "ownership:exact_cover?accel=tcg&repeat=30") as started:
        wait_for("a QEMU", lambda: qemus(room))
        said, _ = started.communicate(timeout=120)
    assert statuses(room)["1"] == ("INTERRUPTED", "Test interrupted: Timeout reached"), said
    assert qemus(room) == []


def test_a_job_that_is_killed_leaves_no_container_running(room: Path) -> None:
    (room / "long.sh").write_text("#!/bin/sh\nsleep 600\n")
    (room / "long.sh").chmod(0o755)
    with job(room, "./long.sh") as started:
        logs = (room / "res/latest").glob
        wait_for(
            "a test", lambda: any("started message" in one.read_text() for one in logs("full.log"))
        )
        (container,) = containers(room / "tmp")
        started.kill()
        wait_for(
            "its end",
            lambda: podman("ps", "--quiet", "--all", f"--filter=id={container}",
                           "--filter=status=exited"),
            30,
        )  # fmt: skip
    podman("rm", container)
    for left in (room / "tmp").iterdir():
        shutil.rmtree(left)
