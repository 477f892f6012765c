# SPDX-License-Identifier: GPL-2.0-or-later
"""What a pool of workers says about a combination to who asked for it."""

from __future__ import annotations

import threading

from harness.core.errors import HarnessError
from harness.matrix.entry import Message, Say, ending_of_error
from harness.matrix.worker_process import WorkerProcess

NO_HOST = "NoHost"
"""The `fail_class` of what was not run because no host is left."""


class NoHostError(HarnessError):
    """No host is left that could run anything."""


class Ticket:
    """One combination under way, which any thread may cancel.

    Attributes:
        begun: set once it has had a slot, or will not get one.
        worker: who runs it now.
    """

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.worker: WorkerProcess | None = None
        self._cancelled = threading.Event()

    def is_cancelled(self) -> bool:
        """Whether somebody has cancelled it."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Let nothing more come of it."""
        self._cancelled.set()
        worker = self.worker
        if worker is not None:
            worker.terminate()


class Told:
    """Passes messages on: `started` first and once, and nothing of what was cancelled.

    Avocado 113 gives up on a whole job, without a word, when something else comes before `started`.
    """

    def __init__(self, say: Say, ticket: Ticket) -> None:
        self._say = say
        self._ticket = ticket
        self._started = False
        self._held: list[Message] = []

    def __call__(self, message: Message) -> None:
        """Pass a message on, now or once `started` has been."""
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
    """The `finished` message of what could not be run. A full disk of this machine is no defect."""
    if isinstance(error, NoHostError):
        return {**ending_of_error(error), "fail_class": NO_HOST}
    if not isinstance(error, HarnessError):
        hint = "is the disk full?" if isinstance(error, OSError) else "report it"
        error = HarnessError(f"the run could not be begun or followed: {error!r}", hint=hint)
    return ending_of_error(error)


def note(text: str) -> Message:
    """A line for the test's log."""
    return {"status": "running", "type": "stdout", "log": f"{text}\n".encode(), "log_only": True}
