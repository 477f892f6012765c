# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import threading

import pytest

from harness.errors import GuestCrashedError
from harness.machine import crash_watch
from harness.machine.crash_watch import CrashWatch

PANIC = "[    4.567890] Kernel panic - not syncing: Fatal exception in interrupt"
END = "[    4.600000] ---[ end Kernel panic - not syncing: Fatal exception in interrupt ]---"
REBOOT = "[    4.600000] Rebooting in 1 seconds.."


def test_a_guest_that_does_not_panic_is_left_alone() -> None:
    watch = CrashWatch()
    for text in ("[    1.0] Linux version 7.2", "kernel BUG at x.c:1!", "Kernel panics are rare"):
        watch.line(text)
    assert not watch.panicked
    watch.check()


@pytest.mark.parametrize("end", [END, REBOOT, "[    4.6] reboot: machine restart"])
def test_a_panic_is_told_with_its_reason_once_its_trace_is_there(end: str) -> None:
    watch = CrashWatch()
    for text in (PANIC, "[    4.58] CPU: 0 PID: 1", end):
        watch.line(text)
    assert watch.panicked
    with pytest.raises(GuestCrashedError) as caught:
        watch.check()
    assert caught.value.message == "the guest's kernel panicked: Fatal exception in interrupt"


def test_of_several_panics_the_first_counts() -> None:
    watch = CrashWatch()
    watch.line(PANIC)
    watch.line("Kernel panic - not syncing: and another")
    watch.line(END)
    with pytest.raises(GuestCrashedError, match="Fatal exception"):
        watch.check()


def test_the_check_waits_for_the_trace() -> None:
    watch = CrashWatch()
    watch.line(PANIC)
    seen: list[str] = []

    def say_the_rest() -> None:
        seen.append("trace")
        watch.line(END)

    later = threading.Timer(0.05, say_the_rest)
    later.start()
    with pytest.raises(GuestCrashedError):
        watch.check()
    assert seen == ["trace"]
    later.join()


def test_the_check_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash_watch, "_TRACE_SECONDS", 0.05)
    watch = CrashWatch()
    watch.line(PANIC)
    with pytest.raises(GuestCrashedError):
        watch.check()


def test_an_end_before_any_panic_is_no_end_of_one() -> None:
    watch = CrashWatch()
    watch.line("[    1.0] reboot: Power down")
    assert not watch.panicked
    watch.check()
