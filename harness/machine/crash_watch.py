# SPDX-License-Identifier: GPL-2.0-or-later
"""Notices on the console that the guest's kernel has died."""

from __future__ import annotations

import re
import threading
import time

from harness.errors import GuestCrashedError

_PANIC = re.compile(r"Kernel panic - not syncing: (?P<why>.*)")
_END = re.compile(r"---\[ end Kernel panic|Rebooting in|reboot: |Kernel Offset:")
_TRACE_SECONDS = 2.0


class CrashWatch:
    """Sees every console line; `check` raises once the kernel has panicked."""

    def __init__(self) -> None:
        self._seen = threading.Event()
        self._complete = threading.Event()
        self._why = ""
        self._when = 0.0

    def line(self, text: str) -> None:
        """Look at one line; called in the console's thread."""
        match = _PANIC.search(text)
        if match is not None and not self._seen.is_set():
            self._why = match["why"].strip()
            self._when = time.monotonic()
            self._seen.set()
        if self._seen.is_set() and _END.search(text):
            self._complete.set()

    @property
    def panicked(self) -> bool:
        """Whether a panic was seen."""
        return self._seen.is_set()

    def check(self) -> None:
        """Raise when the kernel has panicked and its trace is on the console.

        Raises:
            GuestCrashedError: it has.
        """
        if not self._seen.is_set():
            return
        self._complete.wait(max(0.0, self._when + _TRACE_SECONDS - time.monotonic()))
        raise GuestCrashedError(
            f"the guest's kernel panicked: {self._why}",
            hint="the trace is at the end of serial.log in the evidence",
        )
