# SPDX-License-Identifier: GPL-2.0-or-later
"""Inputs with which ci/fuzz_parsers crashed a parser, and those it starts with."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_targets import FOUND, TARGETS

CRASHES = sorted(path for path in FOUND.glob("*/*") if path.is_file())


@pytest.mark.parametrize("path", CRASHES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_input_that_crashed_a_parser_is_a_clean_error(path: Path) -> None:
    TARGETS[path.parent.name].run(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_every_parser_has_seeds_and_reads_them(name: str) -> None:
    seeds = list(TARGETS[name].seeds())
    assert seeds
    for seed in seeds:
        TARGETS[name].run(seed)
    TARGETS[name].run(b"")
    TARGETS[name].run(b"\xff\x00\n" * 3)


def test_every_folder_of_crashes_belongs_to_a_parser() -> None:
    assert {path.name for path in FOUND.glob("*/") if path.is_dir()} <= set(TARGETS)
