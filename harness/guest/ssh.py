# SPDX-License-Identifier: GPL-2.0-or-later
"""Run commands in the guest over SSH, with the host key pinned and a deadline on everything."""

from __future__ import annotations

import logging
import re
import secrets
import shlex
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contract.dmesg import StepMarks
from harness.core.deadline import Deadline
from harness.core.errors import GuestLostError
from harness.guest.keys import RunKeys

if TYPE_CHECKING:
    import paramiko

_RETRY_SECONDS = 0.02
_POLL_SECONDS = 0.1
# From the end of a connection to the report that the machine or the kernel has crashed.
_END_SECONDS = 1.0
_MOST_OUTPUT = 16 << 20

# The cheapest for an emulated CPU.
_KEX = ("curve25519-sha256@libssh.org",)
_CIPHERS = ("aes128-ctr",)
_DIGESTS = ("hmac-sha2-256", "hmac-sha1")


@dataclass(frozen=True)
class GuestCommand:
    """A command that has ended in the guest; its output includes standard error."""

    command: str
    status: int
    output: str


class GuestShell:
    """A shell in the guest. Made by `guest_shell`.

    Attributes:
        marks: of the steps in the kernel's log.
        step: the current one, empty before the first.

    Args:
        channel: a channel that runs `sh`.
        check_machine: raises when QEMU has ended or the guest's kernel has crashed; called while
            waiting, to notice that long before the deadline.
        timeout_scale: multiplies every timeout, >= 1.
    """

    def __init__(
        self,
        channel: paramiko.Channel,
        check_machine: Callable[[], None],
        timeout_scale: float = 1.0,
    ) -> None:
        self._channel = channel
        self._timeout_scale = timeout_scale
        self._check_machine = check_machine
        # Secret, so that no program of the guest can imitate the end of a command.
        self._token = secrets.token_hex(16)
        self._count = 0
        self.marks = StepMarks(secrets.token_hex(16))
        self.step = ""

    def begin(self, step: str) -> str:
        """Begin a step of the scenario.

        Args:
            step: its name, such as `modprobe kmem`.

        Returns:
            The command that writes the step's mark into the kernel's log. Put it in front of the
            step's own command, separated by a semicolon, so that both are sent together.
        """
        self.step = " ".join(step.split())
        mark = shlex.quote(f"<6>{self.marks.begin(self.step)}")
        return f"echo {mark} > /dev/kmsg"

    @contextmanager
    def beside(self, deadline: Deadline) -> Iterator[GuestShell]:
        """Open another shell on the same connection, while a command of this one does not end.

        Raises:
            GuestLostError: the guest refuses.
            DeadlineExpiredError: no reply in time.
        """
        import paramiko

        transport = self._channel.get_transport()
        try:
            channel = transport.open_session(timeout=deadline.check())
            channel.settimeout(deadline.check())
            channel.exec_command("exec sh")
        except TimeoutError:
            raise deadline.error() from None
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise GuestLostError(
                f"the guest refuses another shell: {error}", hint=deadline.hint
            ) from None
        try:
            yield GuestShell(channel, self._check_machine, self._timeout_scale)
        finally:
            channel.close()

    def run(self, command: str, deadline: Deadline) -> GuestCommand:
        """Run a command line in the guest's shell; the deadline is for a kernel of normal speed.

        Raises:
            GuestLostError: the connection broke, or the output is too long.
            DeadlineExpiredError: the command did not end in time.
            HarnessError: `check_machine` raised it.
        """
        import paramiko

        self._count += 1
        deadline = deadline.times(self._timeout_scale)
        mark = f"{self._token}-{self._count}"
        line = f"{{ {command}\n}} </dev/null 2>&1; printf '\\n%s %s\\n' {mark} $?\n"
        try:
            self._channel.settimeout(deadline.check())
            self._channel.sendall(line.encode())
            output, status = self._collect(deadline, mark)
        except TimeoutError:
            self._check_machine()
            raise deadline.error() from None
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise self._lost(deadline.what, str(error) or "closed") from None
        return GuestCommand(command, status, output)

    def close(self) -> None:
        """Log out, before the end of the block of `guest_shell`."""
        transport = self._channel.get_transport()
        if transport is not None:
            transport.close()

    def _collect(self, deadline: Deadline, mark: str) -> tuple[str, int]:
        data = bytearray()
        end = f"\n{mark} ".encode()
        searched = 0
        self._channel.settimeout(_POLL_SECONDS)
        while True:
            try:
                more = self._channel.recv(1 << 16)
            except TimeoutError:
                self._check_machine()
                deadline.check()
                continue
            if not more:
                raise self._lost(deadline.what, "the guest's shell ended")
            data += more
            at = data.find(end, searched)
            if at >= 0 and data.find(b"\n", at + len(end)) >= 0:
                status = bytes(data[at + len(end) :]).split(b"\n", 1)[0]
                if re.fullmatch(rb"\d{1,3}", status) is None:
                    raise self._lost(deadline.what, f"invalid exit status {status[:20]!r}")
                return data[:at].decode(errors="replace"), int(status)
            searched = max(0, at if at >= 0 else len(data) - len(end))
            if len(data) > _MOST_OUTPUT:
                raise GuestLostError(
                    f"the guest printed more than {_MOST_OUTPUT >> 20} MiB while waiting for "
                    f"{deadline.what}",
                    hint="see in serial.log in the evidence what the guest prints",
                )

    def _lost(self, what: str, why: str) -> GuestLostError:
        end = time.monotonic() + _END_SECONDS
        while time.monotonic() < end:
            self._check_machine()
            time.sleep(_RETRY_SECONDS)
        return GuestLostError(
            f"the SSH connection broke while waiting for {what}: {why}",
            hint="see the end of serial.log in the evidence",
        )


