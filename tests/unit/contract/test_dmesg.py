# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import record

from harness.contract.dmesg import (
    DmesgError,
    Record,
    ends_the_guest,
    kernel_warnings,
    parse_dmesg,
    splat,
)


def test_records_have_level_time_and_text() -> None:
    text = (
        "<5>[    0.000000] Linux version 7.2\n"
        "<6>[    0.100000] ACPI: SRAT: Node 0\n"
        "<12>[   12.345678] dax: a message of a program, facility 1, level 4\n"
        "<3>[ 1000.000001] kmem dax0.0: it failed  \n"
    )
    assert parse_dmesg(text) == (
        Record(5, 0.0, "Linux version 7.2"),
        Record(6, 0.1, "ACPI: SRAT: Node 0"),
        Record(4, 12.345678, "dax: a message of a program, facility 1, level 4"),
        Record(3, 1000.000001, "kmem dax0.0: it failed"),
    )


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("<6>[    1.000000][    T1] cxl root0: x", "cxl root0: x"),
        ("<6>[    1.000000][   C12] cxl root0: x", "cxl root0: x"),
        ("<6>[    1.000000] [drm] x", "[drm] x"),
        ("<6>[    1.000000] ", ""),
        ("<6>[    1.000000]  pci0000:35: host supports CXL", " pci0000:35: host supports CXL"),
    ],
)
def test_the_caller_is_no_part_of_the_text(line: str, text: str) -> None:
    assert parse_dmesg(f"{line}\n")[0].text == text


@pytest.mark.parametrize("line", ["second", "", "<4[    1.0] kmem dax0.0: x", "<٤>[1.0] x"])
def test_a_line_without_a_level_is_damage(line: str) -> None:
    # It could have been a warning: to take it for anything else would hide that.
    text = f"<6>[    1.000000] first\n{line}\n<6>[    2.000000] third\n"
    with pytest.raises(DmesgError, match="line 2 has no level and time"):
        parse_dmesg(text)


def test_only_a_newline_ends_a_line() -> None:
    text = "a\x0b<4>[1.0] b\x85c\u2028d\re"
    assert [one.text for one in parse_dmesg(f"<6>[    1.000000] {text}\n")] == [text]
    with pytest.raises(DmesgError, match="cut off"):
        parse_dmesg("<6>[    1.000000] first\n<4>[    2.000000] kmem dax0.0: it")


@pytest.mark.parametrize("text", ["", "\n", "dmesg: klogctl: Operation not permitted\n"])
def test_text_without_a_record_is_no_kernel_log(text: str) -> None:
    with pytest.raises(DmesgError):
        parse_dmesg(text)


def test_a_record_prints_as_dmesg_prints_it() -> None:
    assert str(Record(4, 3.284964, "kmem dax2.0: x")) == "[    3.284964] kmem dax2.0: x"


@pytest.mark.parametrize(
    "text",
    [
        "cxl root0: Extended linear cache calculation failed rc:-2",
        "cxl_acpi ACPI0017:00: failed",
        "cxl_port endpoint2: failed to enumerate",
        "cxl_dax_region dax_region0: dax_region resource conflict for [mem 0x1-0x2]",
        "dax_hmem: failed",
        "hmem hmem.1: probe with driver hmem failed with error -12",
        "kmem dax2.0: mapping0: 0x110000000-0x18fffffff could not reserve region",
        "device_dax dax0.0: failed",
        "pcieport 0000:35:00.0: CXL Bus Error",
        "resource: resource sanity check: requesting [mem 0x1-0x2], which spans more than dax0.0",
        "Soft Reserved [mem 0x1-0x2] conflicts with CXL Window 0 [mem 0x1-0x3]",
    ],
)
@pytest.mark.parametrize(("level", "what"), [(4, "warning"), (3, "error"), (0, "error")])
def test_a_warning_or_worse_of_the_drivers_counts(text: str, level: int, what: str) -> None:
    (found,) = kernel_warnings([record(level, text)])
    assert (found.record.text, found.kind) == (text, what)


