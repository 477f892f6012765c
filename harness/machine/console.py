# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the guest's serial console, and wait for lines."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
from collections import deque
from collections.abc import Callable

from harness.core.deadline import Deadline
from harness.core.errors import GuestLostError, MachineLostError

_KEPT_LINES = 400
_LONGEST_LINE = 4096
_ESCAPE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1bc|[\x00-\x08\x0b-\x1f\x7f]")


# Far more than any guest prints. QEMU writes all of it to serial.log, without a limit.
MOST_BYTES = 64 << 20

# A busy host may leave the console unread for a while.
_PIPE_SIZE = 1 << 20


def console_pipe() -> tuple[int, int]:
    """A pipe for a console: the end that is read, and the guest's.

    Not a socket pair: QEMU writes byte by byte, each byte takes a buffer of its own in a socket,
    and bytes beyond some 300 buffers are lost (hw/char/serial.c).
    """
    near, far = os.pipe()
    with contextlib.suppress(OSError):  # the user has many pipes; 64 KiB are enough as well
        fcntl.fcntl(far, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    return near, far


class Console:
    """The harness's end of the console. QEMU itself writes everything to the serial log.

    A thread reads it all the time: a guest with a full console stops.

    Args:
        fd: the pipe; closed when the guest's end is.
        watch: called in the reading thread with every line.
    """

    def __init__(self, fd: int, watch: Callable[[str], None]) -> None:
        self._fd = fd
        self._watch = watch
        self._changed = threading.Condition()
        self._unread: deque[str] = deque(maxlen=100_000)
        self._tail: deque[str] = deque(maxlen=_KEPT_LINES)
        self._closed = False
        self._size = 0
        self._thread = threading.Thread(target=self._read, name="console", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise MachineLostError(
                f"cannot start a thread for the guest's console: {error}",
                hint="raise ulimit -u and -v, close something, or run fewer guests concurrently",
            ) from None

    def tail(self) -> tuple[str, ...]:
        """The last lines seen, oldest first, at most 400."""
        with self._changed:
            return tuple(self._tail)

    @property
    def closed(self) -> bool:
        """True once QEMU has closed its end."""
        with self._changed:
            return self._closed

    def check(self) -> None:
        """Raise when the guest's console log has become too large.

        Raises:
            GuestLostError: it has more than `MOST_BYTES`.
        """
        if self._size > MOST_BYTES:
            raise GuestLostError(
                f"the guest has printed more than {MOST_BYTES >> 20} MiB on its console",
                hint="see in serial.log in the evidence what the guest prints",
            )

    def await_closed(self, seconds: float) -> None:
        """Wait until all output of a QEMU that has ended is read."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, seconds)

    def await_line(self, accepts: Callable[[str], bool], deadline: Deadline) -> str:
        """Wait for an accepted line, among those after the last accepted one.

        Raises:
            GuestLostError: the console closed, or the guest floods it.
            DeadlineExpiredError: no such line in time.
        """
        with self._changed:
            while True:
                while self._unread:
                    line = self._unread.popleft()
                    if accepts(line):
                        return line
                self.check()
                if self._closed:
                    raise GuestLostError(
                        f"the guest's console closed while waiting for {deadline.what}",
                        hint="QEMU ended or the guest powered off; see serial.log in the evidence",
                    )
                self._changed.wait(deadline.check())

    def close(self) -> None:
        """Stop reading. QEMU must have ended, or its end must be closed."""
        self._thread.join(5.0)

    def _read(self) -> None:
        partial = b""
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError:
                data = b""
            self._size += len(data)
            *whole, partial = (partial + data).split(b"\n")
            if len(partial) > _LONGEST_LINE or (not data and partial):
                whole.append(partial)
                partial = b""
            lines = [
                _ESCAPE.sub(b"", raw[:_LONGEST_LINE]).decode(errors="replace") for raw in whole
            ]
            for line in lines:
                self._watch(line)
            with self._changed:
                self._unread.extend(lines)
                self._tail.extend(lines)
                self._closed = not data
                self._changed.notify_all()
            if not data:
                os.close(self._fd)
                return
