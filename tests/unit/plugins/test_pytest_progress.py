# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress that a pytest session prints while a test waits for a download or a build."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from harness.plugins.pytest_plugin import LineStream

pytest_plugins = ["pytester"]

# A host with only its progress, and tests that wait for a build.
CONFTEST = """
from types import SimpleNamespace
from harness.runs import prepare

prepare.this_host = lambda progress, *options: SimpleNamespace(progress=progress)
"""
SUITE = """
import pytest

@pytest.mark.parametrize("number", range(4))
def test_first(number):
    print("captured")

@pytest.mark.parametrize("number", range(4))
def test_build(harness_host, number):
    harness_host.progress.note("reading the files (once)")
    with harness_host.progress.compiling(f"kernel {number}", 1200) as compiled:
        compiled(7)
    assert number != 3
"""


def session(pytester: pytest.Pytester, *words: str) -> list[str]:
    """Run a session with default capture; returns the lines of its output."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(SUITE)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=line", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.stdout.splitlines()


def test_a_wait_is_reported_while_it_lasts(pytester: pytest.Pytester) -> None:
    lines = session(pytester)
    at = [at for at, line in enumerate(lines) if line == "building kernel 0 (about 1200 files)"]
    assert len(at) == 1
    assert lines[at[0] - 2 : at[0] + 3] == [
        f"{SUITE_FILE} ....",
        "reading the files (once)",
        "building kernel 0 (about 1200 files)",
        ".",
        "reading the files (once)",
    ]
    assert not any("captured" in line for line in lines)
    # The failure does not repeat it.
    assert sum("building kernel 3" in line for line in lines) == 1


SUITE_FILE = "test_a_wait_is_reported_while_it_lasts.py"


def test_without_a_wait_nothing_is_reported(pytester: pytest.Pytester) -> None:
    lines = session(pytester, "-k", "first")
    assert any(re.match(r"\S+ \.\.\.\. +\[100%\]", line) for line in lines)


def test_workers_report_to_the_session(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    lines = session(pytester, "-n", "2")
    reported = [line for line in lines if "building kernel" in line]
    assert sorted(re.sub(r"^\[gw[01]\] ", "", line) for line in reported) == [
        f"building kernel {number} (about 1200 files)" for number in range(4)
    ], lines
    assert all(re.match(r"\[gw[01]\] ", line) for line in reported)
    # No dot shares a line with progress.
    progress = [line for line in lines if re.search("once|about", line)]
    assert all(re.fullmatch(r"\[gw[01]\] [^.]*", line) for line in progress)


def test_lines_are_whole_and_below_what_pytest_wrote() -> None:
    read, write = os.pipe()
    stream = LineStream(write, "[x] ")
    print("one", "two", file=stream)
    stream.write("thr")
    stream.continue_below()
    stream.write("ee\nfour\n")
    stream.close()
    stream.close()
    with os.fdopen(read) as output:
        assert output.read() == "[x] one two\n\n[x] three\n[x] four\n"
