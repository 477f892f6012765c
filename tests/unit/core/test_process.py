# SPDX-License-Identifier: GPL-2.0-or-later
"""A program that the harness starts does not outlive it, whenever and however it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from harness.core.deadline import Deadline
from harness.core.process import CommandError, end_group, run

# Starts a program that writes a file once it runs, and then waits longer than any test.
STARTER = """
import sys
from harness.core.process import spawn
with spawn(["sh", "-c", f"echo $$ > {sys.argv[1]}; exec sleep 600"]) as child:
    child.wait()
"""


def is_alive(file: Path) -> bool:
    try:
        stat = Path(f"/proc/{int(file.read_text())}/stat").read_text()
    except (OSError, ValueError):
        return False
    # In a container a process that has ended may not be reaped.
    return stat.rpartition(")")[2].split()[0] != "Z"


def await_file(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} never came"
        time.sleep(0.01)


@pytest.mark.parametrize("moment", ["before the signal is set", "once it runs"])
def test_a_harness_that_is_killed_while_it_starts_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    early = moment != "once it runs"
    tools = tmp_path / "setpriv"
    tools.write_text(
        f"#!/bin/sh\necho > {tmp_path}/begun\n{'sleep 0.7' if early else ':'}\n"
        f'exec {shutil.which("setpriv")} "$@"\n'
    )
    tools.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    running = tmp_path / "running"
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(running)])
    await_file(tmp_path / "begun" if early else running)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    time.sleep(1.5 if early else 0.3)
    try:
        assert not is_alive(running), "the program outlives the harness"
    finally:
        if is_alive(running):
            os.kill(int(running.read_text()), signal.SIGKILL)


def test_arguments_and_status_of_a_program() -> None:
    words = ["sh", "-c", 'printf "%s|" "$0" "$@"; exit 7', "a b", "$HOME", "", "'", "-n"]
    done = run(words, deadline=Deadline(20, "a shell"), check=False)
    assert (done.status, done.stdout) == (7, "a b|$HOME||'|-n|")


def test_a_program_that_is_killed_has_no_status() -> None:
    with pytest.raises(CommandError, match="sh was killed by signal 9"):
        run(["sh", "-c", "kill -9 $$"], deadline=Deadline(20, "a shell"))
    with pytest.raises(CommandError, match="sh ended with status 7"):
        run(["sh", "-c", "exit 7"], deadline=Deadline(20, "a shell"))


def test_a_process_group_of_another_program_is_not_killed() -> None:
    ours = subprocess.Popen(["true"], start_new_session=True)
    ours.wait()
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as other:
        try:
            ours.pid = other.pid  # as when the number has been given to it meanwhile
            end_group(cast(Any, ours))
            with pytest.raises(subprocess.TimeoutExpired):
                other.wait(0.5)
        finally:
            other.kill()


def test_the_rest_of_a_process_group_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "left"
    run(["sh", "-c", f"sleep 600 >&- 2>&- & echo $! > {file}"], deadline=Deadline(20, "a shell"))
    end = time.monotonic() + 10
    while is_alive(file):
        assert time.monotonic() < end, "it outlives the program that started it"
        time.sleep(0.01)


def test_a_program_that_cannot_be_killed_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that waits for a disk that does not answer, which a test cannot have."""
    monkeypatch.setattr("harness.core.process._REAP_SECONDS", 0.1)
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as child:
        with monkeypatch.context() as unkillable:
            unkillable.setattr(os, "killpg", lambda _group, _number: None)
            end_group(cast(Any, child))
        assert "was killed and does not end" in caplog.text
        child.kill()
