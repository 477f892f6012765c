# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line as a program of its own, with builds of the fake kernel and without guests.

A run fails where the text of the kernel says "stranded", is lost where it says "lost", and kills
this whole process, as the machine's OOM killer may, where there is a file KILL_AT: it has the
number of runs until then.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cli_fixtures import FIT_QEMU
from fake_sources import small_configs

from harness.cli.main import main
from harness.contract.result import RunResult, Verdict
from harness.core.cache import Store
from harness.core.paths import store_root
from harness.core.progress import SilentProgress
from harness.kernels.build.config import plan_config
from harness.kernels.resolve import resolve_kernel
from harness.runs.session import Session
from harness.scenario.kernel_request import KernelRequest, as_request
from harness.scenario.scenario_files import Case

ROOM = Path(os.environ["HARNESS_STORE"]).parent


def run_all(
    _session: Session | None, cases: Sequence[Case], kernel: KernelRequest
) -> Iterator[RunResult]:
    for case in cases:
        built = resolve_kernel(kernel, Store(store_root()), SilentProgress())
        text = built.image.read_bytes().decode(errors="replace")
        end = ROOM / "KILL_AT"
        if end.exists():
            left = int(end.read_text())
            end.write_text(str(left - 1))
            if left == 0:
                end.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        verdict = Verdict.INCONCLUSIVE if "lost" in text else Verdict.PASS
        verdict = Verdict.FAIL if "stranded" in text else verdict
        yield RunResult(case.name, as_request(kernel), "per_range", verdict=verdict)


def without_guests() -> pytest.MonkeyPatch:
    """Let this process build the fake kernel, and start no guest."""
    configs = ROOM / "configs"
    if not configs.exists():
        small_configs(configs)
    patched = pytest.MonkeyPatch()
    patched.setattr(
        "harness.kernels.build.from_source.plan_config", lambda names: plan_config(names, configs)
    )
    patched.setattr("harness.runs.prepare.require_qemu", lambda _asked: FIT_QEMU)
    patched.setattr(Session, "run_all", run_all)
    return patched


if __name__ == "__main__":
    without_guests()
    main.main(sys.argv[1:], prog_name="harness")
