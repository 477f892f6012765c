# SPDX-License-Identifier: GPL-2.0-or-later
"""`ci/nightly` as a program, with builds of the fake kernel and without guests or workers.

A run ends as the text of its kernel says, see `fake_guests.py`; where there is a file NO_RESULT, it
ends as that says instead. Between what a night does there is a pause, so that it can be killed
there, too.
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
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario_files import load_case

PAUSE = float(os.environ.get("NIGHT_PAUSE", "0"))


def job_runner(*_options: object) -> object:
    def run_job(left: Sequence[Combination], _results: Path, ended: Ended) -> None:
        for one in left:
            if (ROOM / "NO_RESULT").exists():
                kind, reason = (ROOM / "NO_RESULT").read_text().split(": ")
                ended(one, None, {"fail_class": kind, "fail_reason": reason})
                continue
            request: KernelRequest = one.request
            (result,) = run_all(None, [load_case(one.scenario)], request)
            ended(one, result.as_json(), ending_of(result))

    return run_job


def paused(name: str) -> None:
    """Let a method of the history take time, before and after."""
    method = getattr(NightHistory, name)

    def slow(*words: object) -> object:
        time.sleep(PAUSE)
        found = method(*words)
        time.sleep(PAUSE)
        return found

    setattr(NightHistory, name, slow)


if __name__ == "__main__":
    without_guests().setattr(cli_nightly, "_job_runner", job_runner)
    if PAUSE:
        for method in ("begin", "add", "add_bisecting", "end"):
            paused(method)
    cli_nightly.nightly(prog_name="ci/nightly")
