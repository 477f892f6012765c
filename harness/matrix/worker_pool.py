# SPDX-License-Identifier: GPL-2.0-or-later
"""Workers on one or several hosts; an entry of a lost host is run on another host."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.core.cache import Store
from harness.core.errors import HarnessError, NotConfigurableError, UsageError
from harness.core.kernel import Kernel
from harness.core.progress import Progress
from harness.guest.userland import PACKAGES, userland
from harness.kernels.resolve import resolve_kernel
from harness.kernels.store import kernel_in_use
from harness.matrix.entry import Say
from harness.matrix.hosts import LabHost
from harness.matrix.plan import Combination
from harness.matrix.worker_messages import (
    NoHostError,
    Ticket,
    Told,
    ending_without_result,
    note,
)
from harness.matrix.worker_process import (
    WorkerLostError,
    WorkerProcess,
    started_worker,
    worker_argv,
)
from harness.runs.prepare import request_for
from harness.runs.requirements import not_about
from harness.scenario.scenario_files import load_case

_MOST_LOSSES = 3
"""The most workers that an entry may lose, and the most consecutive entries of a host that may lose
their worker."""
_RETRY_SECONDS = 2.0
_CLOSE_SECONDS = 10.0


@dataclass(eq=False)
class _Host:
    """A host, and the entries that lost their worker there. `lock` guards sending to it."""

    lab: LabHost
    lost: set[str] = field(default_factory=set)
    dead: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(eq=False)
class _Slot:
    """A slot for one guest on a host, with its worker once started."""

    host: _Host
    worker: WorkerProcess | None = None
    stack: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        self.worker = None
        self.stack.close()


class Pool(Protocol):
    """Runs entries concurrently."""

    @property
    def size(self) -> int:
        """Number of concurrent entries."""

    def run(self, one: Combination, output: Path, say: Say, ticket: Ticket) -> None:
        """Run one entry, and send its messages."""

    def close(self) -> None:
        """Stop all running entries."""


class WorkerPool:
    """Runs entries on hosts. `run` is callable from any thread.

    Args:
        store: of this machine; kernels are sent from it.
        argv_of: the command that starts a worker on a host.
    """

    def __init__(
        self,
        hosts: Sequence[LabHost],
        store: Store,
        progress: Progress,
        argv_of: Callable[[LabHost], Sequence[str]] = worker_argv,
    ) -> None:
        self._hosts = [_Host(one) for one in hosts]
        self._store = store
        self._progress = progress
        self._argv_of = argv_of
        self._slots: list[_Slot] = []
        self._changed = threading.Condition()
        self._free: list[_Slot] = []
        self._closed = False

    @property
    def size(self) -> int:
        """Number of concurrent entries."""
        return len(self._slots)

    def connect(self) -> None:
        """Connect to every host, and query its number of guests.

        Raises:
            UsageError: no host can run guests; with the reason for each.
        """
        for host in self._hosts:
            first = _Slot(host)
            try:
                hello = self._start(first).hello
            except HarnessError as error:
                self._give_up(host, error)
                continue
            guests = host.lab.guests or int(hello["guests"])
            self._slots += [first, *(_Slot(host) for _ in range(guests - 1))]
        if not self._slots:
            raise UsageError(
                "no host can run guests:\n" + self._why_dead(),
                hint="fix one of them, or run on this machine without --hosts",
            )
        self._free = list(reversed(self._slots))

    def close(self) -> None:
        """Stop all workers. Running entries have no result."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            busy = [slot for slot in self._slots if slot not in self._free]
            for slot in busy:
                if slot.worker is not None:
                    slot.worker.terminate()
            # Threads release their slots soon, because their workers are ending.
            self._changed.wait_for(lambda: len(self._free) == len(self._slots), _CLOSE_SECONDS)
        for slot in self._slots:
            slot.close()

    def run(self, one: Combination, output: Path, say: Say, ticket: Ticket) -> None:
        """Run an entry on a host, and on another one if that is lost.

        Sends `finished` in any case, unless the entry is cancelled.
        """
        told = Told(say, ticket)
        try:
            self._run(one, output, told, ticket)
        except Exception as error:
            told({"status": "started"})
            told(ending_without_result(error))
        finally:
            ticket.begun.set()

    def _run(self, one: Combination, output: Path, told: Told, ticket: Ticket) -> None:
        losses = 0
        avoid: set[_Host] = set()
        while not ticket.is_cancelled():
            with self._slot(avoid) as slot:
                ticket.begun.set()
                try:
                    self._run_in(slot, one, output, told, ticket)
                    slot.host.lost.clear()
                    return
                except (WorkerLostError, _HostError) as error:
                    slot.close()
                    if ticket.is_cancelled() or self._closed:
                        return
                    cause = error.cause if isinstance(error, _HostError) else error
                    final = isinstance(error, _HostError)
                    self._count_loss(slot.host, one, cause, final=final)
                    losses += not final
                    avoid.add(slot.host)
                    if losses == _MOST_LOSSES:
                        raise WorkerLostError(
                            f"{losses} workers were lost while they ran it, the last: "
                            f"{cause.message}",
                            where=cause.where,
                            hint="run it with harness run; it may need more memory",
                        ) from None
                    told(note(f"lost {slot.host.lab.name}, running on another host: {cause}"))
                except HarnessError:
                    raise
                except Exception:
                    # The worker may be waiting for the rest of an entry of the store.
                    slot.close()
                    raise

    def _run_in(
        self, slot: _Slot, one: Combination, output: Path, told: Told, ticket: Ticket
    ) -> None:
        remote = slot.host.lab.ssh is not None
        kernel = self._kernel(one) if remote else None
        try:
            worker = slot.worker or self._start(slot)
            ticket.worker = worker
            if ticket.is_cancelled():
                return
            if kernel is not None:
                self._send(slot.host, worker, kernel)
            told(note(f"on {slot.host.lab.name} ({worker.hello.get('machine')})"))
            stored = kernel.identity if kernel else None
            worker.run(one, output, told, shared=not remote, stored=stored)
        except WorkerLostError:
            raise
        except HarnessError as error:
            raise _HostError(error) from error
        finally:
            ticket.worker = None

    def _kernel(self, one: Combination) -> Kernel:
        """Resolve the kernel of an entry in the store of this machine."""
        if one.kernel.startswith("image:"):
            raise UsageError(
                f"{one.kernel} is a file on this machine, which other hosts do not have",
                hint="with --hosts, use a debian: or build: kernel",
            )
        if "/" in one.scenario:
            raise UsageError(
                f"the scenario {one.scenario} is a file on this machine",
                hint="copy it to tests/scenarios on all hosts, and use its name",
            )
        case = load_case(one.scenario)
        try:
            return resolve_kernel(request_for(case, one.request), self._store, self._progress)
        except NotConfigurableError as error:
            raise not_about(case, error) from error

    def _send(self, host: _Host, worker: WorkerProcess, kernel: Kernel) -> None:
        """Send a host the kernel and the guest's programs that it lacks."""
        programs = userland(self._store, self._progress).parent
        entries = ((kernel.image.parent, None), (programs, "+".join(PACKAGES)))
        with host.lock, kernel_in_use(kernel):
            for entry, alias in entries:
                kind = entry.parent.name
                if not worker.has(kind, entry.name, alias):
                    size = worker.put(entry, alias)
                    self._progress.note(
                        f"{host.lab.name}: sent {kind}/{entry.name[:12]}, {size >> 20} MiB"
                    )

    def _start(self, slot: _Slot) -> WorkerProcess:
        def start() -> WorkerProcess:
            return slot.stack.enter_context(started_worker(slot.host.lab, self._argv_of))

        try:
            slot.worker = start()
        except WorkerLostError:
            time.sleep(_RETRY_SECONDS)
            try:
                slot.worker = start()
            except WorkerLostError as error:
                raise _HostError(error) from error
        return slot.worker

    @contextmanager
    def _slot(self, avoid: set[_Host]) -> Iterator[_Slot]:
        """Wait for a free slot and hold it for the length of the block.

        Args:
            avoid: hosts to use only when there is no other.

        Raises:
            NoHostError: all hosts are lost.
        """
        with self._changed:
            # No deadline: every wait of a thread that holds a slot has one.
            self._changed.wait_for(lambda: self._usable(avoid) or not self._alive())
            if not self._alive():
                raise NoHostError("no host is left:\n" + self._why_dead(), hint="fix one of them")
            slot = self._usable(avoid)[-1]
            self._free.remove(slot)
        try:
            yield slot
        finally:
            with self._changed:
                self._free.append(slot)
                self._changed.notify_all()

    def _usable(self, avoid: set[_Host]) -> list[_Slot]:
        others = any(not one.dead and one not in avoid for one in self._serving())
        return [
            slot
            for slot in self._free
            if not slot.host.dead and not (others and slot.host in avoid)
        ]

    def _serving(self) -> set[_Host]:
        return {slot.host for slot in self._slots}

    def _alive(self) -> bool:
        return not self._closed and any(not host.dead for host in self._serving())

    def _count_loss(
        self, host: _Host, one: Combination, error: HarnessError, *, final: bool
    ) -> None:
        with self._changed:
            host.lost.add(one.name)
            if final or len(host.lost) >= _MOST_LOSSES:
                self._give_up(host, error)
                self._changed.notify_all()

    def _give_up(self, host: _Host, error: HarnessError) -> None:
        if isinstance(error, _HostError):
            error = error.cause
        if not host.dead:
            host.dead = str(error)
            self._progress.note(f"host {host.lab.name} is no longer used: {error}")

    def _why_dead(self) -> str:
        return "\n".join(host.dead for host in self._hosts if host.dead)


class _HostError(HarnessError):
    """An error of the host, not of the entry; retrying on this host does not help."""

    def __init__(self, cause: HarnessError) -> None:
        super().__init__(cause.message, hint=cause.hint, where=cause.where)
        self.cause = cause