@pytest.mark.parametrize(
    "text",
    [
        "pci_bus 0000:35: Unknown NUMA node; performance will be reduced",
        "mtrr: your CPUs had inconsistent fixed MTRR settings",
        "amd_pstate: the _CPC object is not present in SBIOS or ACPI disabled",
        "relaxed: daxing, not daxed",
        "schmem something",
    ],
)
def test_a_warning_of_somebody_else_does_not_count(text: str) -> None:
    assert kernel_warnings([record(4, text)]) == ()


@pytest.mark.parametrize("level", [5, 6, 7])
def test_what_is_less_than_a_warning_does_not_count(level: int) -> None:
    assert kernel_warnings([record(level, "cxl root0: failed")]) == ()


SPLATS = [
    ("WARNING: CPU: 0 PID: 12 at kernel/workqueue.c:4204 __flush_work+0x2a/0x30", "warn"),
    ("WARNING: drivers/dax/bus.c:12 at dax_probe+0x1/0x2, CPU#0: modprobe/12", "warn"),
    ("kernel BUG at mm/vmalloc.c:12!", "bug"),
    ("BUG: Bad page state in process modprobe  pfn:110000", "bug"),
    ("Oops: general protection fault, probably for non-canonical address", "oops"),
    ("Oops: 0000 [#1] PREEMPT SMP", "oops"),
    ("Kernel panic - not syncing: Fatal exception", "panic"),
    ("WARNING: possible circular locking dependency detected", "lockdep"),
    ("WARNING: possible recursive locking detected", "lockdep"),
    ("WARNING: inconsistent lock state", "lockdep"),
    ("kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)", "kmemleak"),
    ("INFO: task modprobe:123 blocked for more than 120 seconds.", "hung_task"),
    ("rcu: INFO: rcu_preempt self-detected stall on CPU", "stall"),
    ("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "stall"),
    ("UBSAN: array-index-out-of-bounds in drivers/cxl/core/port.c:1", "ubsan"),
    ("workqueue: dax_hmem_work hogged CPU for >10000us 4 times", "call_trace"),
    ("Call Trace:", "call_trace"),
]


@pytest.mark.parametrize(("text", "what"), SPLATS)
def test_a_splat_of_anybody_counts_at_any_level(text: str, what: str) -> None:
    assert splat(text) == what
    (found,) = kernel_warnings([record(6, text)])
    assert found.kind == what


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("BUG: KASAN: slab-use-after-free in cxl_region_probe+0x1/0x2", "kasan"),
        ("BUG: unable to handle page fault for address: 0000000000001000", "oops"),
        ("BUG: kernel NULL pointer dereference, address: 0000000000000010", "oops"),
        ("watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [modprobe:12]", "stall"),
        ("BUG: sleeping function called from invalid context at kernel/x.c:1", "atomic"),
        ("BUG: scheduling while atomic: modprobe/12/0x00000002", "atomic"),
    ],
)
def test_a_splat_is_called_by_the_most_telling_name(text: str, what: str) -> None:
    assert str(splat(text)).startswith(what)


@pytest.mark.parametrize(
    "text",
    [
        "cxl root0: DEBUG: nothing is wrong",
        "clocksource: possible clock skew, nothing is locked",
        "CPU topo: possible CPUs 2, block 0",
    ],
)
def test_what_only_looks_like_a_splat_does_not_count(text: str) -> None:
    assert kernel_warnings([record(6, text)]) == ()


def test_suspicious_rcu_usage_is_a_splat() -> None:
    assert splat("WARNING: suspicious RCU usage") == "lockdep"


@pytest.mark.parametrize(
    "text",
    [
        "WARNING: held lock freed!",
        "WARNING: lock held when returning to user space!",
        "WARNING: modprobe/123 still has locks held!",
        "WARNING: SOFTIRQ-safe -> SOFTIRQ-unsafe lock order detected",
        "WARNING: Nested lock was not taken",
        "INFO: trying to register non-static key.",
    ],
)
def test_every_headline_of_lockdep_is_a_splat(text: str) -> None:
    assert splat(text) == "lockdep"


