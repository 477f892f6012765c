# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from dataclasses import replace

import pytest
from machines import record

from harness.model.boot_phases import KERNEL, USERSPACE, StepMarks, in_phases
from harness.model.dmesg import complaints

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
    ) == [
        *(KERNEL, USERSPACE, USERSPACE),
        *("modprobe cxl_acpi", "modprobe cxl_acpi", "modprobe kmem", "modprobe kmem"),
    ]


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
    assert phases_of(MARKS.line("reload"), later) == ["reload", "reload"]


def test_a_log_without_marks_is_boot_and_userspace() -> None:
    assert phases_of("a", INIT.text, "b") == [KERNEL, USERSPACE, USERSPACE]


def test_a_complaint_says_its_time_and_its_phase() -> None:
    warning = replace(record(4, "kmem dax0.0: x"), time=3.25)
    log = in_phases([record(6, MARKS.line("modprobe kmem")), warning], MARKS)
    (found,) = complaints(log)
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
    (found,) = complaints(log)
    assert found.record.phase == "modprobe dax_cxl"
