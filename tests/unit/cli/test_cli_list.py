# SPDX-License-Identifier: GPL-2.0-or-later
"""`harness list` and `harness doctor`, and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_fixtures import FIT_QEMU, Harness, files, program
from layouts import layout_of

from harness.cli.doctor import Check
from harness.core.paths import PROJECT
from harness.scenario.scenario_files import (
    profile_names,
    scenario_names,
)

pytestmark = pytest.mark.usefixtures("room")


def test_the_list_has_every_scenario_and_profile(harness: Harness, room: Path) -> None:
    ended = harness("list")
    assert (ended.code, ended.err) == (0, "")
    above, below = ended.out.removeprefix("scenarios:\n").split("profiles:\n")
    for text, names in ((above, scenario_names()), (below, profile_names())):
        lines = text.splitlines()
        assert [line.split()[0] for line in lines] == list(names)
        assert all(len(line.split()) > 3 for line in lines), "a line without a summary"
    assert not [line for line in above.splitlines() if line.endswith("]")]
    assert files(room) == set()


@pytest.mark.parametrize("kernel", ["7.2", "debian:7.2", "build:debian:7.2.13"])
def test_the_list_marks_known_failures_on_a_kernel(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    monkeypatch.setattr("harness.runs.prepare.require_qemu", lambda _asked: FIT_QEMU)
    monkeypatch.setattr(
        "harness.machine.address_probe.machine_layout",
        lambda _qemu, profile, _remember: layout_of(profile),
    )
    ended = harness("list", "--kernel", kernel)
    assert ended.code == 0
    marks = {
        line.split()[0]: line.rpartition(" [")[2]
        for line in ended.out.splitlines()
        if line.endswith("]")
    }
    assert marks["partial_region"] == "fails: range_covered_in_part]"
    assert marks["builtin"] == "may fail: builtin_race]"
    assert "no_region" not in marks


def test_the_list_of_a_kernel_without_a_version_is_refused(harness: Harness) -> None:
    ended = harness("list", "--kernel", "build:/src/linux")
    assert ended.code == 2
    assert "does not name a kernel version" in ended.err


@pytest.mark.parametrize(
    ("checks", "code"),
    [
        ((Check("QEMU", "ok", "10.0.2"),), 0),
        ((Check("QEMU", "ok", "10.0.2"), Check("KVM", "warning", "absent", "be patient")), 0),
        ((Check("QEMU", "missing", "absent", "get one"), Check("KVM", "ok", "there")), 2),
    ],
)
def test_the_doctor(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, checks: tuple[Check, ...], code: int
) -> None:
    monkeypatch.setattr("harness.cli.doctor.diagnose", lambda: checks)
    ended = harness("doctor")
    assert (ended.code, ended.err) == (code, "")
    lines = ended.out.splitlines()
    assert [line.split()[:2] for line in lines if "hint: " not in line] == [
        [check.state, check.name] for check in checks
    ]
    hints = [line.partition("hint: ")[2] for line in lines if "hint: " in line]
    assert hints == [check.hint for check in checks if check.hint]


def test_the_doctor_of_this_machine_changes_nothing_but_the_store(
    harness: Harness, room: Path
) -> None:
    ended = harness("doctor")
    assert ended.code in (0, 2)
    assert ended.err == ""
    assert "QEMU" in ended.out
    assert {path.relative_to(room).parts[:2] for path in files(room)} <= {("store", "qemu")}


def test_help_lists_the_commands_in_the_order_of_use(harness: Harness) -> None:
    _, _, commands = harness("--help").out.partition("Commands:\n")
    names = [line.split()[0] for line in commands.splitlines() if line[2:3].strip()]
    assert names[:6] == ["doctor", "list", "run", "boot", "compare", "build"]
    assert names.index("bisect") < names.index("report") < names.index("matrix")
    assert "matrix-worker" not in names


@pytest.mark.parametrize("words", [("--help",), ("run", "-h"), ("boot", "--help"), ("--version",)])
def test_help_starts_nothing(harness: Harness, room: Path, words: Sequence[str]) -> None:
    ended = harness(*words)
    assert (ended.code, ended.err) == (0, "")
    assert files(room) == set()


# Never answers, so that the harness is stopped while it waits.
WAITING_QEMU = """#!/bin/sh
echo $$ > "$0.new"
mv "$0.new" "$0.pid"
exec sleep 60
"""


@contextmanager
def waiting_harness(*words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a harness that waits for its QEMU; yields it and the process number of QEMU."""
    qemu = program(WAITING_QEMU)
    argv = [sys.executable, "-c", "from harness.cli.main import main; main()", *words]
    # Children of a process that ignores SIGINT, such as a background job, ignore it too.
    with subprocess.Popen(
        [*argv, "--qemu", str(qemu)],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    ) as child:
        try:
            started = qemu.with_name("fake-qemu.pid")
            await_true(lambda: started.exists() or child.poll() is not None)
            assert child.poll() is None, child.communicate()
            yield child, int(started.read_text())
        finally:
            child.kill()


def await_true(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timeout"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


@pytest.mark.parametrize(
    ("number", "status", "printed"),
    [
        (signal.SIGTERM, 143, ""),
        (signal.SIGINT, 130, "harness: interrupted\n"),
        (signal.SIGKILL, -9, ""),
        (signal.SIGHUP, None, ""),
    ],
)
@pytest.mark.parametrize("command", ["run", "boot"])
def test_a_stopped_harness_leaves_nothing(
    room: Path, number: signal.Signals, status: int | None, printed: str, command: str
) -> None:
    with waiting_harness(command, "exact_cover") as (child, qemu):
        before = files(room)
        child.send_signal(number)
        out, err = child.communicate(timeout=20)
        await_true(lambda: is_gone(qemu))
        assert (out, err) == ("", printed)
        assert status is None or child.returncode == status
        assert child.returncode not in (0, 1)
        assert files(room) == before
