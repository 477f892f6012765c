# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is believed to be the guest, and what of a command's end is told."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import paramiko
import pytest
from paramiko.common import AUTH_SUCCESSFUL, OPEN_SUCCEEDED
from test_guest_shell import FakeChannel, shell_on

from harness.core.deadline import Deadline
from harness.core.errors import DeadlineExpiredError, GuestLostError
from harness.guest.keys import RunKeys
from harness.guest.ssh import guest_shell


class Anybody(paramiko.ServerInterface):
    """A server that lets in everybody, and remembers who came."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get_allowed_auths(self, username: str) -> str:
        return "publickey,password"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.asked.append(username)
        return AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        return True


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket], object]) -> Iterator[int]:
    """A program of this machine that has got the guest's port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)

        def serve() -> None:
            with contextlib.suppress(OSError):
                answer(listener.accept()[0])

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def test_a_server_with_another_host_key_learns_nothing() -> None:
    server = Anybody()

    def answer(connection: socket.socket) -> None:
        transport = paramiko.Transport(connection)
        transport.add_server_key(stranger)
        with contextlib.suppress(paramiko.SSHException, EOFError):
            transport.start_server(server=server)

    keys, stranger = RunKeys(), RunKeys().client_key
    with (
        listening(answer) as port,
        pytest.raises(GuestLostError, match="port is not the guest's: unknown host key"),
        guest_shell(port, keys, Deadline(30, "a login"), lambda: None),
    ):
        pytest.fail("it logged in")
    assert server.asked == [], "nobody has offered it a key"


@pytest.mark.parametrize("words", [b"", b"SSH-2.0-dropbear\r\n"])
def test_a_server_that_goes_silent_is_given_up(words: bytes) -> None:
    kept: list[socket.socket] = []

    def answer(connection: socket.socket) -> None:
        connection.sendall(words)
        kept.append(connection)

    with (
        listening(answer) as port,
        pytest.raises(DeadlineExpiredError, match="waiting for a login"),
        guest_shell(port, RunKeys(), Deadline(1, "a login"), lambda: None),
    ):
        pytest.fail("it logged in")


def test_a_command_that_prints_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.guest.ssh._MOST_OUTPUT", 1 << 20)
    shell = shell_on(FakeChannel())
    assert len(shell.run("yes | head -c 900000", Deadline(20, "some words")).output) == 900_000
    with pytest.raises(GuestLostError, match="more than 1 MiB while waiting for some words"):
        shell.run("yes | head -c 2000000", Deadline(20, "some words"))


def test_a_connection_that_breaks_says_what_was_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not the command, which has words of the harness's own in it."""
    monkeypatch.setattr("harness.guest.ssh._END_SECONDS", 0.0)
    with pytest.raises(GuestLostError) as caught:
        shell_on(FakeChannel()).run("exit 0", Deadline(20, "modprobe kmem to end in the guest"))
    assert caught.value.message == (
        "the SSH connection broke while waiting for modprobe kmem to end in the guest: "
        "the guest's shell ended"
    )
