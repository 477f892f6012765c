# SPDX-License-Identifier: GPL-2.0-or-later
"""What long operations report to while they run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Protocol

from harness.core.errors import printable

_LINE_EVERY = 10.0


class Progress(Protocol):
    """A listener of long operations."""

    def note(self, text: str) -> None:
        """Say one line of text, without a newline."""

    def download(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Begin a download of `total` bytes (> 0), which ends with the block.

        The block gets a function to call with the bytes that are there so far, from 0 to `total`.
        """

    def compiling(
        self, what: str, estimate: int | None
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Begin to compile about `estimate` files (None: nobody knows), which ends with the block.

        The block gets a function to call, every second or so, with the files compiled so far.
        """


class SilentProgress:
    """Says nothing."""

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
    """Tells a person: lines, and a bar for a download when the stream is a terminal.

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
        """Draw a bar, or write a line at the start and now and then without a terminal."""
        advance = self._bar if self._stream.isatty() else self._lines
        with advance(what, total) as done:
            yield done

    @contextmanager
    def compiling(self, what: str, estimate: int | None) -> Iterator[Callable[[int], None]]:
        """Draw a bar, or write a line now and then without a terminal."""
        advance = self._compiling_bar if self._stream.isatty() else self._compiling_lines
        with advance(what, estimate) as done:
            yield done

    @contextmanager
    def _compiling_lines(self, what: str, estimate: int | None) -> Iterator[Callable[[int], None]]:
        about = f" of about {estimate}" if estimate else ""
        self.note(f"building {what}" + (f" (about {estimate} files)" if estimate else ""))
        begin = last = time.monotonic()

        def done(count: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _LINE_EVERY:
                last = now
                self.note(
                    f"building {what}: {count}{about} files compiled, {_elapsed(now - begin)}"
                )

        yield done

    @contextmanager
    def _compiling_bar(self, what: str, estimate: int | None) -> Iterator[Callable[[int], None]]:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        about = f"/{estimate}" if estimate else ""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}" + about + " files", markup=False),
            TimeElapsedColumn(),
        )
        with Bars(*columns, console=Console(file=self._stream), transient=True) as bars:
            task = bars.add_task(f"building {what}", total=estimate)
            yield lambda count: bars.update(task, completed=count)

    @contextmanager
    def _lines(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        self.note(f"fetching {what} ({_megabytes(total)})")
        last = time.monotonic()

        def done(count: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _LINE_EVERY:
                last = now
                self.note(f"fetching {what}: {_megabytes(count)} of {_megabytes(total)}")

        yield done

    @contextmanager
    def _bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        # rich takes longer to import than a cached kernel takes to find.
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
        )
        with Bars(*columns, console=Console(file=self._stream), transient=True) as bars:
            task = bars.add_task(f"fetching {what}", total=total)
            yield lambda count: bars.update(task, completed=count)


def _elapsed(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
