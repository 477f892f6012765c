# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import re
import threading
from contextlib import nullcontext

import pytest

from harness.contract.dmesg import StepMarks
from harness.core.errors import GuestCrashedError, GuestEndedError, GuestLostError
from harness.machine import console_watch
from harness.machine.console_watch import CrashWatch

PANIC = "[    4.567890] Kernel panic - not syncing: Fatal exception in interrupt"
END = "[    4.600000] ---[ end Kernel panic - not syncing: Fatal exception in interrupt ]---"
REBOOT = "[    4.600000] Rebooting in 1 seconds.."
CUT = "[    4.100000] ------------[ cut here ]------------"
WARN = "[    4.200000] WARNING: at __flush_work+0x352/0x390, CPU#1: kworker/1:1/36"
OOPS = "[    4.100000] BUG: kernel NULL pointer dereference, address: 0000000000000010"
OURS = "[    4.150000]  dax_hmem_platform_probe+0x12/0x40 [dax_hmem]"
END_OF_OOPS = "[    4.200000] ---[ end trace 0000000000000000 ]---"

REAL_SECONDS = console_watch._TRACE_SECONDS + console_watch._AFTERMATH_SECONDS

FATAL = [
    (OOPS, "an oops: BUG: kernel NULL pointer dereference"),
    ("[    4.1][  T12] Oops: general protection fault: 0000 [#1] SMP", "an oops: Oops: general"),
    ("[    4.1] kernel BUG at drivers/dax/bus.c:12!", "a BUG: kernel BUG at drivers/dax/bus.c:12!"),
    ("[   30.1] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [modprobe:12]", "a stall: "),
    ("[   30.1] watchdog: CPU0: Watchdog detected hard LOCKUP on cpu 0", "a stall: "),
    ("[   30.1] rcu: INFO: rcu_preempt self-detected stall on CPU", "a stall: rcu: INFO"),
    ("[   30.1] BUG: workqueue lockup - pool cpus=0 stuck for 31s!", "a stall: "),
    ("[  130.1] INFO: task modprobe:123 blocked for more than 120 seconds.", "a hung task: INFO"),
]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_watch, "_TRACE_SECONDS", 0.3)
    monkeypatch.setattr(console_watch, "_AFTERMATH_SECONDS", 0.02)


def watching(*lines: str, step: str = "modprobe dax_hmem") -> CrashWatch:
    """A watch that has seen these lines in a step of the scenario."""
    watch = CrashWatch()
    watch.steps_begin(lambda: step)
    for text in lines:
        watch.line(text)
    return watch


def crash_of(watch: CrashWatch) -> GuestCrashedError:
    with pytest.raises(GuestCrashedError) as caught:
        watch.check()
    return caught.value


def test_a_guest_that_does_not_panic_is_left_alone() -> None:
    watch = watching("[    1.0] Linux version 7.2", "Kernel panics are rare", CUT, WARN)
    assert not watch.panicked
    watch.check()
    assert watch.trace == ()


@pytest.mark.parametrize(
    "text",
    [
        "[    4.1] BUG: KASAN: slab-use-after-free in cxl_region_probe+0x1/0x2",
        "[    4.1] UBSAN: array-index-out-of-bounds in drivers/cxl/core/port.c:1",
        "[    4.1] WARNING: possible circular locking dependency detected",
        "[    4.1] BUG: sleeping function called from invalid context at kernel/x.c:1",
        "[    4.1] kmem dax0.0: probe with driver kmem failed with error -16",
    ],
)
def test_what_a_guest_survives_is_for_the_judge(text: str) -> None:
    watching(text).check()


@pytest.mark.parametrize(("text", "what"), FATAL)
def test_what_a_guest_does_not_survive_ends_the_run(text: str, what: str) -> None:
    error = crash_of(watching("[    1.0] before", text, END_OF_OOPS))
    assert error.message.startswith(what)
    assert error.message.endswith(" (during modprobe dax_hmem)")
    assert error.step == "modprobe dax_hmem"
    assert error.trace == (text, END_OF_OOPS)


