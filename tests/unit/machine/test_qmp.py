# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import pytest

from harness.machine.qmp import Monitor

GREETING = {"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}}, "capabilities": []}}


@contextmanager
def monitor_of(*last_words: dict[str, object], linger: bool = False) -> Iterator[Monitor]:
    """A session with a QEMU that answers each command, and on `cont` says this and ends."""
    near, far = socket.socketpair()
    done = threading.Event()

    def serve() -> None:
        # The session may be over before the last words are.
        with far, suppress(BrokenPipeError):

            def say(message: Mapping[str, object]) -> None:
                far.sendall(json.dumps(message).encode() + b"\r\n")

            say(GREETING)
            # A command has no line end.
            while text := far.recv(1 << 16).decode():
                asked = json.loads(text)
                say({"return": {}} | {name: asked[name] for name in ("id",) if name in asked})
                if asked["execute"] == "cont":
                    time.sleep(0.05)  # nobody reads when this comes
                    for message in last_words:
                        say(message)
                    if linger:
                        done.wait(10)
                    return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    monitor = Monitor(near, 5.0)
    try:
        monitor.connect()
        yield monitor
    finally:
        done.set()
        monitor.close()
        near.close()
        thread.join(5)


def event(name: str, **data: object) -> dict[str, object]:
    return {"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 0}}


RESET = event("SHUTDOWN", guest=True, reason="guest-reset")


@pytest.mark.parametrize(
    ("last_words", "reason"),
    [
        ([RESET], "guest-reset"),
        ([event("RESUME"), event("STOP"), RESET], "guest-reset"),
        ([event("SHUTDOWN", guest=False, reason="host-signal")], "host-signal"),
        ([event("RESUME")], ""),
        ([], ""),
    ],
)
def test_qemu_says_why_it_ends(last_words: list[dict[str, object]], reason: str) -> None:
    with monitor_of(*last_words) as monitor:
        monitor.command("cont", {})
        assert monitor.shutdown_reason() == reason
        assert monitor.shutdown_reason() == reason, "also when it is asked again"


def test_a_qemu_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.machine.qmp._CLOSE_SECONDS", 0.05)
    with monitor_of(event("RESUME"), linger=True) as monitor:
        monitor.command("cont", {})
        assert monitor.shutdown_reason() == ""
