# SPDX-License-Identifier: GPL-2.0-or-later
"""What long operations say during a pytest session, whatever pytest captures.

Lines on standard error, without bars: what a terminal shows of pytest's progress stays whole.
Workers of pytest-xdist say theirs to the session that started them.
"""

from __future__ import annotations

import io
import os
import threading
from contextlib import suppress
from typing import IO, Any, cast

import pytest

from harness.core.progress import Progress, SilentProgress, TerminalProgress

_PIPE = "cxl_ownership_progress"


class LineStream(io.TextIOBase):
    """Writes whole lines to a file descriptor, from any thread.

    Args:
        handle: where to; belongs to this stream, which `close` closes.
        prefix: what each line begins with.
    """

    def __init__(self, handle: int, prefix: str = "") -> None:
        self._handle = handle
        self._prefix = prefix
        self._lock = threading.Lock()
        self._rest = ""
        self._within_a_line = False

    def write(self, text: str) -> int:
        """Write the lines that are complete; the rest waits for its end."""
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                begin = "\n" if self._within_a_line else ""
                self._within_a_line = False
                # In one go: others may write there as well.
                with suppress(OSError):
                    os.write(self._handle, f"{begin}{self._prefix}{line}\n".encode())
        return len(text)

    def others_wrote(self) -> None:
        """Somebody else has written part of a line: the next one here begins below it."""
        self._within_a_line = True

    def close(self) -> None:
        """Close the descriptor; what is written after that is lost."""
        with self._lock:
            if self._handle >= 0:
                os.close(self._handle)
            self._handle = -1
        super().close()


class SessionProgress:
    """The progress of a session, as a plugin of pytest's that knows when pytest writes.

    Args:
        config: of the session, before pytest captures what its tests write.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._stream: LineStream | None = None
        self._pipe: int | None = None
        self._reader: threading.Thread | None = None
        given = getattr(config, "workerinput", None)
        with suppress(OSError):
            if given is None:
                self._stream = LineStream(os.dup(2))
            elif _PIPE in given:
                handle = os.open(given[_PIPE], os.O_WRONLY | os.O_CLOEXEC)
                self._stream = LineStream(handle, f"[{given['workerid']}] ")

    @property
    def progress(self) -> Progress:
        """For whatever takes long."""
        if self._stream is None:
            return SilentProgress()
        return TerminalProgress(cast(IO[str], self._stream))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logstart(self) -> None:
        """The name of a test, or of its file, is on the terminal; not so with workers."""
        if self._pipe is None:
            self._others_wrote()

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A dot, or the like, is on the terminal."""
        if report.when == "call" or not report.passed:
            self._others_wrote()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker of pytest-xdist on this host how to reach this session."""
        if self._stream is None or not getattr(node.gateway.spec, "popen", False):
            return
        if self._pipe is None:
            read, self._pipe = os.pipe()
            self._reader = threading.Thread(target=self._pass_on, args=(read,), daemon=True)
            self._reader.start()
        node.workerinput[_PIPE] = f"/proc/{os.getpid()}/fd/{self._pipe}"

    def pytest_unconfigure(self) -> None:
        """Close all."""
        if self._pipe is not None and self._reader is not None:
            os.close(self._pipe)
            self._reader.join(10.0)  # a worker that hangs keeps its end open
        if self._stream is not None:
            self._stream.close()

    def _others_wrote(self) -> None:
        if self._stream is not None:
            self._stream.others_wrote()

    def _pass_on(self, read: int) -> None:
        with os.fdopen(read, errors="replace") as lines:
            for line in lines:
                with suppress(ValueError):  # the session has ended
                    print(line, end="", file=self._stream, flush=True)
