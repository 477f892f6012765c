# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks of ci/bench_bisect."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import Any

import pytest

from harness.core.paths import PROJECT

COMMITS = [f"{number:040x}" for number in range(65)]


@pytest.fixture(scope="module")
def bench() -> Any:
    loader = SourceFileLoader("bench_bisect", str(PROJECT / "ci" / "bench_bisect"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def bisected(steps: int = 8, overhead: float = 0.4, first: int = 37) -> dict[str, Any]:
    made = [{"short": f"c{number}", "seconds": {"overhead": 0.1}} for number in range(steps)]
    made[-1]["seconds"] = {"overhead": overhead}
    return {"first": {"commit": COMMITS[first]}, "steps": made}


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (bisected(), []),
        (bisected(steps=9), ["9 steps"]),
        (bisected(overhead=0.5), ["c7", "0.50 s"]),
        (bisected(first=36), ["another commit"]),
        ({**bisected(), "first": None}, ["another commit"]),
    ],
)
def test_problems(bench: Any, result: dict[str, Any], words: list[str]) -> None:
    lines = bench.problems(result, COMMITS, 37)
    assert len(lines) == bool(words)
    for word in words:
        assert word in lines[0]
