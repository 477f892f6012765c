# SPDX-License-Identifier: GPL-2.0-or-later
"""A fake worker: the name of the scenario decides the outcome.

    python fake_worker.py HOST [refuse|mute|babble|no_qemu|full|old|hang_all]

`early_HOST` ends the worker on that host immediately, `kill_HOST` later, `kill` on every host;
`hang` never ends; other names pass. Text after a hyphen is ignored.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import harness.matrix.worker as worker
from harness.core.errors import UsageError
from harness.core.progress import Progress
from harness.machine.qemu_binary import QemuBinary
from harness.matrix.entry import Describe, Say
from harness.matrix.matrix_file import Capacity
from harness.matrix.plan import Combination

HOST, *HOW = sys.argv[1:]


class FakeRun:
    def __init__(
        self,
        combination: Combination,
        output: Path,
        progress: Progress,
        *,
        describe: Describe,
        shared: bool,
        stored: str | None = None,
    ) -> None:
        self._scenario = combination.scenario.partition("-")[0]
        self._told = {"output": str(output), "shared": shared, "stored": stored}

    def run(self, say: Say) -> None:
        if self._scenario == f"early_{HOST}":
            os._exit(7)
        say({"status": "started"})
        if self._scenario in ("kill", f"kill_{HOST}"):
            os._exit(7)
        while self._scenario == "hang" or "hang_all" in HOW:
            time.sleep(0.01)
        say({"status": "running", "type": "file", "path": "evidence/x", "log": b"\0\xff"})
        say({"status": "finished", "result": "pass", "host": HOST, "told": self._told})


def no_qemu() -> QemuBinary:
    raise UsageError("QEMU is not installed", hint="install it")


def full(place: Path) -> None:
    raise UsageError("1 MiB are free, runs want 256 MiB", where=str(place), hint="free some")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    vars(worker)["CombinationRun"] = FakeRun
    vars(worker)["this_capacity"] = lambda: Capacity(2, 99_999)
    fit = QemuBinary(Path("/q"), (10, 0, 2), "10.0.2", "0", True, ())
    vars(worker)["require_qemu"] = lambda: fit
    if "refuse" in HOW:
        sys.exit("ssh: connect to host lab port 22: Connection refused")
    if "babble" in HOW:
        print("Welcome to the lab!", flush=True)
    if "mute" in HOW:
        time.sleep(60)
    if "no_qemu" in HOW:
        vars(worker)["require_qemu"] = no_qemu
    if "full" in HOW:
        vars(worker)["_require_room"] = full
    if "old" in HOW:
        vars(worker)["harness_version"] = lambda: "0.0.1+old"
    worker.serve_standard_input(lambda result: ())


if __name__ == "__main__":
    main()
