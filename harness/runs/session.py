# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios, each with as many guests as its loads and repeats need, side by side."""

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
from typing import Protocol

from harness.contract.result import RunResult, Start, Verdict
from harness.core.errors import InconclusiveError, UnbuildableError
from harness.runs.boot import BootedGuest
from harness.runs.combine import combine
from harness.runs.evidence import Evidence, new_evidence
from harness.runs.guest_pool import GuestSource, confirmed, guest_source
from harness.runs.guest_run import Judging, ended, run_guest
from harness.runs.minimize import shortest_failing
from harness.runs.prepare import Host, Prepared, prepare_case, request_for
from harness.runs.repeats import compared
from harness.runs.requirements import NotApplicableError
from harness.runs.timings import Timings
from harness.runs.warm_start import AskedStart
from harness.scenario.kernel_request import KernelRequest, as_request
from harness.scenario.module_load import Load, TooManyOrdersError, loads_of
from harness.scenario.scenario_files import Case


@dataclass(frozen=True)
class Skipped:
    """A scenario that is not about the kernel that was asked for."""

    case: Case
    error: NotApplicableError


class Running(Protocol):
    """A scenario under way."""

    def done(self) -> bool:
        """Whether `result` will not wait."""

    def result(self) -> RunResult | Skipped:
        """How it ended, once it has."""


def default_jobs() -> int:
    """How many guests run side by side when nobody says: one for each core."""
    return len(os.sched_getaffinity(0))


class Session:
    """Runs guests side by side, for the length of a `with` block.

    Args:
        host: this machine.
        judging: by what guests are judged.
        jobs: how many guests run at once, at least 1.
        repeat: how many guests each load of a scenario gets, at least 1.
        build: whether scenarios may build a kernel when a prebuilt one is asked for.
        shorten: whether to look for the shortest load that shows a failure, with more guests.
        start: how guests start; `auto` restores a saved machine where there are several of one.

    Attributes:
        host: this machine.
        stack: what ends with the session.
        shorten: whether failures are made shorter.
    """

    def __init__(
        self,
        host: Host,
        judging: Judging,
        *,
        jobs: int = 1,
        repeat: int = 1,
        build: bool = True,
        start: AskedStart = "auto",
        shorten: bool = True,
    ) -> None:
        self.host = host
        self.stack = ExitStack()
        self._start = start
        self._judging = judging
        self._jobs = jobs
        self._repeat = repeat
        self._build = build
        self.shorten = shorten
        self._pool = ThreadPoolExecutor(jobs, thread_name_prefix="guest")

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.host.live.stop()
        self._pool.shutdown(cancel_futures=True)
        if kind is not None:
            self.host.live.go_on()
        self.stack.close()

    def run(self, case: Case, kernel: str | KernelRequest) -> RunResult:
        """Run one scenario on a kernel.

        Raises:
            UsageError: the input is wrong, or this machine lacks something; nothing was started.
            NotApplicableError: the scenario is not about this kernel.
        """
        (result,) = self.run_all([case], kernel)
        if isinstance(result, Skipped):
            raise result.error
        return result

    def run_all(
        self, cases: Iterable[Case], kernel: str | KernelRequest
    ) -> Iterator[RunResult | Skipped]:
        """Run scenarios and give their results in the same order, each as soon as it is there.

        Raises:
            UsageError: the input is wrong, or this machine lacks something.
        """
        under_way: deque[Running] = deque()
        for case in cases:
            under_way.append(self._begin(case, as_request(kernel)))
            # Not too far ahead: what a scenario needs may take long to build.
            while under_way and (under_way[0].done() or len(under_way) > 2 * self._jobs):
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def _begin(self, case: Case, asked: KernelRequest) -> Running:
        timings = Timings()
        request = request_for(case, asked)
        result = RunResult(
            scenario=case.name,
            request=replace(request, stored=None),
            policy=self._judging.policy,
            file=case.asked if case.asked != case.name else "",
        )
        if request.spec != asked.spec and not self._build:
            return _Ended(Skipped(case, _needs_build(case)))
        try:
            with timings.phase("prepare"):
                prepared = prepare_case(self.host, case, request)
        except NotApplicableError as error:
            return _Ended(Skipped(case, error))
        except UnbuildableError as error:
            return _Ended(ended(result, Verdict.UNBUILDABLE, error))
        except InconclusiveError as error:
            return _Ended(ended(result, Verdict.INCONCLUSIVE, error))
        try:
            loads = loads_of(
                case.scenario.guest.load, prepared.bootable.initramfs.depends, self._repeat
            )
        except TooManyOrdersError as error:
            raise case.document.error(
                "guest.load", str(error), hint="name fewer modules, or list one order"
            ) from None
        return _Guests(self, prepared, loads, result, timings.seconds()["prepare"])

    def guests_of(self, prepared: Prepared, count: int) -> AbstractContextManager[GuestSource]:
        """Where this many guests of one machine come from."""
        return guest_source(
            self.host,
            prepared,
            lambda: new_evidence(
                self._judging.evidence_root,
                f"{prepared.case.name}-saved",
                prepared.bootable.kernel.release,
            ),
            self._judging.boot_seconds,
            self._start,
            count,
        )

    def submit(
        self,
        source: GuestSource,
        prepared: Prepared,
        load: Load,
        result: RunResult,
        *,
        begin: Start = "warm",
        prepare_seconds: float = 0.0,
    ) -> Future[RunResult]:
        """Run one guest as soon as there is room for it."""

        def start(evidence: Evidence, timings: Timings) -> AbstractContextManager[BootedGuest]:
            return source.guest(evidence, timings, begin)

        spent = {"prepare": prepare_seconds}
        return self._pool.submit(run_guest, prepared, load, self._judging, result, start, spent)


