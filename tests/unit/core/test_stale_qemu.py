# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from machines import one_window

from harness.cli import doctor
from harness.core import stale_qemu
from harness.core.stale_qemu import (
    Orphan,
    find_orphans,
    owner_environment,
    reap_orphans,
    reap_orphans_once,
)
from harness.machine.qemu_argv import Boot, ConsolePipe, qemu_argv


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """Processes: init, a harness with its QEMUs, one in a wrapper, and a QEMU that init has got."""
    from cli_fixtures import FIT_QEMU

    console = ConsolePipe(7, Path("/evidence/a,b/serial.log"))
    boot = Boot(Path("/kernel"), "/dev/fd/9", "console=ttyS0", console)
    qemu = qemu_argv(FIT_QEMU, one_window(), "tcg", boot=boot)
    folder = tmp_path / "proc"
    for number, parent, words in (
        (1, 0, ("/sbin/init",)),
        (20, 1, ("/venv/bin/python3.11", "/venv/bin/harness", "run", "exact_cover")),
        (21, 20, qemu),
        (30, 1, qemu),
        (22, 20, ("/bin/sh", "/lab/bin/qemu-wrapper")),
        (23, 22, qemu),
        (31, 1, ("/usr/bin/qemu-system-x86_64", "-serial", "stdio")),
        (32, 1, ("grep", "-chardev file,id=console,path=/dev/fd/7,logfile=x")),
    ):
        one = folder / str(number)
        one.mkdir(parents=True)
        (one / "cmdline").write_text("\0".join(words) + "\0")
        (one / "stat").write_text(f"{number} (odd) name) S {parent} 1 1 0\n")
    return folder


def test_a_qemu_without_its_harness_is_found(proc: Path) -> None:
    assert find_orphans(proc) == (Orphan(30, "/evidence/a,b/serial.log"),)


def test_the_doctor_says_how_to_end_it(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_orphans", lambda: find_orphans(proc))
    (check,) = doctor.check_orphans()
    assert check.state == "warning"
    assert "30" in check.found and "/evidence/a,b/serial.log" in check.found
    assert check.hint.startswith("kill 30")
    monkeypatch.setattr(doctor, "find_orphans", tuple)
    assert list(doctor.check_orphans()) == []


# A harness that starts something that outlives it, as a wrapper around QEMU can.
HARNESS = """
import os, subprocess, sys
from harness.core.stale_qemu import owner_environment
name, wait, extra = sys.argv[1:]
child = subprocess.Popen(
    ["sleep", "600"],
    env={"ONLY": name, **(owner_environment() if extra == "mark" else {})},
    start_new_session=True,
)
print(child.pid, flush=True)
if wait == "wait":
    sys.stdin.read()
"""


@contextmanager
def left_behind(
    name: str, *, wait: bool = False, marked: bool = True
) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """What a harness started, with that harness: gone, or with `wait` still there."""
    words = [name, "wait" if wait else "end", "mark" if marked else "none"]
    with subprocess.Popen(
        [sys.executable, "-c", HARNESS, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as harness:
        assert harness.stdout
        pid = int(harness.stdout.readline())
        if not wait:
            harness.wait(timeout=60)
        try:
            yield pid, harness
        finally:
            harness.kill()
            subprocess.run(["kill", "-KILL", str(pid)], check=False, capture_output=True)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for_end(pid: int) -> None:
    handle = os.pidfd_open(pid) if alive(pid) else None
    if handle is not None:
        with open(handle, closefd=True):
            assert select.select([handle], [], [], 60)[0], f"process {pid} is still there"


def test_what_a_harness_that_is_gone_left_is_killed() -> None:
    with left_behind("gone") as (pid, _):
        assert alive(pid)
        reap_orphans()
        wait_for_end(pid)


def test_a_harness_that_waits_keeps_what_is_its_own() -> None:
    with left_behind("waiting", wait=True) as (pid, harness):
        assert pid not in {one.pid for one in reap_orphans()}
        assert alive(pid)
        harness.kill()
        # Nobody has asked for its status yet: it is a zombie, and no harness any more.
        os.waitid(os.P_PID, harness.pid, os.WEXITED | os.WNOWAIT)
        reap_orphans()
        wait_for_end(pid)


def test_what_has_no_mark_is_left_alone() -> None:
    with left_behind("unmarked", marked=False) as (pid, _):
        assert pid not in {one.pid for one in reap_orphans()}
        assert alive(pid)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda mark: "", id="empty"),
        pytest.param(lambda mark: mark.replace("pid:[", "pid:[9"), id="other-pid-namespace"),
        pytest.param(lambda mark: mark.replace("time:[", "time:[9"), id="other-time-namespace"),
        pytest.param(lambda mark: mark.rpartition(" ")[0], id="no-start-time"),
        pytest.param(lambda mark: mark.replace(" ", "  "), id="torn"),
        pytest.param(lambda mark: mark.rpartition(" ")[0] + "/.. 7", id="no-number"),
    ],
)
def test_a_mark_that_proves_nothing_is_left_alone(change: Callable[[str], str]) -> None:
    (name, mark), *_ = owner_environment().items()
    gone = mark.split(" ")
    gone[2] = "4194305"  # behind the most that a process number can be: nobody has it
    with subprocess.Popen(["sleep", "600"], env={name: change(" ".join(gone))}) as sleeper:
        try:
            assert sleeper.pid not in {one.pid for one in reap_orphans()}
        finally:
            sleeper.kill()
    with subprocess.Popen(["sleep", "600"], env={name: " ".join(gone)}) as sleeper:
        try:
            reap_orphans()
            assert sleeper.wait(timeout=60) == -signal.SIGKILL
        finally:
            sleeper.kill()


def test_a_number_that_another_process_has_got_is_no_owner() -> None:
    (name, mark), *_ = owner_environment().items()
    earlier = f"{mark.rpartition(' ')[0]} 1"
    with subprocess.Popen(["sleep", "600"], env={name: earlier}) as sleeper:
        try:
            reap_orphans()
            assert sleeper.wait(timeout=60) == -signal.SIGKILL
        finally:
            sleeper.kill()


def test_a_process_says_once_what_it_killed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stale_qemu, "reap_orphans", lambda: (Orphan(7, "/evidence/serial.log"),))
    reap_orphans_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        reap_orphans_once()
        reap_orphans_once()
    (said,) = caplog.messages
    assert "7" in said and "/evidence/serial.log" in said


def test_a_kernel_without_time_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = tmp_path / "proc"
    (proc / "self" / "ns").mkdir(parents=True)
    (proc / "self" / "ns" / "pid").symlink_to("pid:[7]")
    (proc / "self" / "stat").write_text(f"7 (python) R {' '.join(map(str, range(4, 53)))}\n")
    monkeypatch.setattr(stale_qemu, "_PROC", proc)
    assert list(owner_environment().values()) == [f"pid:[7] none {os.getpid()} 22"]
