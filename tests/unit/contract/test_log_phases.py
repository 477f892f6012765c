# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from dataclasses import replace

import pytest
from machines import record

from harness.contract.dmesg import (
    KERNEL,
    USERSPACE,
    DmesgError,
    Record,
    StepMarks,
    in_phases,
    kernel_warnings,
    require_whole,
    without_marks,
)

MARKS = StepMarks("0123456789abcdef")
INIT = record(6, "Run /init as init process")


def phases_of(*texts: str) -> list[str]:
    return [one.phase for one in in_phases([record(6, text) for text in texts], MARKS)]


def test_the_log_is_cut_at_the_first_process_and_at_each_step() -> None:
    assert phases_of(
        "Linux version 7.2",
        "Run /init as init process",
        "virtio_net",
        MARKS.line("modprobe cxl_acpi"),
        "cxl root0: x",
        MARKS.line("modprobe kmem"),
        "kmem dax0.0: x",
    ) == [KERNEL, USERSPACE, USERSPACE, "modprobe cxl_acpi", "modprobe kmem"]


@pytest.mark.parametrize(
    "text",
    [
        "harness: modprobe kmem",
        "harness: modprobe kmem [fedcba9876543210]",
        "harness: modprobe kmem []",
        f"cxl root0: harness: modprobe kmem [{MARKS.token}]",
        f"harness: modprobe kmem [{MARKS.token}] and more",
        f"harness: modprobe kmem {MARKS.token}",
    ],
)
def test_nothing_that_does_not_know_the_word_makes_a_step(text: str) -> None:
    assert MARKS.step_of(text) is None
    assert phases_of(text, "x") == [KERNEL, KERNEL]


def test_a_later_process_is_no_second_start_of_userspace() -> None:
    later = "Run /init as init process"
    assert phases_of(MARKS.line("reload"), later) == ["reload"]


def test_a_log_without_marks_is_boot_and_userspace() -> None:
    assert phases_of("a", INIT.text, "b") == [KERNEL, USERSPACE, USERSPACE]


def test_a_complaint_says_its_time_and_its_phase() -> None:
    warning = replace(record(4, "kmem dax0.0: x"), time=3.25)
    log = in_phases([record(6, MARKS.line("modprobe kmem")), warning], MARKS)
    (found,) = kernel_warnings(log)
    assert str(found) == "a warning: kmem dax0.0: x (during modprobe kmem)"
    assert found.line == "[    3.250000] (modprobe kmem) kmem dax0.0: x"


def test_a_trace_is_of_the_phase_in_which_it_began() -> None:
    log = in_phases(
        [
            record(6, MARKS.line("modprobe dax_cxl")),
            record(6, "------------[ cut here ]------------"),
            record(4, "WARNING: at __flush_work+0x352/0x390, CPU#1: kworker/1:1/36"),
            record(6, MARKS.line("observe")),
            record(4, "---[ end trace 0000000000000000 ]---"),
        ],
        MARKS,
    )
    (found,) = kernel_warnings(log)
    assert found.record.phase == "modprobe dax_cxl"


def whole(*texts: str, begun: tuple[str, ...] = (), from_boot: bool = False) -> None:
    marks = StepMarks(MARKS.token, list(begun))
    require_whole([record(6, text) for text in texts], marks, from_boot=from_boot)


def test_a_log_with_every_mark_in_order_is_whole() -> None:
    one, two = (MARKS.line(step) for step in ("modprobe kmem", "reload"))
    whole("x")
    whole("x", one, "y", two, begun=("modprobe kmem", "reload"))
    whole("Linux version 7.2", one, begun=("modprobe kmem",), from_boot=True)


@pytest.mark.parametrize(
    ("texts", "from_boot", "why"),
    [
        (["y", MARKS.line("reload")], False, "lost the beginning of 'modprobe kmem'"),
        (["y"], True, "lost the beginning of 'modprobe kmem'"),
        ([MARKS.line("reload"), MARKS.line("modprobe kmem")], False, "it has marks of 2"),
        # What has read the first mark can write others, even one that ends the steps.
        ([*map(MARKS.line, ("modprobe kmem", KERNEL, "reload"))], False, "marks of 3 steps, of 2"),
        ([*map(MARKS.line, ("modprobe kmem", "reload"))], True, "has lost its beginning"),
    ],
)
def test_a_log_that_lacks_what_may_count_is_refused(
    texts: list[str], from_boot: bool, why: str
) -> None:
    with pytest.raises(DmesgError, match=why):
        whole(*texts, begun=("modprobe kmem", "reload"), from_boot=from_boot)


def test_a_mark_that_is_written_is_expected_in_the_log() -> None:
    marks = StepMarks(MARKS.token)
    assert marks.begin("reload") == MARKS.line("reload")
    assert marks.begun == ["reload"]


TRACE = [
    record(4, "------------[ cut here ]------------"),
    record(4, "WARNING: at __flush_work+0x352/0x390, CPU#1: kworker/1:1/36"),
    record(4, "Call Trace:"),
    record(4, "---[ end trace 0000000000000000 ]---"),
]


@pytest.mark.parametrize("at", range(len(TRACE) + 1))
@pytest.mark.parametrize("trace", [TRACE, TRACE[:2], TRACE[1:]])
def test_a_mark_is_never_part_of_a_complaint(trace: list[Record], at: int) -> None:
    mark = record(6, MARKS.line("modprobe kmem"))
    (found,) = kernel_warnings(in_phases([*trace[:at], mark, *trace[at:]], MARKS))
    (alone,) = kernel_warnings(trace)
    assert found.record.text == alone.record.text
    assert found.kind == "warn"


TOKEN = "863c" * 8


@pytest.mark.parametrize(
    ("line", "left"),
    [
        (f"[    4.1] {StepMarks(TOKEN).line('modprobe kmem')}", "[    4.1] "),
        (f"oops{StepMarks(TOKEN).line('reload a, b')}", "oops"),
        ("[    4.1] harness: x [863c8[    4.2] Kernel panic", "[    4.1] [    4.2] Kernel panic"),
        ("[harness: restored from the machine that booted in /x]", ""),
        ("[    4.1] cxl harness: x", "[    4.1] cxl harness: x"),
    ],
)
def test_marks_are_taken_from_lines_of_the_console(line: str, left: str) -> None:
    assert without_marks(line) == left
