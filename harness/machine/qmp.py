# SPDX-License-Identifier: GPL-2.0-or-later
"""A QMP session, with a deadline on every exchange."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any

from harness.core.errors import MachineLostError

_CLOSE_SECONDS = 1.0


class Monitor:
    """QEMU's own QMP client, with synchronous exchanges.

    Args:
        connection: the harness's end of the monitor's socket pair.
        seconds: how long a reply may take.
    """

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        from qemu.qmp import QMPClient

        self._connection = connection
        self._seconds = seconds
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _loop, _context: None)
        self._client = QMPClient()

    def connect(self) -> None:
        """Wait for the greeting and negotiate capabilities.

        Raises:
            MachineLostError: no greeting in time.
        """
        self._exchange("the QMP greeting", self._client.connect(self._connection))

    def command(self, name: str, arguments: Mapping[str, object]) -> Any:
        """Run a QMP command and return its result.

        Raises:
            MachineLostError: QEMU refused, did not respond in time, or has ended.
        """
        return self._exchange(
            f"the QMP command {name}", self._client.execute(name, dict(arguments))
        )

    def shutdown_reason(self) -> str:
        """QEMU's reason for its end (`guest-reset`, `host-signal`); empty without one.

        Source: QEMU, qapi/run-state.json, the event SHUTDOWN.
        """
        with suppress(Exception):
            self._loop.run_until_complete(asyncio.wait_for(self._last_events(), _CLOSE_SECONDS))
        for event in self._client.events.history:
            data = event.get("data")
            if event["event"] == "SHUTDOWN" and isinstance(data, dict):
                return str(data.get("reason", ""))
        return ""

    async def _last_events(self) -> None:
        """Read until QEMU's end of the connection closes."""
        from qemu.qmp import Runstate

        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()

    def close(self) -> None:
        """End the session in any state."""
        with suppress(Exception):
            self._loop.run_until_complete(
                asyncio.wait_for(self._client.disconnect(), _CLOSE_SECONDS)
            )
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        with suppress(Exception):
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    def _exchange(self, what: str, action: Coroutine[Any, Any, Any]) -> Any:
        from qemu.qmp import ExecuteError, QMPError

        try:
            return self._loop.run_until_complete(asyncio.wait_for(action, self._seconds))
        except ExecuteError as error:
            raise MachineLostError(
                f"QEMU refused {what}: {error}", hint="see qemu.log in the evidence"
            ) from None
        except TimeoutError:
            raise MachineLostError(
                f"QEMU did not answer {what} in {self._seconds:g} s",
                hint="is the host overloaded or suspended?",
            ) from None
        except (QMPError, OSError, EOFError, AssertionError) as error:
            # The client asserts its own state when a session breaks.
            raise MachineLostError(
                f"the monitor connection broke at {what}: {error or type(error).__name__}",
                hint="see qemu.log in the evidence",
            ) from None
