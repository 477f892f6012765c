# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line as a program of its own for `ci/crowd`: builds of the fake kernel, no guests.

A run finds its kernel in the store, holds it in use as a real one does, has a program beside it
that stands for QEMU, and passes when the kernel and its modules are those of the tree that it was
asked for. CROWD_ROOM is a folder with `configs`; CROWD_GRACE the seconds for which a kernel that
was just found is not pruned.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cli_fixtures import FIT_QEMU

from harness.cli.main import main
from harness.contract.result import RunResult, Verdict
from harness.core.cache import Store
from harness.core.kernel import Kernel
from harness.core.paths import store_root
from harness.core.process import spawn
from harness.core.progress import SilentProgress
from harness.kernels.build.config import plan_config
from harness.kernels.resolve import resolve_kernel
from harness.kernels.store import kernel_in_use
from harness.runs.session import Session
from harness.scenario.kernel_request import KernelRequest, as_request
from harness.scenario.scenario_files import Case


def run_all(_session: Session, cases: Sequence[Case], kernel: KernelRequest) -> Iterator[RunResult]:
    for case in cases:
        built = resolve_kernel(kernel, Store(store_root()), SilentProgress())
        with kernel_in_use(built), spawn(["sleep", "60"]):
            time.sleep(random.uniform(0.2, 2.0))
            verdict = Verdict.PASS if is_of_its_tree(built, kernel) else Verdict.FAIL
        yield RunResult(case.name, as_request(kernel), "per_range", verdict=verdict)


def is_of_its_tree(kernel: Kernel, request: KernelRequest) -> bool:
    """Whether the image has the text of the tree, and every module is there."""
    assert kernel.modules is not None
    name = Path(request.spec.removeprefix("build:")).name
    modules = list(kernel.modules.rglob("*.ko"))
    return f"/* {name} */".encode() in kernel.image.read_bytes() and all(
        path.read_bytes() for path in modules
    )


if __name__ == "__main__":
    configs = Path(os.environ["CROWD_ROOM"]) / "configs"
    patched = pytest.MonkeyPatch()
    patched.setattr(
        "harness.kernels.build.from_source.plan_config", lambda names: plan_config(names, configs)
    )
    patched.setattr("harness.kernels.prune._GRACE_SECONDS", float(os.environ["CROWD_GRACE"]))
    patched.setattr("harness.runs.prepare.require_qemu", lambda _asked: FIT_QEMU)
    patched.setattr(Session, "run_all", run_all)
    main.main(sys.argv[1:], prog_name="harness")
