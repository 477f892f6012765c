# SPDX-License-Identifier: GPL-2.0-or-later
"""The near end of a worker: its process, here or behind SSH, and what it is asked."""

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
_UNHEARD = "can you log in there with ssh? Is that host, or the network, overloaded?"
_PART = 256 * 1024
_LINE = 64 * 1024 * 1024
_SSH = (
    "ssh", "-T",
    "-o", "BatchMode=yes",  # nobody is there to type a password
    "-o", "ConnectTimeout=15",
    "-o", "ServerAliveInterval=5",  # a host that is cut off is noticed
    "-o", "ServerAliveCountMax=3",
)  # fmt: skip


class WorkerLostError(HarnessError):
    """A worker ended, or fell silent: what it did last has no result."""


def worker_argv(host: LabHost) -> tuple[str, ...]:
    """The command that starts a worker on a host."""
    command = (*host.command, "matrix-worker")
    if host.ssh is None:
        return command
    return (*_SSH, *host.options, host.ssh, "--", shlex.join(command))


class WorkerProcess:
    """A worker that answers. Made by `started_worker`.

    Attributes:
        hello: what it said of its machine.
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
            WorkerLostError: it did not say it.
            UsageError: its machine lacks something, or it has another version.
        """
        said = self._next(Deadline(_HELLO_SECONDS, f"the worker on {self._name}", _UNHEARD))
        self.hello = said.get("hello", {})
        theirs = (self.hello.get("protocol"), self.hello.get("version"))
        if theirs != (PROTOCOL, harness_version()):
            raise UsageError(
                f"it has version {theirs[1]} of the harness, this is {harness_version()}",
                where=self._name,
                hint="install the same version on all hosts",
            )

    def has(self, kind: str, key: str, alias: str | None = None) -> bool:
        """Whether its store has an entry."""
        self._send({"do": "has", "kind": kind, "key": key, "alias": alias})
        answer = self._next(
            Deadline(_SEND_SECONDS, f"{self._name} to look into its store", _UNHEARD)
        )
        return bool(answer.get("has"))

    def put(self, entry: Path, alias: str | None = None) -> int:
        """Send it an entry of the store; the bytes that went.

        Raises:
            UsageError: it cannot keep it.
            WorkerLostError: it is gone.
        """
        deadline = Deadline(_SEND_SECONDS, f"{self._name} to take {entry.name[:12]}", _UNHEARD)
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
        """Have it run a combination, to the last message.

        Raises:
            WorkerLostError: it is gone.
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
        """Have it end its guest and itself; whoever waits for it sees that it is lost. Any thread.

        Behind SSH that goes by its standard input, which ends with the connection.
        """
        self._process.terminate()

    def close(self) -> None:
        """Tell it that there is nothing more to do."""
        self._input.close()

    def _answer(self) -> Message:
        return self._next(Deadline(_SILENCE_SECONDS, f"a sign of life of {self._name}", _UNHEARD))

    def _send(self, message: Message) -> None:
        try:
            self._input.write(encode(message))
            self._input.flush()
        except OSError:
            raise self._lost("it has gone") from None

    def _next(self, deadline: Deadline) -> Message:
        """The next line that is not only a sign of life."""
        patience = deadline.seconds
        while True:
            message = self._line(deadline)
            if "problem" in message:
                problem = message["problem"]
                where = f"{self._name}: {problem['where']}" if problem["where"] else self._name
                raise UsageError(problem["message"], where=where, hint=problem["hint"])
            if not message.get("beat"):
                return message
            if patience == _SILENCE_SECONDS:
                deadline = Deadline(patience, deadline.what, deadline.hint)

    def _line(self, deadline: Deadline) -> Message:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _LINE:
                raise self._lost("it does not speak the worker's language")
            if not self._selector.select(deadline.remaining()):
                raise self._lost(f"nothing was heard of it for {deadline.seconds:g} s")
            part = os.read(self._output, 1 << 20)
            if not part:
                raise self._lost("its connection has ended")
            self._buffer += part
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            return decode(line)
        except ValueError:
            raise self._lost(f"it said {line[:80].decode(errors='replace')!r}") from None

    def _lost(self, why: str) -> WorkerLostError:
        time.sleep(0.05)  # what it said last may still be on its way
        size = os.fstat(self._errors.fileno()).st_size
        said = os.pread(self._errors.fileno(), 2000, max(0, size - 2000)).decode(errors="replace")
        last = " / ".join(said.strip().splitlines()[-3:])
        return WorkerLostError(
            why + (f": {last}" if last else ""),
            where=self._name,
            hint="can you log in there with ssh, without a password, and run harness doctor?",
        )


@contextmanager
def started_worker(
    host: LabHost, argv_of: Callable[[LabHost], Sequence[str]] = worker_argv
) -> Iterator[WorkerProcess]:
    """A worker on a host, for the length of the block; it has said hello.

    Raises:
        WorkerLostError: it cannot be reached.
        UsageError: its machine lacks something.
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
            # It ends with its standard input, and ends its guests before.
            with suppress(OSError):
                worker.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_END_SECONDS)


def _environment(host: LabHost) -> dict[str, str]:
    """What of this environment a worker needs: its own settings here, or keys for SSH."""
    wanted = ("SSH_AUTH_SOCK",) if host.ssh else ("PYTHONPATH", "XDG_STATE_HOME")
    kept = {name: os.environ[name] for name in wanted if name in os.environ}
    if host.ssh is None:
        kept |= {name: value for name, value in os.environ.items() if name.startswith("HARNESS_")}
    return kept
