# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress reports of long operations."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Protocol

from harness.core.errors import printable

_LINE_EVERY = 10.0


class Progress(Protocol):
    """A receiver of progress reports."""

    def note(self, text: str) -> None:
        """Report one line of text, without a newline."""

    def download(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Report a download of `total` bytes (> 0), which ends with the block.

        The block gets a function to call with the bytes received so far, from 0 to `total`.
        """

    def compiling(
        self, what: str, estimate: int | None
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Report the compilation of about `estimate` files (None: unknown) in the block.

        The block gets a function to call, about every second, with the files compiled so far.
        """


class SilentProgress:
    """Drop all reports."""

    def note(self, text: str) -> None:
        """Drop the text."""

    @contextmanager
    def download(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Drop the numbers."""
        yield lambda done: None

    @contextmanager
    def compiling(self, what: str, estimate: int | None) -> Iterator[Callable[[int], None]]:
        """Drop the numbers."""
        yield lambda done: None


class TerminalProgress:
    """Print lines, and a bar for a download when the stream is a terminal.

    Args:
        stream: where to write; standard error when None.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr

    def note(self, text: str) -> None:
        """Write one line."""
        print(printable(text), file=self._stream, flush=True)

    @contextmanager
    def download(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Draw a bar, or write a line at the start and every ten seconds without a terminal."""

        def state(count: int, seconds: float) -> str:
            return f"{_megabytes(count)} of {_megabytes(total)}"

        size = f" ({_megabytes(total)})"
        with self._task(f"fetching {what}", size, total, state) as done:
            yield done

    @contextmanager
    def compiling(self, what: str, estimate: int | None) -> Iterator[Callable[[int], None]]:
        """Draw a bar, or write a line at the start and every ten seconds without a terminal."""
        about = f" of about {estimate}" if estimate else ""

        def state(count: int, seconds: float) -> str:
            return f"{count}{about} files compiled, {_elapsed(seconds)}"

        size = f" (about {estimate} files)" if estimate else ""
        with self._task(f"building {what}", size, estimate, state) as done:
            yield done

    @contextmanager
    def _task(
        self, text: str, size: str, total: int | None, state: Callable[[int, float], str]
    ) -> Iterator[Callable[[int], None]]:
        begin = last = time.monotonic()

        def line(count: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _LINE_EVERY:
                last = now
                self.note(f"{text}: {state(count, now - begin)}")

        if not self._stream.isatty():
            self.note(f"{text}{size}")
            yield line
            return
        # Importing rich takes longer than finding a kernel in the store.
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}", markup=False), BarColumn())
        more = (TextColumn("{task.fields[state]}", markup=False), TimeRemainingColumn())
        with Bars(*columns, *more, console=Console(file=self._stream), transient=True) as bars:
            task = bars.add_task(text, total=total, state="")

            def bar(count: int) -> None:
                bars.update(task, completed=count, state=state(count, time.monotonic() - begin))

            yield bar


def _elapsed(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
