# SPDX-License-Identifier: GPL-2.0-or-later
"""`ci/nightly` as a program, with builds of the fake kernel and without guests or workers.

The text of the kernel decides how a run ends, see `fake_guests.py`; a file NO_RESULT
replaces it by the class and the reason of a failure. With NIGHT_PAUSE, writes to the history take
time, so that the night can be killed around it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from fake_guests import ROOM, run_all, without_guests

from harness.cli import nightly as cli_nightly
from harness.matrix.entry import ending_of
from harness.matrix.plan import Combination
from harness.matrix.watched_pool import Ended
from harness.nightly.history import NightHistory
from harness.scenario.scenario_files import load_case

PAUSE = float(os.environ.get("NIGHT_PAUSE", "0"))


def job_runner(*_options: object) -> object:
    def run_job(left: Sequence[Combination], _results: Path, ended: Ended) -> None:
        for entry in left:
            if (ROOM / "NO_RESULT").exists():
                kind, reason = (ROOM / "NO_RESULT").read_text().split(": ")
                ended(entry, None, {"fail_class": kind, "fail_reason": reason})
                continue
            (result,) = run_all(None, [load_case(entry.scenario)], entry.request)
            ended(entry, result.as_json(), ending_of(result))

    return run_job


def paused(name: str) -> None:
    """Pause before and after a method of the history."""
    method = getattr(NightHistory, name)

    def slow(*words: object) -> object:
        time.sleep(PAUSE)
        returned = method(*words)
        time.sleep(PAUSE)
        return returned

    setattr(NightHistory, name, slow)


if __name__ == "__main__":
    without_guests().setattr(cli_nightly, "_job_runner", job_runner)
    if PAUSE:
        for method in ("begin", "add", "add_bisection", "end"):
            paused(method)
    cli_nightly.nightly(prog_name="ci/nightly")
