# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from harness.contract.blocked_tasks import (
    Task,
    blocked_tasks,
    names_the_drivers,
    parse_tasks,
    stuck,
)

# From a 7.2 guest; the name may have spaces and brackets in it.
STAT = """\
1 (init) S 0 1 1 0 -1 4194560 132 2041 0 0 5 31 12 40 20 0 1 0 3 925696 150 0
76 (modprobe) D 75 75 75 0 -1 4194304 98 0 0 0 0 7 0 0 20 0 1 0 260 925696 120 0
77 (a) R (b) R 2 0 0 0 -1 69238880 0 0 0 0 0 3100 0 0 20 0 1 0 261 0 0 0
cat: can't open '/proc/78/stat': No such file or directory
79 (short) R 2 0
"""
WAITS = Task(76, "modprobe", "D", 7)
SPINS = Task(77, "a) R (b", "R", 3100)


def test_tasks_are_read_from_their_stat() -> None:
    assert parse_tasks(STAT) == (Task(1, "init", "S", 31), WAITS, SPINS)


def test_a_task_that_waits_in_the_kernel_and_does_not_move_is_stuck() -> None:
    assert stuck([WAITS], [WAITS], 60) == (WAITS,)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (WAITS, Task(76, "modprobe", "D", 8)),
        (WAITS, Task(76, "modprobe", "R", 7)),
        (Task(76, "modprobe", "S", 7), WAITS),
        (Task(76, "other", "D", 7), WAITS),
        (SPINS, WAITS),
    ],
)
def test_a_task_that_moves_is_not(before: Task, after: Task) -> None:
    assert stuck([before], [after], 60) == ()


@pytest.mark.parametrize(("seconds", "is_stuck"), [(60, True), (62, True), (63, False), (0, False)])
def test_a_task_that_never_leaves_the_kernel_is_stuck(seconds: float, is_stuck: bool) -> None:
    assert bool(stuck([SPINS], [SPINS], seconds)) is is_stuck


@pytest.mark.parametrize(
    "line",
    [
        "[    3.1]  cxl_acpi_probe+0x12/0x40 [cxl_acpi]",
        "[    3.1]  probe+0x12/0x40 [dax_hmem]",
        "[    3.1] RIP: 0010:dax_hmem_platform_probe+0x12/0x40",
        "[<0>] __cxl_decoder_detach+0x1/0x2 [cxl_core]",
        "[    3.1]  dev_dax_kmem_probe+0x12/0x40 [kmem f00d]",
    ],
)
def test_the_drivers_are_known_in_a_trace(line: str) -> None:
    assert names_the_drivers(["x", line])


@pytest.mark.parametrize(
    "line",
    [
        "[    3.1] Modules linked in: dax_cxl kmem dax_hmem dax cxl_pci [last unloaded: kmem]",
        "[    3.1]  platform_probe+0x12/0x40",
        "[    3.1]  fs_dax_get_by_bdev+0x12/0x40 [ext4]",
        "[    3.1] Command line: cxl_acpi",
    ],
)
def test_other_lines_of_a_trace_are_nobodys(line: str) -> None:
    assert not names_the_drivers([line])


def test_of_a_panic_that_lists_blocked_tasks_only_these_are_kept() -> None:
    blocked = (
        "[   66.014765] task:modprobe        state:D stack:0     pid:52    tgid:52    ppid:44",
        "[   66.015711]  ? dax_hmem_platform_probe+0x10/0x40 [dax_hmem]",
    )
    assert blocked_tasks(("[   66.010104] Kernel panic", "[   66.1] idle", *blocked)) == blocked
    assert blocked_tasks(("[   66.010104] Kernel panic",)) == ("[   66.010104] Kernel panic",)
