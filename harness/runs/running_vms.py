# SPDX-License-Identifier: GPL-2.0-or-later
"""The QEMUs that run, so that all of them can be ended at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from harness.core.errors import HarnessError
from harness.machine.qemu import Qemu


class StoppedError(Exception):
    """The harness has ended a guest itself: there is nothing to say about its run."""


class LiveMachines:
    """Knows every running machine, of whichever thread. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._machines: set[Qemu] = set()
        self._stopped = False

    @contextmanager
    def tracked(self, machine: Qemu) -> Iterator[None]:
        """Know a machine for the length of the block.

        Raises:
            StoppedError: all machines have been stopped, in place of the error that this led to.
        """
        with self._lock:
            if self._stopped:
                machine.kill()
                raise StoppedError
            self._machines.add(machine)
        try:
            yield
        except HarnessError:
            if self._stopped:
                raise StoppedError from None
            raise
        finally:
            with self._lock:
                self._machines.discard(machine)

    def stop(self) -> None:
        """End every machine, those that start later as well. Does not wait for them."""
        with self._lock:
            self._stopped = True
            for machine in self._machines:
                machine.kill()

    def go_on(self) -> None:
        """Let machines start again, after all that were stopped have ended."""
        with self._lock:
            self._stopped = False
