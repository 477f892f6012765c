# SPDX-License-Identifier: GPL-2.0-or-later
"""How long the phases of a run took."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Timings:
    """Seconds by phase, in the order in which the phases ended.

    Args:
        before: phases that have ended already, and count in the total.
    """

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self._seconds: dict[str, float] = dict(before or {})
        self._begin = time.monotonic() - sum(self._seconds.values())

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
