# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults at the phases of a run: verdict and evidence. docs/reliability.md lists all.

The quick ones belong to the tests; `pytest -m soak tests/faults` runs the others.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from bench_fixtures import SECONDS, Bench, await_true

pytestmark = pytest.mark.guest
INJECT = Path(__file__).with_name("inject.py")

PASSED, BROKEN, UNCLEAR = 0, 1, 3
INTERRUPTED, TERMINATED, KILLED = 128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGKILL


class Row(NamedTuple):
    """A fault at some phases, and the exit codes that are expected there.

    Attributes:
        quick: the phases of the normal tests.
        soak: the phases of the long tests.
        output: text that the output must contain.
    """

    fault: str
    codes: tuple[int, ...]
    quick: str
    soak: str = ""
    output: str = ""


TABLE = (
    Row("SIGINT", (INTERRUPTED,), "initramfs qtest load", "kernel start boot ssh observe judge"),
    Row("SIGTERM", (TERMINATED,), "start observe", "kernel initramfs qtest boot ssh load judge"),
    Row("SIGKILL", (KILLED,), "monitor ssh", "kernel start qtest boot load observe judge report"),
    Row("SIGINT", (INTERRUPTED,), "", "monitor"),
    Row("SIGTERM", (TERMINATED,), "", "monitor"),
    Row("SIGKILL", (KILLED,), "", "initramfs"),
    Row("SIGINT", (PASSED, INTERRUPTED), "", "report"),
    Row("SIGTERM", (PASSED, TERMINATED), "", "report"),
    Row("QEMU killed", (UNCLEAR,), "qtest observe", "monitor ssh load", "killed by signal 9"),
    Row("QEMU killed", (UNCLEAR,), "", "boot", "killed by signal 9"),
    Row("QEMU stopped", (UNCLEAR,), "load", "monitor qtest boot ssh observe"),
    Row("QEMU killed", (PASSED,), "", "judge"),  # at the report QEMU has ended
    Row("QMP closes", (UNCLEAR,), "qtest", "monitor", "monitor connection broke"),
    Row("qtest closes", (UNCLEAR,), "qtest", "", "qtest connection"),
    Row("qtest closes", (UNCLEAR,), "", "boot", "qtest connection"),
    Row("console closes", (UNCLEAR,), "boot", "", "console closed"),
    Row("SSH closes", (UNCLEAR,), "load", "observe", "SSH connection broke"),
    Row("SSH silent", (UNCLEAR,), "", "load observe"),
    Row("disk full", (UNCLEAR,), "load", "start boot ssh observe judge", "File too large"),
    Row("disk full", (2, UNCLEAR), "initramfs", "", "File too large"),
    Row("disk full", (2, UNCLEAR), "", "kernel"),
    Row("disk full", (PASSED,), "", "report"),
    Row("no descriptors", (UNCLEAR,), "start", "ssh", "Too many open files"),
    Row("no memory", (UNCLEAR, PASSED), "", "start load observe judge"),
    Row("no descriptors", (2, UNCLEAR), "", "kernel initramfs"),
    Row("no descriptors", (UNCLEAR, PASSED), "", "qtest load observe judge"),
    Row("no memory", (2, UNCLEAR, PASSED), "", "kernel initramfs"),
    Row("clock back", (PASSED,), "", "start load observe"),
    Row("clock ahead", (PASSED,), "boot", "kernel observe"),
    Row("guest clock jumps", (PASSED,), "", "load observe"),
    Row("console floods", (PASSED,), "", "load"),
    Row("console never ends", (UNCLEAR,), "", "load observe"),
    Row("console binary", (PASSED,), "", "load"),
    Row("guest panics", (BROKEN,), "", "load observe", "panicked"),
    Row("guest reboots", (BROKEN,), "load", "observe", "reset its machine"),
    Row("guest powers off", (BROKEN,), "", "load", "powered off"),
    Row("guest fills memory", (BROKEN, UNCLEAR), "", "load"),
    Row("guest kills shell", (UNCLEAR,), "", "load", "SSH connection broke"),
    Row("guest floods log", (UNCLEAR,), "", "observe", "log cannot be trusted"),
)


def pairs() -> list[object]:
    found: list[object] = []
    for row in TABLE:
        for phases, marks in ((row.quick, ()), (row.soak, (pytest.mark.soak,))):
            for phase in phases.split():
                name = f"{row.fault} at {phase}".replace(" ", "-")
                found.append(pytest.param(row, phase, id=name, marks=marks))
    return found


@pytest.mark.parametrize(("row", "phase"), pairs())
def test_a_fault(bench: Bench, row: Row, phase: str) -> None:
    if phase == "initramfs":
        bench.forget("initramfs")
    run = bench.words("run", "exact_cover", "--timeout", "60", "--start", "cold")[1:]
    child = subprocess.Popen(
        [sys.executable, str(INJECT), phase, row.fault, *run],
        env=bench.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    with child:
        out, err = child.communicate(timeout=SECONDS)
    output = out + err
    assert f"fault: {row.fault} at {phase}\n" in err, "the phase was never reached"
    assert child.returncode in row.codes, output
    assert "Traceback" not in err, output
    assert row.output in output
    if child.returncode not in (PASSED, KILLED, INTERRUPTED, TERMINATED):
        assert "hint: " in output or "evidence: " in output
    await_true(lambda: processes(bench.root) == [], "an end of what the run started", seconds=10)
    if child.returncode != KILLED:
        assert bench.leftovers() == []
    for folder in bench.evidence.glob("*"):
        assert_readable(folder, child.returncode, phase)
    if phase in ("kernel", "initramfs"):
        again = bench.finish("boot", "--print", "exact_cover")
        assert again.returncode == 0, again.stderr
        assert bench.leftovers() == []


def processes(root: Path) -> list[str]:
    """Command lines of processes with this bench's environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"={root}/".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def assert_readable(folder: Path, code: int, phase: str) -> None:
    """Check that the evidence is complete up to the fault, and has no verdict without a result."""
    for path in folder.rglob("*.json"):
        assert json.loads(path.read_text()), path
    if phase not in ("kernel", "initramfs", "start"):
        assert (folder / "qemu.argv").read_text().startswith("/")
    if phase not in ("kernel", "initramfs", "start", "monitor"):
        assert (folder / "serial.log").exists()
    verdict = folder / "verdict.json"
    if code in (INTERRUPTED, TERMINATED, KILLED) and phase not in ("judge", "report"):
        assert not verdict.exists()
    elif code in (PASSED, BROKEN, UNCLEAR) and verdict.exists():
        expected = {PASSED: "PASS", BROKEN: "FAIL", UNCLEAR: "INCONCLUSIVE"}
        assert json.loads(verdict.read_text())["verdict"] == expected.get(code, "INCONCLUSIVE")
