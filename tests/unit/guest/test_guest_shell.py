# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import cast

import paramiko
import pytest

from harness.core.deadline import Deadline
from harness.core.errors import DeadlineExpiredError, GuestLostError
from harness.guest.ssh import GuestShell


class FakeChannel:
    """A channel whose shell is a program of this machine, and whose connection gives others."""

    def __init__(self, gives: type[Exception] | None = None) -> None:
        self.closed = False
        self._gives = gives
        self._output = b""

    def get_transport(self) -> FakeChannel:
        return self

    def open_session(self, timeout: float) -> FakeChannel:
        assert timeout > 0
        if self._gives is not None:
            raise self._gives("no more")
        return FakeChannel()

    def exec_command(self, command: str) -> None:
        assert command == "exec sh"

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def sendall(self, data: bytes) -> None:
        self._output = subprocess.run(["sh"], input=data, stdout=subprocess.PIPE).stdout

    def recv(self, size: int) -> bytes:
        data, self._output = self._output[:size], self._output[size:]
        return data

    def close(self) -> None:
        self.closed = True


def shell_on(channel: FakeChannel) -> GuestShell:
    return GuestShell(cast(paramiko.Channel, channel), lambda: None)


def test_a_step_marks_the_log_with_a_word_that_each_shell_has_for_itself(tmp_path: Path) -> None:
    one, other = shell_on(FakeChannel()), shell_on(FakeChannel())
    assert one.marks != other.marks
    assert one.step == ""
    log = tmp_path / "kmsg"
    command = one.begin("modprobe 'kmem'").replace("/dev/kmsg", shlex.quote(str(log)))
    assert one.step == "modprobe 'kmem'"
    assert one.run(command, Deadline(10, "a mark")).status == 0
    level, _, text = log.read_text().rstrip("\n").partition(">")
    assert level == "<6", "on the console, and no warning"
    assert one.marks.step_of(text) == "modprobe 'kmem'"
    assert other.marks.step_of(text) is None
    assert re.search(r"\[[0-9a-f]{32}\]$", text)


def test_another_shell_answers_beside_one_that_does_not() -> None:
    with shell_on(FakeChannel()).beside(Deadline(10, "x")) as other:
        done = other.run("echo alive", Deadline(10, "x"))
    assert done.output == "alive\n"


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (TimeoutError, DeadlineExpiredError),
        (paramiko.SSHException, GuestLostError),
        (OSError, GuestLostError),
    ],
)
def test_a_guest_that_gives_no_other_shell(raised: type[Exception], error: type[Exception]) -> None:
    shell = shell_on(FakeChannel(gives=raised))
    with pytest.raises(error), shell.beside(Deadline(10, "another shell")):
        pass
