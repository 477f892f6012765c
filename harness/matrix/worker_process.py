# SPDX-License-Identifier: GPL-2.0-or-later
"""The process of a worker, local or over SSH, and the requests to it."""

from __future__ import annotations

import os
import selectors
import shlex
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import msgspec

from harness.core.deadline import Deadline
from harness.core.errors import HarnessError, UsageError
from harness.core.process import spawn
from harness.core.version import harness_version
from harness.matrix.entry import Message, Say, decode, encode
from harness.matrix.hosts import LabHost
from harness.matrix.plan import Combination
from harness.matrix.worker import BEAT_SECONDS, PROTOCOL

_HELLO_SECONDS = 60.0
_SILENCE_SECONDS = 12 * BEAT_SECONDS
_SEND_SECONDS = 600.0
_END_SECONDS = 3.0
_UNHEARD = "check that ssh to the host works, and the load of the host and the network"
_PART = 256 * 1024
_LINE = 64 * 1024 * 1024
_SSH = (
    "ssh", "-T",
    "-o", "BatchMode=yes",  # never prompt for a password
    "-o", "ConnectTimeout=15",
    "-o", "ServerAliveInterval=5",  # detect a disconnected host
    "-o", "ServerAliveCountMax=3",
)  # fmt: skip


class WorkerLostError(HarnessError):
    """A worker exited or stopped responding; its last request has no result."""


def worker_argv(host: LabHost) -> tuple[str, ...]:
    """Return the command that starts a worker on a host."""
    command = (*host.command, "matrix-worker")
    if host.ssh is None:
        return command
    return (*_SSH, *host.options, host.ssh, "--", shlex.join(command))


class WorkerProcess:
    """A connected worker. Made by `started_worker`.

    Attributes:
        hello: the facts about its machine that it sent.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.hello: Message = {}
        self._name = name
        self._process = process
        self._errors = errors
        self._buffer = bytearray()
        assert process.stdout is not None and process.stdin is not None
        self._output = process.stdout.fileno()
        self._input = process.stdin
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)

    def greet(self) -> None:
        """Wait for its hello.

        Raises:
            WorkerLostError: it did not arrive.
            UsageError: the host lacks something, or has another version.
        """
        answer = self._next(Deadline(_HELLO_SECONDS, f"the worker on {self._name}", _UNHEARD))
        self.hello = answer.get("hello", {})
        theirs = (self.hello.get("protocol"), self.hello.get("version"))
        if theirs != (PROTOCOL, harness_version()):
            raise UsageError(
                f"the host has version {theirs[1]}, this machine {harness_version()}",
                where=self._name,
                hint="install the same version on all hosts",
            )

    def has(self, kind: str, key: str, alias: str | None = None) -> bool:
        """Ask the worker for an entry of its store."""
        self._send({"do": "has", "kind": kind, "key": key, "alias": alias})
        answer = self._next(Deadline(_SEND_SECONDS, f"{self._name} to search its store", _UNHEARD))
        return bool(answer.get("has"))

    def put(self, entry: Path, alias: str | None = None) -> int:
        """Send an entry of the store; returns its size in bytes.

        Raises:
            UsageError: the worker cannot store it.
            WorkerLostError: the worker is lost.
        """
        deadline = Deadline(_SEND_SECONDS, f"{self._name} to receive {entry.name[:12]}", _UNHEARD)
        with tempfile.TemporaryFile() as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                for name in sorted(os.listdir(entry)):
                    archive.add(entry / name, arcname=name)
            size = file.tell()
            file.seek(0)
            kind = entry.parent.name
            self._send({"do": "put", "kind": kind, "key": entry.name, "alias": alias, "size": size})
            while part := file.read(_PART):
                deadline.check()
                self._send({"data": part})
            self._send({"end": True})
        self._next(deadline)
        return size

    def run(
        self,
        combination: Combination,
        output: Path,
        say: Say,
        *,
        shared: bool,
        stored: str | None,
    ) -> None:
        """Run an entry and forward its messages.

        Raises:
            WorkerLostError: the worker is lost.
        """
        self._send(
            {
                "do": "run",
                "combination": msgspec.to_builtins(combination),
                "output": str(output),
                "shared": shared,
                "stored": stored,
            }
        )
        while not (answer := self._answer()).get("done"):
            say(answer["message"])

    def terminate(self) -> None:
        """Stop the worker and its guest; a waiting `run` raises. Callable from any thread.

        Over SSH, the worker stops when the connection closes its standard input.
        """
        self._process.terminate()

    def close(self) -> None:
        """Close its standard input, so that it exits."""
        self._input.close()

    def _answer(self) -> Message:
        return self._next(Deadline(_SILENCE_SECONDS, f"a heartbeat of {self._name}", _UNHEARD))

    def _send(self, message: Message) -> None:
        try:
            self._input.write(encode(message))
            self._input.flush()
        except OSError:
            raise self._lost("the worker has exited") from None

    def _next(self, deadline: Deadline) -> Message:
        """Return the next message that is not a heartbeat."""
        seconds = deadline.seconds
        while True:
            message = self._line(deadline)
            if "problem" in message:
                problem = message["problem"]
                where = f"{self._name}: {problem['where']}" if problem["where"] else self._name
                raise UsageError(problem["message"], where=where, hint=problem["hint"])
            if not message.get("beat"):
                return message
            if seconds == _SILENCE_SECONDS:
                deadline = Deadline(seconds, deadline.what, deadline.hint)

    def _line(self, deadline: Deadline) -> Message:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _LINE:
                raise self._lost("incompatible worker protocol")
            if not self._selector.select(deadline.remaining()):
                raise self._lost(f"no reply for {deadline.seconds:g} s")
            part = os.read(self._output, 1 << 20)
            if not part:
                raise self._lost("the connection was closed")
            self._buffer += part
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            return decode(line)
        except ValueError:
            raise self._lost(f"unexpected reply {line[:80].decode(errors='replace')!r}") from None

    def _lost(self, why: str) -> WorkerLostError:
        time.sleep(0.05)  # its last error output may still be in the pipe
        size = os.fstat(self._errors.fileno()).st_size
        tail = os.pread(self._errors.fileno(), 2000, max(0, size - 2000)).decode(errors="replace")
        last = " / ".join(tail.strip().splitlines()[-3:])
        return WorkerLostError(
            why + (f": {last}" if last else ""),
            where=self._name,
            hint="check that ssh works without a password, and run harness doctor on the host",
        )


@contextmanager
def started_worker(
    host: LabHost, argv_of: Callable[[LabHost], Sequence[str]] = worker_argv
) -> Iterator[WorkerProcess]:
    """Start a worker on a host for the length of the block.

    Raises:
        WorkerLostError: the host cannot be reached.
        UsageError: the host lacks something.
    """
    with ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile())
        process = stack.enter_context(
            spawn(
                argv_of(host),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(host),
            )
        )
        worker = WorkerProcess(host.name, process, errors)
        try:
            worker.greet()
            yield worker
        finally:
            # It stops its guests and exits when its standard input is closed.
            with suppress(OSError):
                worker.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_END_SECONDS)


def _environment(host: LabHost) -> dict[str, str]:
    """Select the environment of a worker: the harness's variables here, the agent for SSH."""
    names = ("SSH_AUTH_SOCK",) if host.ssh else ("PYTHONPATH", "XDG_STATE_HOME")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    if host.ssh is None:
        kept |= {name: value for name, value in os.environ.items() if name.startswith("HARNESS_")}
    return kept