@pytest.mark.parametrize(
    "text",
    [
        "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 0-...D } 21 jiffies",
        "watchdog: Watchdog detected hard LOCKUP on cpu 0",
    ],
)
def test_every_kind_of_stall_is_a_splat(text: str) -> None:
    assert splat(text) == "stall"


def test_a_splat_is_found_in_a_later_line_of_a_record() -> None:
    (found,) = kernel_warnings([record(6, "first\nkernel BUG at x.c:1!")])
    assert found.kind == "bug"


def test_an_expected_line_does_not_count_and_others_still_do() -> None:
    cache = record(4, "cxl root0: Extended linear cache calculation failed rc:-2")
    other = record(4, "cxl root0: something else")
    found = kernel_warnings([cache, other], [re.compile(r"linear cache calculation failed rc:-\d")])
    assert [one.record for one in found] == [other]


@pytest.mark.parametrize(
    ("pattern", "counts"),
    [("failed to attach decoder", True), ("kernel BUG at mm/slub", False), (r"a\nb", True)],
)
def test_only_the_first_line_of_a_splat_can_be_expected(pattern: str, counts: bool) -> None:
    """A CPU that says what a scenario expects amid another one's trace does not excuse it."""
    log = [
        record(4, "------------[ cut here ]------------"),
        record(2, "kernel BUG at mm/slub.c:1!"),
        record(3, "cxl_port endpoint2: failed to attach decoder2.0 to region0: -6"),
        record(4, "---[ end trace 0000000000000000 ]---"),
    ]
    found = kernel_warnings(log, [re.compile(pattern), re.compile("cxl_port endpoint2: failed")])
    assert [one.kind for one in found] == (["bug"] if counts else [])


def test_complaints_keep_the_order_of_the_log() -> None:
    log = [record(4, "cxl b"), record(6, "cxl quiet"), record(3, "kmem a"), record(6, "UBSAN: c")]
    assert [one.record.text for one in kernel_warnings(log)] == ["cxl b", "kmem a", "UBSAN: c"]


@given(st.text())
def test_any_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    with contextlib.suppress(DmesgError):
        kernel_warnings(parse_dmesg(text))


@given(
    st.integers(0, 255),
    st.integers(0, 10**9),
    st.text(st.characters(codec="ascii", exclude_categories=["C"])).map(str.rstrip),
)
def test_what_the_kernel_prints_reads_back(prefix: int, time: int, text: str) -> None:
    seconds = f"{time // 10**6:5d}.{time % 10**6:06d}"
    # A text that itself begins like a caller cannot be told from one.
    if text.startswith("["):
        return
    (one,) = parse_dmesg(f"<{prefix}>[{seconds}] {text}\n")
    assert (one.level, one.text) == (prefix & 7, text)
    assert one.time == pytest.approx(time / 10**6)


TRACE = (
    record(6, "------------[ cut here ]------------"),
    record(4, "WARNING: at __flush_work+0x352/0x390, CPU#1: kworker/1:1/36"),
    record(4, "Modules linked in: dax_cxl kmem dax_hmem"),
    record(4, "Call Trace:"),
    record(4, " ? cxl_dax_region_driver_register+0x5/0x20 [dax_cxl]"),
    record(4, "---[ end trace 0000000000000000 ]---"),
)


def test_a_whole_trace_is_one_complaint() -> None:
    (found,) = kernel_warnings([record(6, "before"), *TRACE, record(6, "after")])
    assert found.kind == "warn"
    assert found.record.text.splitlines() == [one.text for one in TRACE[1:]]


MEANWHILE = record(3, "kmem dax0.0: mapping0: could not reserve region")


@pytest.mark.parametrize("at", range(2, len(TRACE)))
def test_a_trace_that_is_expected_hides_nothing_that_a_driver_says_meanwhile(at: int) -> None:
    log = [*TRACE[:at], MEANWHILE, *TRACE[at:]]
    (found,) = kernel_warnings(log, [re.compile("WARNING: at __flush_work")])
    assert found.record == MEANWHILE
    assert [one.kind for one in kernel_warnings(log)] == ["warn", "error"]


