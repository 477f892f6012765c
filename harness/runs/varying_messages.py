# SPDX-License-Identifier: GPL-2.0-or-later
"""What of the kernel's messages differs from guest to guest although nothing is different.

Each pattern has the reason for which it may. What is not listed must be the same. Found by holding
several hundred guests of the same scenario and kernel against each other, with TCG on busy hosts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_CLOCKS = "the guest measures its clocks against a host that is more or less busy"
_DATES = "the date"
_MOMENT = "what a CPU held at that moment, and who ran on it"

_LEFT_OUT: tuple[tuple[str, str], ...] = (
    (r"(?:tsc|clocksource|sched_clock|hrtimer|timekeeping|Clockevents): ", _CLOCKS),
    (r"calibrate_delay_direct\(\)|Calibrating delay loop|.*\bBogoMIPS\b", _CLOCKS),
    (r'Probably due to long platform interrupts\. Consider using "lpj="', _CLOCKS),
    (r"\.*\s*(?:APIC|APIC timer) (?:calibration|delta|timer|disabled|frequency)", _CLOCKS),
    (r"Could not switch to high resolution mode| ?lapic is not functional", _CLOCKS),
    (r"hpet: Lost \d+ RTC interrupts|perf: interrupt took too long", _CLOCKS),
    (r"workqueue: \S+ hogged CPU", _CLOCKS),
    (r"audit: type=\d+ audit\(", _DATES),
    (r"rtc_cmos \S+ setting system clock|.*\bRTC time: ", _DATES),
    (r"(?:R[A-Z\d]{2}|[CD]R\d|[FG]S): *[0-9a-f]{4}", _MOMENT),
    (r" \? ", "a stale word of the stack"),
)

_MASKED: tuple[tuple[str, str, str], ...] = (
    (r"\b\d+K(?=/\d+K available)", "…K", "how much is free while a CPU still initialises pages"),
    (r"(?<=, )\d+K(?= reserved)", "…K", "the same"),
    (r"(?<=early log buf free: )\d+\(\d+%\)", "…", "it depends on the messages about clocks"),
    (r"(?<=deferred pages initialised in )\d+ms", "…", _CLOCKS),
    (r"\b\d+(?:\.\d+)? (?:usecs|msecs|us|ms|s|seconds)\b", "…", _CLOCKS),
    (r"(?<=/input/input)\d+", "…", "input devices are found side by side, and numbered"),
    (r"\bkworker/[\w:+-]+(?:/\d+)?", "kworker", _MOMENT),
    (r"\bCPU#\d+: \S+|\b(?:CPU|PID): \d+|(?<=INFO: task )\S+", "…", _MOMENT),
    (r"\bff[0-9a-f]{14}\b", "…", "the address of something that was allocated"),
    (r"\b[0-9a-f]{32}\b", "…", "the word of this run's marks"),
)

_LEAVE_OUT = re.compile("|".join(f"(?:{pattern})" for pattern, _ in _LEFT_OUT))
_MASKS = tuple((re.compile(pattern), word) for pattern, word, _ in _MASKED)
_SOURCE = re.compile(r"[\w.+@-]+(?: [\w.:+@-]+)?: ")


def masked(text: str) -> str:
    """Messages, a line each, or any other text, with `…` for what legitimately varies in it."""
    for pattern, word in _MASKS:
        text = pattern.sub(word, text)
    return text


def comparable_messages(messages: Iterable[str]) -> tuple[str, ...]:
    """Messages of one log in a form that is the same for guests in which the same happened.

    Threads and CPUs race to the log, so the order of two messages says nothing by itself. What one
    source says, it says in its order: messages that begin with the same driver and device, or are
    the harness's marks of steps, keep theirs; all else is sorted.

    Args:
        messages: without levels and times, in the log's order.
    """
    kept = [one for one in messages if not _LEAVE_OUT.match(one)]
    return tuple(sorted(masked("\n".join(kept)).splitlines(), key=_source))


def _source(message: str) -> str:
    match = _SOURCE.match(message)
    return match[0] if match else message
