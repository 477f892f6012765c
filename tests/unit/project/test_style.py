# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from harness.core.paths import PROJECT

INSTALL = "install the project's tools: pip install -e '.[dev]'"
CHECKED = ("harness", "tests")


def run_tool(*words: str) -> None:
    """Run a Python tool over the project; the test fails with what it printed."""
    if importlib.util.find_spec(words[0]) is None:
        pytest.fail(f"{words[0]} is missing; {INSTALL}", pytrace=False)
    done = subprocess.run(
        [sys.executable, "-m", *words, *CHECKED],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode != 0:
        pytest.fail(f"{' '.join(words)}:\n{done.stdout}{done.stderr}", pytrace=False)


def test_ruff_finds_nothing() -> None:
    run_tool("ruff", "check", "--quiet")


def test_the_code_is_formatted() -> None:
    run_tool("ruff", "format", "--check", "--quiet")


def test_the_types_fit() -> None:
    run_tool("mypy")


def test_a_tool_that_finds_something_or_is_missing_fails_the_test() -> None:
    with pytest.raises(pytest.fail.Exception, match="no_such_tool is missing; install"):
        run_tool("no_such_tool")
    with pytest.raises(pytest.fail.Exception, match="unexpected argument"):
        run_tool("ruff", "check", "--no-such-option")
