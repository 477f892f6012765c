# SPDX-License-Identifier: GPL-2.0-or-later
"""Matrix worker: runs entries that it reads from standard input.

Both sides write lines of JSON. The worker starts with `hello`, then answers one request after the
other: `has`, `put` or `run`. It exits when its standard input is closed.
"""

from __future__ import annotations

import os
import platform
import queue
import signal
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from harness.core.cache import Store
from harness.core.errors import HarnessError, UsageError
from harness.core.paths import store_root
from harness.core.progress import SilentProgress
from harness.core.version import harness_version
from harness.machine.qemu_binary import require_qemu
from harness.matrix.entry import CombinationRun, Describe, Message, decode, encode
from harness.matrix.matrix_file import read_combination, this_capacity

PROTOCOL = 1
BEAT_SECONDS = 5.0
# The evidence of the largest run is a few MB; saved machines are kept in memory.
_ROOM = 256 * 1024 * 1024


class Worker:
    """Answers requests until the input ends.

    Args:
        requests: lines of JSON.
        describe: formats a result for the terminal.
    """

    def __init__(self, requests: IO[bytes], answers: IO[bytes], describe: Describe) -> None:
        self._requests = requests
        self._answers = answers
        self._describe = describe
        self._lock = threading.Lock()
        self._lines: queue.Queue[bytes] = queue.Queue(maxsize=16)
        self._store = Store(store_root())

    def serve(self) -> None:
        """Send hello, then answer requests until the input ends."""
        self._answer(self._hello())
        threading.Thread(target=self._listen, daemon=True, name="requests").start()
        with self._beating():
            while line := self._lines.get():
                try:
                    self._do(decode(line))
                except HarnessError as error:
                    self._answer(_problem(error))

    def _hello(self) -> Message:
        capacity = this_capacity()
        hello: Message = {
            "protocol": PROTOCOL,
            "version": harness_version(),
            "python": platform.python_version(),
            "machine": platform.node(),
            "cores": capacity.cores,
            "memory": capacity.memory,
            "guests": capacity.guests,
        }
        try:
            hello["qemu"] = require_qemu().version_text
            self._require_room()
        except HarnessError as error:
            return {**_problem(error), "hello": hello}
        return {"hello": hello}

    def _listen(self) -> None:
        for line in self._requests:
            self._lines.put(line)
        # The client has exited. The signal stops the current run and leaves its `with` blocks.
        self._lines.put(b"")
        os.kill(os.getpid(), signal.SIGTERM)

    def _do(self, request: Message) -> None:
        match request.get("do"):
            case "has":
                self._answer({"has": self._find(request) is not None})
            case "put":
                self._put(request)
                self._answer({"put": True})
            case "run":
                self._require_room()
                run = CombinationRun(
                    read_combination(request["combination"]),
                    Path(request["output"]),
                    SilentProgress(),
                    describe=self._describe,
                    shared=request["shared"],
                    stored=request["stored"],
                )
                run.run(lambda message: self._answer({"message": message}))
                self._answer({"done": True})
            case other:
                raise UsageError(
                    f"unknown request {other!r}", hint="use the same version on all hosts"
                )

    def _find(self, request: Message) -> Path | None:
        if request.get("alias"):
            return self._store.find_alias(request["kind"], request["alias"])
        return self._store.find(request["kind"], request["key"])

    def _put(self, request: Message) -> None:
        """Receive an entry of the store as a tar archive in parts."""
        kind, key, size = request["kind"], request["key"], request["size"]
        parts = _Parts(self._lines, size)
        try:
            self._store.require_space(size + _ROOM, f"{kind}/{key[:12]}")
            self._store.build(kind, key, parts.unpack, what=f"receiving {kind}/{key[:12]}")
        finally:
            parts.drain()
        if request.get("alias"):
            self._store.set_alias(kind, request["alias"], key)

    def _require_room(self) -> None:
        for place in (self._store.root, Path(tempfile.gettempdir())):
            _require_room(place)

    def _answer(self, message: Message) -> None:
        with self._lock:
            self._answers.write(encode(message))
            self._answers.flush()

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Send a heartbeat at regular intervals."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT_SECONDS):
                try:
                    self._answer({"beat": True})
                except OSError:
                    return

        thread = threading.Thread(target=beat, daemon=True, name="beat")
        thread.start()
        try:
            yield
        finally:
            over.set()


class _Parts:
    """A file in lines of JSON: `data`, until `end`."""

    def __init__(self, lines: queue.Queue[bytes], size: int) -> None:
        self._lines = lines
        self._size = size
        self._ended = False

    def unpack(self, folder: Path) -> None:
        """Unpack the archive.

        Raises:
            UsageError: it is incomplete.
        """
        with tempfile.TemporaryFile(dir=folder.parent) as file:
            while part := self._next():
                file.write(part)
            if file.tell() != self._size:
                raise UsageError(
                    f"{file.tell()} of {self._size} bytes arrived", hint="check the network"
                )
            file.seek(0)
            with tarfile.open(fileobj=file) as archive:
                if hasattr(tarfile, "tar_filter"):
                    archive.extractall(folder, filter="tar")
                else:
                    archive.extractall(folder)  # the client may run any command here

    def drain(self) -> None:
        """Discard the rest, so that the next line is a request."""
        while self._next():
            pass

    def _next(self) -> bytes:
        line = b"" if self._ended else self._lines.get()
        message: Message = decode(line) if line else {}
        data: bytes = message.get("data", b"")
        self._ended = not data
        return data


def _require_room(place: Path) -> None:
    while not place.exists():
        place = place.parent
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    if free < _ROOM:
        raise UsageError(
            f"{free >> 20} MiB free, {_ROOM >> 20} MiB needed",
            where=str(place),
            hint="free some space, or set HARNESS_STORE and TMPDIR to folders on another disk",
        )


def _problem(error: HarnessError) -> Message:
    return {"problem": {"message": error.message, "hint": error.hint, "where": error.where}}


def serve_standard_input(describe: Describe) -> None:
    """Run a worker on standard input and output."""
    requests = sys.stdin.buffer
    # Other output of this process must not mix with the messages.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    Worker(requests, answers, describe).serve()
