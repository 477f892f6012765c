# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's serial console: lines as they come, and waiting for one of them."""

from __future__ import annotations

import re
import socket
from collections import deque
from collections.abc import Callable

from harness.deadline import Deadline
from harness.errors import GuestLostError

_KEPT_LINES = 400
_LONGEST_LINE = 4096
_ESCAPE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1bc|[\x00-\x08\x0b-\x1f\x7f]")


class Console:
    """The harness's end of the console. QEMU itself writes everything to the serial log.

    Args:
        connection: the harness's end of the console's socket pair.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._partial = b""
        self._lines: deque[str] = deque()
        self._tail: deque[str] = deque(maxlen=_KEPT_LINES)
        self.closed = False

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    def tail(self) -> tuple[str, ...]:
        """The last lines seen, oldest first, at most 400."""
        return tuple(self._tail)

    def poll(self) -> tuple[str, ...]:
        """The complete lines that have arrived since the last call, without waiting."""
        self._receive(0.0)
        lines = tuple(self._lines)
        self._lines.clear()
        return lines

    def await_line(
        self, wanted: Callable[[str], bool], deadline: Deadline, on_line: Callable[[str], None]
    ) -> str:
        """Wait for a line that `wanted` accepts and return it.

        Args:
            wanted: whether this is the line.
            deadline: by when.
            on_line: called for every line before that; may raise to end the wait.

        Raises:
            GuestLostError: the console closed.
            DeadlineExpiredError: the line did not come.
        """
        while True:
            while self._lines:
                line = self._lines.popleft()
                if wanted(line):
                    return line
                on_line(line)
            if self.closed:
                raise GuestLostError(
                    f"the guest's console closed before {deadline.what}",
                    hint="QEMU ended or the guest powered off; see serial.log in the evidence",
                )
            self._receive(deadline.check())

    def _receive(self, seconds: float) -> None:
        self._socket.settimeout(seconds)
        try:
            data = self._socket.recv(1 << 16)
        except (TimeoutError, BlockingIOError):
            return
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return
        *whole, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > _LONGEST_LINE:
            whole.append(self._partial)
            self._partial = b""
        for raw in whole:
            line = _ESCAPE.sub(b"", raw[:_LONGEST_LINE]).decode(errors="replace")
            self._lines.append(line)
            self._tail.append(line)
