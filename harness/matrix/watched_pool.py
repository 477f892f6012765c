# SPDX-License-Identifier: GPL-2.0-or-later
"""A pool of workers that passes each result to a callback as soon as it arrives."""

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
"""Callback with an entry, its result if it has one, and its `finished` message."""


class WatchedPool:
    """Wraps another pool.

    Args:
        ended: called from several threads for every entry that ends; not for cancelled ones.
    """

    def __init__(self, pool: Pool, ended: Ended) -> None:
        self._pool = pool
        self._ended = ended
        self._error: HarnessError | None = None

    @property
    def size(self) -> int:
        """Number of concurrent entries."""
        return self._pool.size

    def check(self) -> None:
        """Raise the first error of the callback."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop all running entries."""
        self._pool.close()

    def run(self, one: Combination, output: Path, say: Say, ticket: Ticket) -> None:
        """Run an entry."""
        result: dict[str, Any] | None = None

        def receive(message: Message) -> None:
            nonlocal result
            if message.get("type") == "whiteboard":
                result = json.loads(message["log"])
            if message["status"] == "finished":
                try:
                    self._ended(one, result, message)
                except HarnessError as error:
                    # Not raised here: the job would wait for this entry forever.
                    self._error = self._error or error
            say(message)

        self._pool.run(one, output, receive, ticket)
