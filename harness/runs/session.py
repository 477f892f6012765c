# SPDX-License-Identifier: GPL-2.0-or-later
"""Run scenarios, each with as many guests as its loads and repeats need, concurrently."""

from __future__ import annotations

import os
import shlex
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol, Self

from harness.contract.result import RunResult, Start, Verdict
from harness.core.errors import InconclusiveError, UnbuildableError
from harness.runs.attempt import StartGuest, ended, run_guest
from harness.runs.boot import BootedGuest, BootSetup, RunningMachines
from harness.runs.combine import combine
from harness.runs.evidence import Evidence, Timings, new_evidence
from harness.runs.guest_pool import GuestPool, StartOption, choose_start, confirmed, guest_pool
from harness.runs.guest_run import GuestRun, Judging
from harness.runs.minimize import shortest_failing
from harness.runs.prepare import Host, Prepared, prepare_case, request_for
from harness.runs.repeats import compared
from harness.runs.requirements import NotApplicableError
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.module_load import Load, TooManyOrdersError, loads_of
from harness.scenario.scenario_files import Case


@dataclass(frozen=True)
class Skipped:
    """A scenario that does not apply to the requested kernel."""

    case: Case
    error: NotApplicableError


class Running(Protocol):
    """A scenario that is being run."""

    def done(self) -> bool:
        """True if `result` returns without waiting."""

    def result(self) -> RunResult | Skipped:
        """Its result; waits for it."""


