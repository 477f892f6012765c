# SPDX-License-Identifier: GPL-2.0-or-later
"""The hosts of a matrix: this machine, or those of a hosts file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from harness.core.cache import Store
from harness.core.files import read_text
from harness.core.paths import store_root
from harness.core.progress import Progress
from harness.matrix.hosts import LabHost, read_lab
from harness.matrix.worker_pool import WorkerPool


def this_machine(guests: int | None = None) -> LabHost:
    """Return this machine as a host without SSH."""
    return LabHost(name="here", command=(sys.executable, "-m", "harness"), guests=guests)


def load_hosts(path: Path) -> tuple[LabHost, ...]:
    """Read a hosts file.

    Raises:
        UsageError: it is invalid; with file, line and field.
    """
    text = read_text(path, what="the hosts file", hint="see docs/matrix.md")
    return read_lab(text, str(path)).value.hosts


def connected_pool(hosts: Path | None, progress: Progress, guests: int | None = None) -> WorkerPool:
    """Connect a pool of workers, which the caller closes.

    Args:
        hosts: a hosts file, None for this machine.
        guests: number of concurrent guests of this machine, None for the limit of its cores and
            memory.

    Raises:
        UsageError: no host can run guests.
    """
    chosen: Sequence[LabHost] = load_hosts(hosts) if hosts else (this_machine(guests),)
    pool = WorkerPool(chosen, Store(store_root()), progress)
    try:
        pool.connect()
    except BaseException:
        pool.close()
        raise
    return pool