class _Ended:
    """A scenario that ended before it had a guest."""

    def __init__(self, result: RunResult | Skipped) -> None:
        self._result = result

    def done(self) -> bool:
        return True

    def result(self) -> RunResult | Skipped:
        return self._result


class _Guests:
    """The guests of one scenario."""

    def __init__(
        self,
        session: Session,
        prepared: Prepared,
        loads: Sequence[Load],
        result: RunResult,
        prepare_seconds: float,
    ) -> None:
        self._session = session
        self._prepared = prepared
        self._before = result
        self._begin = time.monotonic() - prepare_seconds
        self._stack = session.stack.enter_context(ExitStack())
        self._source = self._stack.enter_context(session.guests_of(prepared, len(loads)))
        self._runs = [
            self._submit(prepared, load, prepare_seconds=0.0 if number else prepare_seconds)
            for number, load in enumerate(loads)
        ]

    def done(self) -> bool:
        return all(run.done() for run in self._runs)

    def result(self) -> RunResult:
        with self._stack:
            results = self._confirmed([run.result() for run in self._runs])
            combined = compared(combine(results, time.monotonic() - self._begin), results)
            new = combined.verdict is Verdict.FAIL and not combined.known_issue
            if new and len(results) > 1 and self._session.shorten:
                load = shortest_failing(combined, self._prepared, self._run_again)
                combined = replace(combined, reproduce=self._command(combined, load))
        return combined

    def _confirmed(self, results: Sequence[RunResult]) -> list[RunResult]:
        """The results, those of restored guests that did not pass replaced by booted ones'."""
        doubtful = [one.start == "warm" and one.verdict is not Verdict.PASS for one in results]
        cold = {
            number: self._submit(self._prepared, one.load, begin="cold")
            for number, one in enumerate(results)
            if doubtful[number] and one.load is not None
        }
        return [
            confirmed(self._session.host, one, cold[number].result) if number in cold else one
            for number, one in enumerate(results)
        ]

    def _submit(
        self, prepared: Prepared, load: Load, *, begin: Start = "warm", prepare_seconds: float = 0.0
    ) -> Future[RunResult]:
        return self._session.submit(
            self._source,
            prepared,
            load,
            self._before,
            begin=begin,
            prepare_seconds=prepare_seconds,
        )

    def _run_again(self, prepared: Prepared, load: Load) -> RunResult:
        return self._submit(prepared, load, begin="cold").result()

    def _command(self, failed: RunResult, load: Load) -> str:
        case, qemu = self._prepared.case, self._session.host.asked_qemu
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


def run_scenario(
    host: Host,
    case: Case,
    kernel: str | KernelRequest,
    judging: Judging,
    *,
    repeat: int = 1,
    start: AskedStart = "auto",
) -> RunResult:
    """Run one scenario on a kernel, its guests side by side.

    Raises:
        UsageError: the input is wrong, or this machine lacks something; nothing was started.
        NotApplicableError: the scenario is not about this kernel.
    """
    with Session(host, judging, jobs=default_jobs(), repeat=repeat, start=start) as session:
        return session.run(case, kernel)
