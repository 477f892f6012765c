# SPDX-License-Identifier: GPL-2.0-or-later
"""The exit code of a command whose reader has closed the pipe."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("run", "no_such_scenario"), 2),
        (("report", "no_such_file", "--mail"), 2),
        (("bisect-step", "no_such_scenario"), 128),
        (("bisect-step", "--frobnicate"), 128),
    ],
)
def test_wrong_input_has_its_exit_code_without_a_reader(words: tuple[str, ...], code: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "harness", *words],
            stdout=subprocess.DEVNULL,
            stderr=writer,
            timeout=120,
        )
    finally:
        os.close(writer)
    assert done.returncode == code