def default_jobs() -> int:
    """The default number of concurrent guests: one for each core."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class SessionOptions:
    """Options of a session's guests.

    Attributes:
        jobs: how many guests run concurrently, at least 1.
        repeat: how many guests each load of a scenario gets, at least 1.
        build: whether scenarios may build a kernel when a prebuilt one is requested.
        start: how guests start; `auto` restores a saved machine for several guests of one.
        minimize: whether to find the shortest load that shows a failure, with more guests.
    """

    jobs: int = 1
    repeat: int = 1
    build: bool = True
    start: StartOption = "auto"
    minimize: bool = True


_DEFAULTS = SessionOptions()


class Session:
    """Runs guests concurrently, for the length of a `with` block.

    Args:
        host: this machine.
        judging: how guests are judged.
        options: how guests are run.

    Attributes:
        host: this machine.
        judging: how guests are judged.
        options: how guests are run.
        stack: everything that ends with the session.
    """

    def __init__(self, host: Host, judging: Judging, options: SessionOptions = _DEFAULTS) -> None:
        self.host = host
        self.judging = judging
        self.options = options
        self.stack = ExitStack()
        self._machines = RunningMachines()
        self._threads = ThreadPoolExecutor(options.jobs, thread_name_prefix="guest")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.stop()
        self._threads.shutdown(cancel_futures=True)
        self.stack.close()

    def stop(self) -> None:
        """End all guests, also those that start later, without waiting. Thread-safe."""
        self._machines.stop()

    def run(self, case: Case, kernel: KernelRequest) -> RunResult:
        """Run one scenario on a kernel.

        Raises:
            UsageError: invalid input, or this machine lacks something; nothing was started.
            NotApplicableError: the scenario does not apply to this kernel.
        """
        (result,) = self.run_all([case], kernel)
        if isinstance(result, Skipped):
            raise result.error
        return result

    def run_all(
        self, cases: Iterable[Case], kernel: KernelRequest
    ) -> Iterator[RunResult | Skipped]:
        """Run scenarios and yield their results in the same order, each as soon as possible.

        Raises:
            UsageError: invalid input, or this machine lacks something.
        """
        running: deque[Running] = deque()
        for case in cases:
            running.append(self._begin(case, kernel))
            # Not too far ahead: the kernel of a scenario may take long to build.
            while running and (running[0].done() or len(running) > 2 * self.options.jobs):
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

    def _begin(self, case: Case, kernel: KernelRequest) -> Running:
        timings = Timings()
        request = request_for(case, kernel)
        result = RunResult(
            scenario=case.name,
            request=replace(request, stored=None),
            policy=self.judging.policy,
            file=case.asked if case.asked != case.name else "",
        )
        if request.spec != kernel.spec and not self.options.build:
            return _Ended(Skipped(case, _needs_build(case)))
        try:
            with timings.phase("prepare"):
                prepared = self.prepare(case, request)
        except NotApplicableError as error:
            return _Ended(Skipped(case, error))
        except UnbuildableError as error:
            return _Ended(ended(result, Verdict.UNBUILDABLE, error))
        except InconclusiveError as error:
            return _Ended(ended(result, Verdict.INCONCLUSIVE, error))
        try:
            depends = prepared.bootable.initramfs.depends
            loads = loads_of(case.scenario.guest.load, depends, self.options.repeat)
        except TooManyOrdersError as error:
            raise case.document.error(
                "guest.load", str(error), hint="name fewer modules, or list one order"
            ) from None
        seconds = timings.seconds()["prepare"]
        runs = [
            GuestRun(prepared, load, self.judging, result, 0.0 if number else seconds)
            for number, load in enumerate(loads)
        ]
        return _Guests(self, runs)

    def prepare(self, case: Case, request: KernelRequest) -> Prepared:
        """Resolve a scenario for a kernel, see `prepare_case`."""
        return prepare_case(self.host, case, request)

    def run_guest(self, run: GuestRun, start: StartGuest) -> RunResult:
        """Run one guest from its start to its verdict, see `attempt.run_guest`."""
        return run_guest(run, start)

    def pool_of(self, prepared: Prepared, count: int) -> AbstractContextManager[GuestPool]:
        """The pool for this many guests of one machine."""
        start, note = choose_start(self.options.start, prepared, count)
        self.host.note_once(note)
        setup = BootSetup(self.host, prepared, self._machines, self.judging.boot_seconds)

        def evidence() -> Evidence:
            name, release = prepared.case.name, prepared.bootable.kernel.release
            return new_evidence(self.judging.evidence_root, f"{name}-saved", release)

        return guest_pool(setup, evidence, start)

    def submit(self, pool: GuestPool, run: GuestRun, start: Start = "warm") -> Future[RunResult]:
        """Run one guest as soon as fewer than `jobs` are running."""

        def started(evidence: Evidence, timings: Timings) -> AbstractContextManager[BootedGuest]:
            return pool.guest(evidence, timings, start)

        return self._threads.submit(self.run_guest, run, started)


class _Ended:
    """A scenario that ended before its first guest."""

    def __init__(self, result: RunResult | Skipped) -> None:
        self._result = result

    def done(self) -> bool:
        return True

    def result(self) -> RunResult | Skipped:
        return self._result


class _Guests:
    """The guests of one scenario."""

    def __init__(self, session: Session, runs: Sequence[GuestRun]) -> None:
        self._session = session
        self._first = runs[0]
        self._begin = time.monotonic() - self._first.prepare_seconds
        self._stack = session.stack.enter_context(ExitStack())
        self._pool = self._stack.enter_context(session.pool_of(self._first.prepared, len(runs)))
        self._results = [session.submit(self._pool, run) for run in runs]

    def done(self) -> bool:
        return all(result.done() for result in self._results)

    def result(self) -> RunResult:
        with self._stack:
            results = self._confirmed([result.result() for result in self._results])
            combined = compared(combine(results, time.monotonic() - self._begin), results)
            new = combined.verdict is Verdict.FAIL and not combined.known_issue
            if new and len(results) > 1 and self._session.options.minimize:
                load = shortest_failing(combined, self._first.prepared, self._run_again)
                combined = replace(combined, reproduce=self._command(combined, load))
        return combined

    def _confirmed(self, results: Sequence[RunResult]) -> list[RunResult]:
        """The results, with failures of restored guests replaced by results of booted ones."""
        doubtful = [one.start == "warm" and one.verdict is not Verdict.PASS for one in results]
        cold = {
            number: self._submit(self._first.prepared, result.load)
            for number, result in enumerate(results)
            if doubtful[number] and result.load is not None
        }
        progress = self._session.host.progress
        return [
            confirmed(progress, result, cold[number].result) if number in cold else result
            for number, result in enumerate(results)
        ]

    def _submit(self, prepared: Prepared, load: Load) -> Future[RunResult]:
        run = replace(self._first, prepared=prepared, load=load, prepare_seconds=0.0)
        return self._session.submit(self._pool, run, "cold")

    def _run_again(self, prepared: Prepared, load: Load) -> RunResult:
        return self._submit(prepared, load).result()

    def _command(self, failed: RunResult, load: Load) -> str:
        case, qemu = self._first.prepared.case, self._session.host.requested_qemu
        words = [
            f"harness run {shlex.quote(case.asked or case.name)} --kernel {failed.spec}",
            f"--policy {failed.policy}",
            *([f"--accel {failed.accel}"] if failed.accel else []),
            *([f"--qemu {shlex.quote(qemu)}"] if qemu else []),
            f"--load {load.option()}",
        ]
        return " ".join(words)


def _needs_build(case: Case) -> NotApplicableError:
    fragments = ", ".join(case.scenario.kernel.configs)
    return NotApplicableError(
        f"{case.name} needs a kernel that is built with {fragments}",
        hint="leave --no-build out, or name a kernel with build:",
    )
