# SPDX-License-Identifier: GPL-2.0-or-later
"""What benchmarks measure around many runs: a whole catalogue, every load order of a scenario."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.boots import harness

from harness.runs.catalogue import load_case, scenario_names


def single_runs(kernel: str) -> tuple[str, ...]:
    """The scenarios that are one guest on this kernel as it is."""
    cases = [load_case(name) for name in scenario_names()]
    prebuilt = not kernel.startswith("build:")
    return tuple(
        case.name
        for case in cases
        if isinstance(case.scenario.guest.load, tuple)
        and not (prebuilt and case.scenario.kernel.configs)
    )


def timed_results(words: list[str]) -> tuple[float, list[dict[str, Any]]]:
    """Seconds that `harness run` takes, and its results."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        seconds = harness("run", *words, "--json", str(results))
        return seconds, json.loads(results.read_text())
