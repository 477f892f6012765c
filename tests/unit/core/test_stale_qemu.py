# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
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
)
from harness.machine.qemu_argv import Boot, ConsolePipe, qemu_argv


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """Processes: init, a harness with its QEMUs, one in a wrapper, and a QEMU below init."""
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
        process = folder / str(number)
        process.mkdir(parents=True)
        (process / "cmdline").write_text("\0".join(words) + "\0")
        (process / "stat").write_text(f"{number} (odd) name) S {parent} 1 1 0\n")
    return folder


def test_a_qemu_without_its_harness_is_found(proc: Path) -> None:
    assert find_orphans(proc) == (Orphan(30, "/evidence/a,b/serial.log"),)


def test_the_doctor_prints_how_to_end_it(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_orphans", lambda: find_orphans(proc))
    (check,) = doctor.check_orphans()
    assert check.state == "warning"
    assert "30" in check.found and "/evidence/a,b/serial.log" in check.found
    assert check.hint.startswith("kill 30")
    monkeypatch.setattr(doctor, "find_orphans", tuple)
    assert list(doctor.check_orphans()) == []


# A harness that starts a process that outlives it, as a wrapper around QEMU can.
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
    """A process that a harness started, and that harness, which has ended unless `wait`."""
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


def test_a_qemu_whose_harness_has_ended_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    with left_behind("gone") as (pid, _):
        assert alive(pid)
        with caplog.at_level(logging.WARNING):
            orphans = {orphan.pid: orphan.log for orphan in reap_orphans()}
        wait_for_end(pid)
    # Another harness on this host may have been faster.
    assert pid not in orphans or any(str(pid) in message for message in caplog.messages)


def test_the_qemu_of_a_running_harness_is_left_alone() -> None:
    with left_behind("waiting", wait=True) as (pid, harness):
        assert pid not in {orphan.pid for orphan in reap_orphans()}
        assert alive(pid)
        harness.kill()
        # Its status was not read yet: it is a zombie.
        os.waitid(os.P_PID, harness.pid, os.WEXITED | os.WNOWAIT)
        reap_orphans()
        wait_for_end(pid)


def test_a_qemu_without_an_owner_is_left_alone() -> None:
    with left_behind("unmarked", marked=False) as (pid, _):
        assert pid not in {orphan.pid for orphan in reap_orphans()}
        assert alive(pid)


def test_an_owner_that_proves_nothing_is_ignored() -> None:
    ((name, owner),) = owner_environment().items()
    words = owner.split(" ")
    words[2] = "4194305"  # larger than any process number
    gone = " ".join(words)
    start = gone.rpartition(" ")[0]
    for text in (
        "",
        gone.replace("pid:[", "pid:[9"),  # another pid namespace
        gone.replace("time:[", "time:[9"),  # another time namespace
        start,  # no start time
        gone.replace(" ", "  "),
        f"{start}/.. 7",  # no number
    ):
        with subprocess.Popen(["sleep", "600"], env={name: text}) as sleeper:
            try:
                assert sleeper.pid not in {orphan.pid for orphan in reap_orphans()}, text
                assert sleeper.poll() is None
            finally:
                sleeper.kill()
    assert_killed(name, gone)


def assert_killed(name: str, owner: str) -> None:
    with subprocess.Popen(["sleep", "600"], env={name: owner}) as sleeper:
        try:
            reap_orphans()
            assert sleeper.wait(timeout=60) == -signal.SIGKILL
        finally:
            sleeper.kill()


def test_a_reused_process_number_is_not_the_owner() -> None:
    ((name, owner),) = owner_environment().items()
    assert_killed(name, f"{owner.rpartition(' ')[0]} 1")


def test_a_kernel_without_time_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = tmp_path / "proc"
    (proc / "self" / "ns").mkdir(parents=True)
    (proc / "self" / "ns" / "pid").symlink_to("pid:[7]")
    (proc / "self" / "stat").write_text(f"7 (python) R {' '.join(map(str, range(4, 53)))}\n")
    monkeypatch.setattr(stale_qemu, "_PROC", proc)
    assert list(owner_environment().values()) == [f"pid:[7] none {os.getpid()} 22"]
