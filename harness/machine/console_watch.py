# SPDX-License-Identifier: GPL-2.0-or-later
"""Detect on the console that the guest's kernel, or a part of it, has crashed."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from harness.contract.blocked_tasks import names_the_drivers
from harness.contract.dmesg import KERNEL, KINDS, TIMED, ends_the_guest, splat, without_marks
from harness.core.errors import GuestCrashedError, GuestEndedError, GuestLostError

_PANIC = re.compile(r"Kernel panic - not syncing: (?P<why>.*)")
_END_OF_PANIC = re.compile(r"---\[ end Kernel panic|Rebooting in|reboot: |Kernel Offset:")
_END_OF_TRACE = re.compile(r"---\[ end trace")
_CUT = "[ cut here ]"
_TIME = re.compile(r"^\[ *(?P<time>\d+\.\d+)\](?:\[[^\]]*\])? ?")
# With the rest of a check, less than the two seconds that a reader may wait.
_TRACE_SECONDS = 1.2
# From the end of an oops to the panic that follows on some kernels.
_AFTERMATH_SECONDS = 0.2
_BEFORE_LINES = 120
_MOST_LINES = 400
_PANICKED = "the guest's kernel panicked"
_HINT = "the trace is in serial.log in the evidence"
# Where a busy host keeps QEMU from running, Linux measures the TSC wrongly, and its clock runs many
# times too fast: twenty-one of its seconds without a quiescent state are then one.
_FAST = 1.5
_SURE_SECONDS = 2.0


class CrashWatch:
    """Reads every console line; `check` raises once the kernel has crashed.

    A panic always counts. An oops, a stall or a hung task counts from the first step of the
    scenario on, as in the kernel's log.

    Args:
        expected: messages that do not count; a panic always does.
        from_the_start: whether the boot is a step of the scenario.
    """

    def __init__(
        self, expected: Sequence[re.Pattern[str]] = (), *, from_the_start: bool = False
    ) -> None:
        self._expected = tuple(expected)
        self._step: Callable[[], str] | None = (lambda: KERNEL) if from_the_start else None
        self._seen = threading.Event()
        self._complete = threading.Event()
        self._panicked = threading.Event()
        self._before: deque[str] = deque(maxlen=_BEFORE_LINES)
        self._trace: list[str] = []
        self._why = ""
        self._when = 0.0
        self._first: tuple[float, float] | None = None
        self._last = (0.0, 0.0)

    def steps_begin(self, step: Callable[[], str]) -> None:
        """Count everything from now on.

        Args:
            step: returns the scenario's current step.
        """
        self._step = step

    def line(self, text: str) -> None:
        """Examine one line; called in the console's thread."""
        self._look_at_clock(text)
        text, printed = without_marks(text), text
        if text != printed and not _TIME.sub("", text).strip():
            return
        panic = _PANIC.search(text)
        if self._seen.is_set():
            if len(self._trace) < _MOST_LINES:
                self._trace.append(text)
        elif panic is not None or self._counts(text):
            self._trace = [*self._headed(), text]
            self._why = _TIME.sub("", text).strip()
            self._when = time.monotonic()
            self._seen.set()
        else:
            self._before.append(text)
            return
        if panic is not None and not self._panicked.is_set():
            self._why = panic["why"].strip()
            self._complete.clear()
            self._panicked.set()
        elif (_END_OF_PANIC if self._panicked.is_set() else _END_OF_TRACE).search(text):
            self._complete.set()

    @property
    def panicked(self) -> bool:
        """True after a panic."""
        return self._panicked.is_set()

    @property
    def trace(self) -> tuple[str, ...]:
        """The kernel's messages about its crash so far; empty without one."""
        return tuple(self._trace)

    @property
    def clock_rate(self) -> float:
        """The seconds of the guest in one of the host; 1 while unknown."""
        if self._first is None or self._last[0] - self._first[0] < _SURE_SECONDS:
            return 1.0
        return (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])

    def check_clock(self) -> None:
        """Refuse a guest that has reported a timeout, if its clock runs too fast.

        Raises:
            GuestLostError: its clock runs too fast.
        """
        rate = self.clock_rate
        if rate > _FAST:
            raise GuestLostError(
                f"the guest reports a timeout, and its clock runs {rate:.1f} times as fast as the "
                "host's",
                hint="the host is too busy: run fewer guests concurrently (--jobs), or try again",
            )

    def _look_at_clock(self, text: str) -> None:
        if (match := _TIME.match(text)) is not None:
            self._last = (time.monotonic(), float(match["time"]))
            self._first = self._first or self._last

    def await_panic(self, seconds: float) -> None:
        """Wait for a panic with its trace, or until the time is up."""
        if self._panicked.wait(seconds):
            self._complete.wait(_TRACE_SECONDS)

    def check(self) -> None:
        """Raise when the kernel has crashed, once its trace is complete.

        Raises:
            GuestCrashedError: it crashed in a step of the scenario.
            GuestLostError: it panicked before the first, or it reports a timeout by a clock that
                runs too fast.
        """
        if not self._seen.is_set():
            return
        self._await_trace()
        if not self.panicked:
            kind = splat(self._why) or "bug"
            if kind in TIMED:
                self.check_clock()
            raise self._crashed(f"{KINDS[kind]}: {self._why}", kind, self._why)
        if self._step is None:
            raise GuestLostError(
                f"{_PANICKED} before the scenario's first step: {self._why}", hint=_HINT
            )
        raise self._crashed(f"{_PANICKED}: {self._why}", "panic", self._why)

    def check_boot(self) -> None:
        """Raise when the kernel has crashed during its boot.

        Raises:
            GuestCrashedError: the boot is a step of the scenario, and its drivers are in the trace.
            GuestLostError: any other panic.
        """
        if not self._seen.is_set():
            return
        self._await_trace()
        if self._step is not None and names_the_drivers(self._trace):
            self.check()
        if self.panicked:
            raise GuestLostError(
                f"{_PANICKED} before it reached userspace: {self._why}",
                hint="the trace is at the end of serial.log in the evidence",
            )

    def ended(self, error: GuestEndedError) -> None:
        """Raise for a guest that has ended without a message on the console.

        Raises:
            GuestCrashedError: the guest ended in a step of the scenario.
            GuestEndedError: it ended before the first.
        """
        if self._step is None:
            raise error
        self._trace = list(self._before)
        raise self._crashed(error.message, "guest_ended")

    def _await_trace(self) -> None:
        """Wait for the end of the trace, and for the panic that follows an oops on some kernels."""
        self._complete.wait(max(0.0, self._when + _TRACE_SECONDS - time.monotonic()))
        if self._panicked.wait(_AFTERMATH_SECONDS):
            self._complete.wait(max(0.0, self._when + _TRACE_SECONDS - time.monotonic()))

    def _crashed(self, what: str, kind: str, subject: str = "") -> GuestCrashedError:
        step = self._step() if self._step is not None else ""
        during = f" (during {step})" if step else ""
        return GuestCrashedError(
            f"{what}{during}",
            hint=_HINT,
            trace=self.trace,
            step=step,
            kind=kind,
            subject=subject,
        )

    def _counts(self, text: str) -> bool:
        if self._step is None or not ends_the_guest(text):
            return False
        return not any(pattern.search(_TIME.sub("", text)) for pattern in self._expected)

    def _headed(self) -> list[str]:
        """The lines of a trace that has begun before, as of a warning that becomes a panic."""
        lines = list(self._before)
        begins = [at for at, text in enumerate(lines) if _CUT in text]
        if not begins or any(_END_OF_TRACE.search(text) for text in lines[begins[-1] :]):
            return []
        return lines[begins[-1] :]
