# SPDX-License-Identifier: GPL-2.0-or-later
"""A pool of workers whose results somebody else hears of as well, as soon as they are there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.matrix.entry import Message, Say
from harness.matrix.plan import Combination
from harness.matrix.worker_messages import Ticket
from harness.matrix.worker_pool import Pool

Ended = Callable[[Combination, Mapping[str, Any] | None, Message], None]
"""Hears of the end of a combination: its result, if there is one, and its `finished` message."""


class WatchedPool:
    """Passes all on to another pool.

    Args:
        pool: does the work.
        ended: hears of every end, from several threads; not of what is cut short.
    """

    def __init__(self, pool: Pool, ended: Ended) -> None:
        self._pool = pool
        self._ended = ended
        self._error: HarnessError | None = None

    @property
    def size(self) -> int:
        """How many combinations run at once."""
        return self._pool.size

    def check(self) -> None:
        """Raise what kept anybody from hearing of an end."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End all that is under way."""
        self._pool.close()

    def run(self, one: Combination, output: Path, say: Say, ticket: Ticket) -> None:
        """Run a combination."""
        result: dict[str, Any] | None = None

        def heard(message: Message) -> None:
            nonlocal result
            if message.get("type") == "whiteboard":
                result = json.loads(message["log"])
            if message["status"] == "finished":
                try:
                    self._ended(one, result, message)
                except HarnessError as error:
                    # Whoever runs the job would wait for this end for ever.
                    self._error = self._error or error
            say(message)

        self._pool.run(one, output, heard, ticket)