@contextmanager
def guest_shell(
    port: int,
    keys: RunKeys,
    deadline: Deadline,
    check_machine: Callable[[], None],
    timeout_scale: float = 1.0,
) -> Iterator[GuestShell]:
    """Log in to a guest whose SSH server is about to start.

    Args:
        port: the port on 127.0.0.1 that is forwarded to the guest.
        keys: the run's keys; a server with another host key is refused.
        deadline: for the login.
        check_machine: see `GuestShell`.
        timeout_scale: see `GuestShell`; also for the login.

    Raises:
        GuestLostError: the server has another key, or refuses the client's.
        DeadlineExpiredError: no login in time.
    """
    import paramiko

    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    deadline = deadline.times(timeout_scale)
    while True:
        check_machine()
        try:
            transport, channel = _log_in(port, keys, deadline)
            break
        except paramiko.AuthenticationException as error:
            raise GuestLostError(
                f"the SSH server on the guest's port is not the guest's: {error}",
                hint="does another program on this host use the port that QEMU chose?",
            ) from None
        except (paramiko.SSHException, OSError, EOFError):
            # Connection reset: the server has not started.
            time.sleep(min(_RETRY_SECONDS, deadline.check()))
    try:
        yield GuestShell(channel, check_machine, timeout_scale)
    finally:
        transport.close()


def _log_in(
    port: int, keys: RunKeys, deadline: Deadline
) -> tuple[paramiko.Transport, paramiko.Channel]:
    import paramiko

    connection = socket.create_connection(("127.0.0.1", port), timeout=deadline.check())
    transport = paramiko.Transport(connection)
    try:
        transport.banner_timeout = deadline.check()
        transport.auth_timeout = deadline.check()
        options = transport.get_security_options()
        options.kex = _KEX
        options.ciphers = _CIPHERS
        options.digests = _DIGESTS
        options.key_types = ("ssh-ed25519",)
        transport.start_client(timeout=deadline.check())
        server = transport.get_remote_server_key()
        if server.asbytes() != keys.host_public_blob():
            raise paramiko.AuthenticationException("unknown host key")
        transport.auth_publickey("root", keys.client_key)
        channel = transport.open_session(timeout=deadline.check())
        channel.exec_command("exec sh")
    except BaseException:
        transport.close()
        raise
    return transport, channel
