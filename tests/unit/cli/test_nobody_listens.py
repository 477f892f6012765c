# SPDX-License-Identifier: GPL-2.0-or-later
"""Whoever reads the messages may go away: what a command ends with is the same."""

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
def test_wrong_input_that_nobody_hears_of_is_no_broken_contract(
    words: tuple[str, ...], code: int
) -> None:
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
