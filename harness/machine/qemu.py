# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a QEMU process for the length of a `with` block, with its control connections."""

from __future__ import annotations

import os
import re
import selectors
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any

from harness.core.deadline import Deadline
from harness.core.errors import GuestEndedError, HarnessError, MachineLostError
from harness.core.process import spawn
from harness.core.stale_qemu import owner_environment
from harness.machine.console import Console, console_pipe
from harness.machine.qemu_argv import Control
from harness.machine.qmp import Monitor
from harness.machine.qtest import Qtest

END_SECONDS = 1.0
"""The maximum time from the end of a connection to the end of its process."""

_LOG_TAIL = 2000
_GUEST_ENDS = {
    "guest-reset": "reset its machine without a message: a triple fault?",
    "guest-shutdown": "powered off",
    "guest-panic": "reported a panic to QEMU",
}
_FORWARD = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(?P<port>\d+)\s", re.ASCII)


class Qemu:
    """A running QEMU. Made by `running_qemu`.

    Attributes:
        qtest: its qtest session.
        console: its serial console.
        pid: its process ID.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        qtest: Qtest,
        monitor: socket.socket,
        console: Console,
        log: IO[bytes],
    ) -> None:
        self.qtest = qtest
        self.console = console
        self.pid = process.pid
        self._process = process
        self._monitor_socket = monitor
        self._monitor: Monitor | None = None
        self._log = log

    def connect_monitor(self, seconds: float = 20.0) -> None:
        """Wait for the QMP greeting, which comes once QEMU has built the machine.

        Raises:
            MachineLostError: QEMU ended first, or the greeting did not come in time.
        """
        deadline = Deadline(
            seconds,
            "QEMU to build the machine",
            hint="is the host overloaded? see qemu.log in the evidence, and harness doctor",
        )
        self._await_readable(self._monitor_socket, deadline)
        self._monitor = Monitor(self._monitor_socket, seconds)
        self._ask(self._monitor.connect)

    def command(self, name: str, **arguments: Any) -> Any:
        """Run a QMP command and return its result.

        Raises:
            MachineLostError: QEMU ended, refused, or did not respond in time.
        """
        monitor = self._monitor
        if monitor is None:
            raise RuntimeError("call connect_monitor() first")
        return self._ask(lambda: monitor.command(name, arguments))

    def forwarded_port(self) -> int:
        """The TCP port on 127.0.0.1 that QEMU forwards to the guest's SSH server.

        Raises:
            MachineLostError: QEMU forwards none.
        """
        text = self.command("human-monitor-command", **{"command-line": "info usernet"})
        match = _FORWARD.search(text)
        if match is None:
            raise MachineLostError(
                "QEMU forwards no port to the guest", hint="does this QEMU have slirp?"
            )
        return int(match["port"])

    def log_tail(self) -> str:
        """The end of QEMU's standard error."""
        try:
            size = os.fstat(self._log.fileno()).st_size
            data = os.pread(self._log.fileno(), _LOG_TAIL, max(0, size - _LOG_TAIL))
        except OSError:
            return ""
        return data.decode(errors="replace").strip()

    def check_alive(self, seconds: float = 0.0) -> None:
        """Raise when the process has ended, or must be ended.

        Args:
            seconds: how long to wait for its end. A process closes its connections a moment before
                its exit status is available.

        Raises:
            GuestEndedError: the guest ended it.
            GuestLostError: the guest floods its console.
            MachineLostError: it ended for another reason.
        """
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=seconds)
            raise self._ended()
        self.console.check()

    @contextmanager
    def telling_its_end(self) -> Iterator[None]:
        """Report the end of QEMU instead of a connection that closed because of it."""
        try:
            yield
        except MachineLostError:
            self.check_alive(END_SECONDS)
            raise

    def wait(self, deadline: Deadline) -> int:
        """Wait until QEMU ends by itself and return its exit status."""
        try:
            return self._process.wait(timeout=deadline.check())
        except subprocess.TimeoutExpired:
            raise deadline.error() from None

    def kill(self) -> None:
        """End QEMU immediately; callers that wait for it get a MachineLostError."""
        self._process.kill()

    def close_monitor(self) -> None:
        """End the QMP session; QEMU runs until the block ends."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def _ask(self, action: Callable[[], Any]) -> Any:
        with self.telling_its_end():
            return action()

    def _await_readable(self, connection: socket.socket, deadline: Deadline) -> None:
        pidfd = os.pidfd_open(self._process.pid)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(connection, selectors.EVENT_READ)
                selector.register(pidfd, selectors.EVENT_READ)
                ready = [key.fileobj for key, _ in selector.select(deadline.check())]
        finally:
            os.close(pidfd)
        if pidfd in ready:
            self._process.wait()
            raise self._ended()
        if not ready:
            raise deadline.error()

    def _ended(self) -> HarnessError:
        reason = self._monitor.shutdown_reason() if self._monitor is not None else ""
        if reason in _GUEST_ENDS:
            return GuestEndedError(
                f"the guest {_GUEST_ENDS[reason]}", hint="see the end of serial.log in the evidence"
            )
        status = self._process.returncode
        how = f"killed by signal {-status}" if status < 0 else f"with status {status}"
        tail = self.log_tail()
        return MachineLostError(
            f"QEMU ended {how}" + (f": {tail}" if tail else ""),
            hint="its command line is in qemu.argv in the evidence; see also harness doctor",
        )


@contextmanager
def running_qemu(
    make_argv: Callable[[Control, int], Sequence[str]],
    log: IO[bytes],
    watch_console: Callable[[str], None] = lambda _line: None,
    pass_fds: Sequence[int] = (),
    terminal: bool = False,
) -> Iterator[Qemu]:
    """Start QEMU, paused, with its control connections; it ends with the block.

    Args:
        make_argv: returns the argument list, for QEMU's ends of the connections.
        log: file for QEMU's output, open for reading and writing.
        watch_console: called with every console line, in a thread of its own.
        pass_fds: more open files that QEMU inherits.
        terminal: whether QEMU gets the harness's own standard input and output.
    """
    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(2)]
        for pair in pairs:
            for end in pair:
                stack.callback(end.close)
        (qtest, qtest_far), (qmp, qmp_far) = pairs
        # Opened before the process, to be read until the process has ended.
        near, far_fd = console_pipe()
        screen = Console(near, watch_console)
        stack.callback(screen.close)
        console_far = stack.enter_context(os.fdopen(far_fd, "wb", buffering=0))
        control = Control(qtest_fd=qtest_far.fileno(), qmp_fd=qmp_far.fileno())
        argv = make_argv(control, console_far.fileno())
        process = stack.enter_context(
            spawn(
                argv,
                env=owner_environment(),
                stdin=None if terminal else subprocess.DEVNULL,
                stdout=None if terminal else log,
                stderr=log,
                pass_fds=(*(far.fileno() for _near, far in pairs), console_far.fileno(), *pass_fds),
            )
        )
        for _near, far in pairs:
            far.close()
        console_far.close()
        machine = Qemu(process, Qtest(qtest), qmp, screen, log)
        stack.callback(machine.close_monitor)
        yield machine
