# SPDX-License-Identifier: GPL-2.0-or-later
"""The hosts that a matrix runs on: this machine, or those of a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.paths import store_root
from harness.core.progress import Progress
from harness.matrix.hosts import LabHost, read_lab
from harness.matrix.worker_pool import WorkerPool


def this_machine(guests: int | None = None) -> LabHost:
    """The machine that this runs on, as a host without SSH."""
    return LabHost(name="here", command=(sys.executable, "-m", "harness"), guests=guests)


def load_hosts(path: Path) -> tuple[LabHost, ...]:
    """Read a file of hosts.

    Raises:
        UsageError: it is wrong; names file, line and field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the hosts cannot be read: {error}", where=str(path), hint="see docs/matrix.md"
        ) from None
    return read_lab(text, str(path)).value.hosts


def connected_pool(hosts: Path | None, progress: Progress, guests: int | None = None) -> WorkerPool:
    """Workers that wait for combinations; whoever has them closes them.

    Args:
        hosts: a file of hosts, None for this machine.
        progress: hears of hosts that are lost.
        guests: how many guests this machine runs at once, None for as many as it can.

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
