# SPDX-License-Identifier: GPL-2.0-or-later
"""Deadlines: each wait has one, which names what it waits for."""

from __future__ import annotations

import time

from harness.core.errors import DeadlineExpiredError


class Deadline:
    """A point in monotonic time at which a wait ends with an error.

    Args:
        seconds: how long from now, > 0.
        what: the awaited event, as it reads after "timed out after N s waiting for".
        hint: what the reader can do when it expires; the default is for guests of a run.
    """

    def __init__(
        self,
        seconds: float,
        what: str,
        hint: str = "see the end of serial.log in the evidence; is the host too busy? Try --jobs 1",
    ) -> None:
        self.seconds = seconds
        self.what = what
        self.hint = hint
        self._end = time.monotonic() + seconds

    def times(self, factor: float) -> Deadline:
        """Return the same wait, `factor` times as long, from the same start."""
        longer = Deadline(self.seconds * factor, self.what, self.hint)
        longer._end = self._end + self.seconds * (factor - 1)
        return longer

    def remaining(self) -> float:
        """Return the seconds left, never negative."""
        return max(0.0, self._end - time.monotonic())

    def expired(self) -> bool:
        """Return whether no time is left."""
        return time.monotonic() >= self._end

    def error(self) -> DeadlineExpiredError:
        """Return the error to raise when this deadline has passed."""
        error = DeadlineExpiredError(
            f"timed out after {self.seconds:g} s waiting for {self.what}", hint=self.hint
        )
        error.seconds = self.seconds
        return error

    def check(self) -> float:
        """Return the seconds left, > 0.

        Raises:
            DeadlineExpiredError: no time is left.
        """
        left = self.remaining()
        if left <= 0:
            raise self.error()
        return left
