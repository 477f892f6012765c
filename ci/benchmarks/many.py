# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure many runs: all scenarios, every load order of a scenario."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.boots import harness

from harness.scenario.scenario_files import load_case, scenario_names


def single_runs(kernel: str) -> tuple[str, ...]:
    """Return the scenarios with one guest on this kernel without a build."""
    cases = [load_case(name) for name in scenario_names()]
    prebuilt = not kernel.startswith("build:")
    return tuple(
        case.name
        for case in cases
        if isinstance(case.scenario.guest.load, tuple)
        and not (prebuilt and case.scenario.kernel.configs)
    )


def timed_results(words: list[str]) -> tuple[float, list[dict[str, Any]]]:
    """Return the seconds and the results of `harness run`."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        seconds = harness("run", *words, "--json", str(results))
        return seconds, json.loads(results.read_text())


def seconds_in_qemu(words: list[str]) -> tuple[float, float, int]:
    """Measure the time that a command of the harness spends in QEMU.

    Returns:
        Wall seconds of the command; seconds of all its QEMUs on any core, as they were seen last,
        which leaves out up to 50 ms of each; how many QEMUs there were.
    """
    tick = os.sysconf("SC_CLK_TCK")
    before = set(_qemus())
    seen: dict[str, int] = {}
    begin = time.monotonic()
    with subprocess.Popen(["harness", *words], stdout=subprocess.DEVNULL) as command:
        while command.poll() is None:
            seen |= {pid: ticks for pid, ticks in _qemus().items() if pid not in before}
            time.sleep(0.05)
    return time.monotonic() - begin, sum(seen.values()) / tick, len(seen)


def _qemus() -> dict[str, int]:
    """Return the running QEMU processes, with their clock ticks."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        if "(qemu-system" in head:
            words = rest.split()
            found[path.parent.name] = int(words[11]) + int(words[12])
    return found
