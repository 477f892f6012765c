# SPDX-License-Identifier: GPL-2.0-or-later
"""A matrix over two hosts behind SSH, one of which dies in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from avocado_fixtures import FAKE_WORKER, plugin_environment
from lab_fixtures import LabRoom, as_text, lab

from harness.core.deadline import Deadline
from harness.core.paths import PROJECT
from harness.runs.prepare import Host

pytestmark = pytest.mark.guest

SCENARIOS = ("exact_cover", "no_region", "partial_region", "two_ranges_in_region")


def hosts_file(room: Path, *entries: str) -> None:
    (room / "hosts.yaml").write_text("hosts:\n" + "".join(entries))


def start(room: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "harness", "matrix", "m.yaml", "--hosts", "hosts.yaml",
         "--results", "res", "--json", "out.json", *words],
        cwd=room,
        env=plugin_environment(room),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def runs_a_guest(host: LabRoom) -> bool:
    for pid in host.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        # What is only asked for its features or its layout has no console.
        if b"qemu-system" in words.split(b"\0")[0] and b"/serial.log" in words:
            return True
    return False


def lost_on(name: str, room: Path) -> bool:
    """Whether the log of some combination says that its worker there was lost."""
    logs = (room / "res/latest/test-results").glob("*/debug.log")
    return any(f"lost {name}, running on another host" in log.read_text() for log in logs)


def test_every_verdict_arrives_though_a_host_dies_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harness_host: Host
) -> None:
    monkeypatch.setenv("HARNESS_STORE", str(harness_host.store.root))
    (tmp_path / "m.yaml").write_text(
        f"kernels: [debian:7.2]\nscenarios: [{', '.join(SCENARIOS)}]\naccel: tcg\ntimeout: 300\n"
    )
    with lab(tmp_path, "alpha", "beta") as (alpha, beta):
        hosts_file(tmp_path, alpha.entry(), beta.entry())
        with start(tmp_path) as job:
            deadline = Deadline(300, "a guest on alpha")
            while not runs_a_guest(alpha):
                assert job.poll() is None, as_text(job)
                deadline.check()
                time.sleep(0.1)
            alpha.kill()
            said = as_text(job)
        assert (alpha.has_kernel(), beta.has_kernel()) == (True, True), said
        assert alpha.pids() == []
    assert job.returncode == 0, said
    for word in ("alpha: sent kernels/", "beta: sent kernels/"):
        assert word in said
    assert lost_on("alpha", tmp_path)
    results = json.loads((tmp_path / "out.json").read_text())
    assert sorted(one["scenario"] for one in results) == list(SCENARIOS)
    assert {one["scenario"]: one["verdict"] for one in results} == {
        "exact_cover": "PASS",
        "no_region": "PASS",
        "partial_region": "FAIL",
        "two_ranges_in_region": "PASS",
    }
    for one in results:
        evidence = Path(one["evidence"])
        assert evidence.is_relative_to(tmp_path / "res")
        assert "CXL Window 0" in (evidence / "observation" / "iomem").read_text()
        assert json.loads((evidence / "verdict.json").read_text())["evidence"] == str(evidence)
        assert one["kernel"]["spec"] == "debian:7.2"


def test_a_host_that_is_cut_off_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("kernels: [debian:7.2]\nscenarios: [exact_cover, no_region]\n")
    with lab(tmp_path, "alpha") as (alpha,):
        fake = ("env", f"PYTHONPATH={PROJECT}", sys.executable, str(FAKE_WORKER))
        hosts_file(
            tmp_path,
            alpha.entry(command=(*fake, "alpha", "hang_all")),
            f"- {{name: beta, guests: 1, command: {[*fake, 'beta']}}}\n",
        )
        with start(tmp_path) as job:
            assert job.stdout is not None
            begun = 0
            while begun < 1:
                line = job.stdout.readline()
                assert line
                begun += "STARTED" in line
            alpha.cut_off()
            said = as_text(job)
    assert job.returncode == 0, said
    assert lost_on("alpha", tmp_path)
    assert "2 PASS" in said


def test_a_host_that_refuses_ssh_or_lacks_the_harness_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("kernels: [debian:7.2]\nscenarios: [exact_cover]\n")
    with lab(tmp_path, "alpha", "beta") as (alpha, beta):
        (alpha.folder / "authorized").write_text("")
        hosts_file(
            tmp_path,
            alpha.entry(),
            beta.entry(command=("no-such-harness",)),
            f"- {{name: gamma, command: {[sys.executable, str(FAKE_WORKER), 'gamma']}}}\n",
        )
        with start(tmp_path) as job:
            said = as_text(job)
    assert job.returncode == 0, said
    assert "host alpha is no longer used: alpha: the connection was closed" in said
    assert "Permission denied" in said
    assert "no-such-harness" in said
    assert "1 PASS" in said