def test_what_a_driver_warns_of_is_one_complaint_with_its_trace() -> None:
    log = [TRACE[0], record(4, "cxl_port port1: cannot be"), *TRACE[1:]]
    (found,) = kernel_warnings(log)
    assert str(found) == "a WARN: cxl_port port1: cannot be"
    assert kernel_warnings(log, [re.compile("^cxl_port port1: cannot be$")]) == ()


@pytest.mark.parametrize("log", [TRACE[:1], (TRACE[0], record(4, "\x00"), *TRACE[2:])])
def test_a_trace_whose_headline_is_damaged_counts(log: tuple[Record, ...]) -> None:
    (found,) = kernel_warnings([record(6, "before"), *log])
    assert found.kind in ("warn", "call_trace")


def test_a_trace_says_in_which_phase_it_ends() -> None:
    phases = ["boot"] * 3 + ["modprobe kmem"] * (len(TRACE) - 3)
    log = [replace(one, phase=phase) for one, phase in zip(TRACE, phases, strict=True)]
    (found,) = kernel_warnings(log)
    assert (found.record.phase, found.until) == ("boot", "modprobe kmem")


def test_a_trace_without_an_end_loses_no_complaint() -> None:
    found = kernel_warnings([*TRACE[:-1], record(3, "cxl root0: broken")])
    assert found[0].kind == "warn"
    assert found[-1].record.text == "cxl root0: broken"


def test_two_traces_are_two_complaints() -> None:
    assert len(kernel_warnings([*TRACE, *TRACE])) == 2


HUNG = (
    record(3, "INFO: task modprobe:76 blocked for more than 120 seconds."),
    record(6, "task:modprobe        state:D stack:0     pid:76"),
    record(6, "Call Trace:"),
    record(6, " <TASK>"),
    record(6, " dax_hmem_platform_probe+0x1/0x2 [dax_hmem]"),
    record(6, " </TASK>"),
)
KASAN = (
    record(3, "BUG: KASAN: slab-use-after-free in cxl_region_probe+0x1/0x2"),
    record(3, "Call Trace:"),
    record(3, " <TASK>"),
    record(3, " </TASK>"),
    record(3, "Allocated by task 76:"),
    record(3, "=" * 66),
)


@pytest.mark.parametrize(("trace", "what"), [(HUNG, "hung_task"), (KASAN, "kasan")])
def test_a_trace_without_an_end_mark_is_one_complaint(trace: tuple[Record, ...], what: str) -> None:
    warning = record(4, "kmem dax0.0: x")
    found = kernel_warnings([*trace, warning, *trace])
    assert [one.kind for one in found] == [what, "warning", what]
    assert found[0].record.text.splitlines() == [one.text for one in trace]
    assert found[1].record == warning


def test_an_oops_with_a_stack_ends_at_its_end_mark() -> None:
    oops = (
        record(1, "BUG: kernel NULL pointer dereference, address: 0000000000000010"),
        record(1, "Oops: Oops: 0000 [#1] SMP"),
        *HUNG[2:],
        record(4, "Modules linked in: dax_hmem"),
        record(4, "---[ end trace 0000000000000000 ]---"),
    )
    (found,) = kernel_warnings(oops)
    assert found.kind == "oops"
    assert len(found.record.text.splitlines()) == len(oops)


def test_a_headline_without_a_stack_takes_nothing_of_what_follows() -> None:
    hogged = record(4, "workqueue: dax_hmem_work hogged CPU for >10000us 4 times")
    warning = record(4, "kmem dax0.0: x")
    assert [one.record for one in kernel_warnings([hogged, warning])] == [hogged, warning]


@pytest.mark.parametrize(("text", "what"), SPLATS)
def test_what_ends_a_guest(text: str, what: str) -> None:
    ends = what in ("panic", "oops", "stall", "hung_task") or "kernel BUG at" in text
    assert ends_the_guest(text) is ends