@pytest.mark.parametrize("at", range(4))
def test_a_mark_of_the_harness_is_never_part_of_a_trace(at: int) -> None:
    mark = f"[    4.1] {StepMarks('863c' * 8).line('modprobe kmem')}"
    trace = [CUT, "[    4.1] kernel BUG at mm/x.c:1!", END_OF_OOPS]
    error = crash_of(watching(*trace[:at], mark, *trace[at:]))
    assert error.trace == tuple(trace)
    assert error.message == "a BUG: kernel BUG at mm/x.c:1! (during modprobe dax_hmem)"


@pytest.mark.parametrize(("text", "what"), FATAL)
def test_before_the_first_step_only_a_panic_counts(text: str, what: str) -> None:
    watch = CrashWatch()
    watch.line(text)
    watch.check()
    watch.steps_begin(lambda: "modprobe cxl_acpi")
    watch.check()
    watch.line(text)
    assert crash_of(watch).message.startswith(what)


def test_with_drivers_built_in_the_boot_counts() -> None:
    watch = CrashWatch(from_the_start=True)
    watch.line(OOPS)
    watch.line(END_OF_OOPS)
    assert crash_of(watch).step == "boot"


def test_an_expected_line_is_no_end_but_a_panic_is() -> None:
    watch = CrashWatch([re.compile(r"^BUG: kernel NULL pointer"), re.compile("panic")])
    watch.steps_begin(lambda: "")
    watch.line(OOPS)
    watch.check()
    watch.line(PANIC)
    watch.line(END)
    assert "panicked" in crash_of(watch).message


@pytest.mark.parametrize("end", [END, REBOOT, "[    4.6] reboot: machine restart"])
def test_a_panic_is_told_with_its_reason_once_its_trace_is_there(end: str) -> None:
    watch = watching(PANIC, "[    4.58] CPU: 0 PID: 1", end, step="")
    assert watch.panicked
    error = crash_of(watch)
    assert error.message == "the guest's kernel panicked: Fatal exception in interrupt"
    assert error.trace == (PANIC, "[    4.58] CPU: 0 PID: 1", end)


def test_a_panic_before_the_first_step_says_nothing_about_the_scenario() -> None:
    watch = CrashWatch()
    watch.line(PANIC)
    watch.line(END)
    with pytest.raises(GuestLostError, match="before the scenario's first step"):
        watch.check()


@pytest.mark.parametrize(
    ("from_the_start", "lines", "kind"),
    [
        (False, [OOPS, OURS, PANIC, END], GuestLostError),
        (True, [OOPS, OURS, PANIC, END], GuestCrashedError),
        (True, [PANIC, "[    4.5] Modules linked in: dax_hmem", END], GuestLostError),
    ],
)
def test_a_panic_of_the_boot_counts_when_it_is_of_drivers_that_are_built_in(
    from_the_start: bool, lines: list[str], kind: type[Exception]
) -> None:
    watch = CrashWatch(from_the_start=from_the_start)
    watch.check_boot()
    for text in lines:
        watch.line(text)
    with pytest.raises(kind, match=r"panicked.*: Fatal exception"):
        watch.check_boot()


def test_an_oops_of_built_in_drivers_is_not_waited_for_while_the_guest_boots() -> None:
    for trace, counts in (([OOPS, OURS, END_OF_OOPS], True), ([OOPS, END_OF_OOPS], False)):
        watch = CrashWatch(from_the_start=True)
        for text in trace:
            watch.line(text)
        with pytest.raises(GuestCrashedError) if counts else nullcontext():
            watch.check_boot()


def test_an_oops_that_becomes_a_panic_is_one_trace() -> None:
    error = crash_of(watching(OOPS, OURS, END_OF_OOPS, PANIC, END))
    assert error.message.startswith("the guest's kernel panicked: Fatal exception")
    assert error.trace == (OOPS, OURS, END_OF_OOPS, PANIC, END)


def test_a_warning_that_becomes_a_panic_keeps_its_beginning() -> None:
    panic = "[    4.3] Kernel panic - not syncing: kernel: panic_on_warn set ..."
    assert crash_of(watching("[    1.0] before", CUT, WARN, panic, END)).trace[:3] == (
        *(CUT, WARN, panic),
    )


