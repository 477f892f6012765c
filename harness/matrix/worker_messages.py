# SPDX-License-Identifier: GPL-2.0-or-later
"""Status messages a worker pool sends for one matrix entry."""

from __future__ import annotations

import threading

from harness.core.errors import HarnessError
from harness.matrix.entry import Message, Say, ending_of_error
from harness.matrix.worker_process import WorkerProcess

NO_HOST = "NoHost"
"""The `fail_class` of an entry that was not run because no host is left."""


class NoHostError(HarnessError):
    """No host is left that can run guests."""


class Ticket:
    """A running entry, which any thread may cancel.

    Attributes:
        begun: set when the entry gets a slot, or when it is clear that it will not get one.
        worker: the worker that runs it now.
    """

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.worker: WorkerProcess | None = None
        self._cancelled = threading.Event()

    def is_cancelled(self) -> bool:
        """Return True after `cancel`."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stop the entry and drop its further messages."""
        self._cancelled.set()
        worker = self.worker
        if worker is not None:
            worker.terminate()


class Told:
    """Forwards messages: `started` first and once, and none of a cancelled entry.

    Avocado 113 silently abandons the whole job when another message comes before `started`.
    """

    def __init__(self, say: Say, ticket: Ticket) -> None:
        self._say = say
        self._ticket = ticket
        self._started = False
        self._held: list[Message] = []

    def __call__(self, message: Message) -> None:
        """Forward a message, at the latest after `started`."""
        if message["status"] == "started":
            if self._started:
                return
            self._started = True
            self._pass_on(message)
            for one in self._held:
                self._pass_on(one)
        elif self._started:
            self._pass_on(message)
        else:
            self._held.append(message)

    def _pass_on(self, message: Message) -> None:
        if not self._ticket.is_cancelled():
            self._say(message)


def ending_without_result(error: Exception) -> Message:
    """Make the `finished` message of an entry that could not be run."""
    if isinstance(error, NoHostError):
        return {**ending_of_error(error), "fail_class": NO_HOST}
    if not isinstance(error, HarnessError):
        hint = "check for a full disk" if isinstance(error, OSError) else "report this bug"
        error = HarnessError(f"the run could not be started or followed: {error!r}", hint=hint)
    return ending_of_error(error)


def note(text: str) -> Message:
    """Make a message for the log of the test."""
    return {"status": "running", "type": "stdout", "log": f"{text}\n".encode(), "log_only": True}
