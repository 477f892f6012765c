# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import io
import subprocess
import sys

import pytest

from harness.core import progress
from harness.core.progress import Progress, SilentProgress, TerminalProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def fetch(listener: Progress) -> None:
    listener.note("[bold] is text")
    with listener.download("a [kernel]", 4_000_000) as done:
        done(0)
        done(2_000_000)
        done(4_000_000)


def test_silence() -> None:
    fetch(SilentProgress())


def test_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    stream = io.StringIO()
    fetch(TerminalProgress(stream))
    assert stream.getvalue().splitlines() == [
        "[bold] is text",
        "fetching a [kernel] (4.0 MB)",
        "fetching a [kernel]: 0.0 MB of 4.0 MB",
        "fetching a [kernel]: 2.0 MB of 4.0 MB",
        "fetching a [kernel]: 4.0 MB of 4.0 MB",
    ]


def test_a_fast_download_is_one_line() -> None:
    stream = io.StringIO()
    fetch(TerminalProgress(stream))
    assert len(stream.getvalue().splitlines()) == 2


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    fetch(TerminalProgress(stream))
    assert "fetching a [kernel]" in stream.getvalue()
    assert "4.0 MB of 4.0 MB" in stream.getvalue()


def compile_files(listener: Progress, estimate: int | None) -> None:
    with listener.compiling("a [kernel]", estimate) as done:
        done(0)
        done(600)


@pytest.mark.parametrize(("estimate", "about"), [(1200, " (about 1200 files)"), (None, "")])
def test_a_build(estimate: int | None, about: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_files(SilentProgress(), estimate)
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    stream = io.StringIO()
    compile_files(TerminalProgress(stream), estimate)
    of = " of about 1200" if estimate else ""
    assert stream.getvalue().splitlines() == [
        f"building a [kernel]{about}",
        f"building a [kernel]: 0{of} files compiled, 0 s",
        f"building a [kernel]: 600{of} files compiled, 0 s",
    ]
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    compile_files(TerminalProgress(terminal), estimate)
    assert "building a [kernel]" in terminal.getvalue()
    assert f"600{of} files compiled" in terminal.getvalue()


def test_rich_is_not_imported_before_it_is_needed() -> None:
    script = "import sys, harness.core.progress; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
