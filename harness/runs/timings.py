# SPDX-License-Identifier: GPL-2.0-or-later
"""How long the phases of a run took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timings:
    """Seconds by phase, in the order in which the phases ended."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._begin = time.monotonic()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block as this phase, also when it raises."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - begin

    def seconds(self) -> dict[str, float]:
        """The phases so far, and the whole time since the beginning as `total`."""
        return {**self._seconds, "total": time.monotonic() - self._begin}