def test_a_warning_that_was_over_is_no_part_of_the_panic() -> None:
    assert crash_of(watching(CUT, WARN, END_OF_OOPS, PANIC, END)).trace == (PANIC, END)


def test_of_several_panics_the_first_counts() -> None:
    watch = watching(PANIC, "Kernel panic - not syncing: and another", END)
    assert "Fatal exception" in crash_of(watch).message


def test_the_check_waits_for_the_trace() -> None:
    watch = watching(PANIC)
    later = threading.Timer(0.05, lambda: watch.line(END))
    later.start()
    assert crash_of(watch).trace == (PANIC, END)
    later.join()


def test_the_check_waits_for_what_becomes_of_an_oops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_watch, "_AFTERMATH_SECONDS", 5.0)
    watch = watching(OOPS, END_OF_OOPS)

    def say_the_rest() -> None:
        watch.line(PANIC)
        watch.line(END)

    later = threading.Timer(0.05, say_the_rest)
    later.start()
    assert "panicked" in crash_of(watch).message
    later.join()


@pytest.mark.parametrize("text", [PANIC, OOPS])
def test_the_check_does_not_wait_for_ever(text: str) -> None:
    crash_of(watching(text))


def test_a_reader_waits_less_than_two_seconds() -> None:
    assert REAL_SECONDS < 1.8


def test_an_end_before_any_panic_is_no_end_of_one() -> None:
    watch = watching("[    1.0] reboot: Power down")
    assert not watch.panicked
    watch.check()


def test_a_guest_that_ends_in_a_step_without_a_word_has_crashed() -> None:
    ended = GuestEndedError("the guest reset its machine", hint="x")
    with pytest.raises(GuestCrashedError, match=r"reset its machine \(during modprobe") as caught:
        watching("[    1.0] last words").ended(ended)
    assert caught.value.trace == ("[    1.0] last words",)
    with pytest.raises(GuestEndedError):
        CrashWatch().ended(ended)


def test_a_flood_after_the_end_is_cut() -> None:
    watch = watching(PANIC, *["more"] * 1000, END)
    assert len(crash_of(watch).trace) == 400


STALL = "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"


def clocked(monkeypatch: pytest.MonkeyPatch, *lines: tuple[float, str]) -> CrashWatch:
    """A watch that has seen lines, each at a second of the host."""
    watch = watching()
    for now, text in lines:
        monkeypatch.setattr("time.monotonic", lambda now=now: now)
        watch.line(text)
    return watch


def test_a_stall_by_a_clock_that_runs_too_fast_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host with a load of 50, where the guest measured a TSC of 156 MHz for 2596."""
    watch = clocked(
        monkeypatch, (100.0, "[    0.0] Linux version 7.2"), (220.0, f"[ 1374.7] {STALL}")
    )
    assert watch.clock_rate == pytest.approx(1374.7 / 120)
    with pytest.raises(GuestLostError, match=r"runs 11\.5 times as fast") as caught:
        watch.check()
    assert "--jobs" in caught.value.hint
    with pytest.raises(GuestLostError):
        watch.check_clock()


@pytest.mark.parametrize("guest", [100.0, 24.0, 140.0])
def test_a_stall_by_a_good_clock_is_one(monkeypatch: pytest.MonkeyPatch, guest: float) -> None:
    watch = clocked(
        monkeypatch, (50.0, "[    0.0] Linux version 7.2"), (150.0, f"[  {guest}] {STALL}")
    )
    watch.check_clock()
    assert "a stall" in crash_of(watch).message


def test_what_is_not_about_time_counts_by_any_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = clocked(
        monkeypatch, (50.0, "[    0.0] Linux version 7.2"), (60.0, OOPS.replace("4.1", "900.1"))
    )
    assert watch.clock_rate > 50
    assert "an oops" in crash_of(watch).message


def test_nobody_can_say_how_fast_a_clock_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watching().clock_rate == 1.0
    assert watching("no time", "[    1.0] a").clock_rate == 1.0
    soon = clocked(monkeypatch, (50.0, "[    0.0] a"), (51.0, "[   30.0] b"))
    assert soon.clock_rate == 1.0
