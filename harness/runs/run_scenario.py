# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios, each with as many guests as its loads and repeats need, side by side."""

from __future__ import annotations

import os
import shlex
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol

from harness.errors import InconclusiveError, UnbuildableError
from harness.model.attempts import combine
from harness.model.kernel_request import KernelRequest, as_request
from harness.model.load import Load, TooManyOrdersError, loads_of
from harness.model.verdict import RunResult, Verdict
from harness.runs.booted_guest import BootedGuest, booted_guest
from harness.runs.catalogue import Case
from harness.runs.evidence import Evidence
from harness.runs.prepare import Host, NotApplicableError, Prepared, prepare_case, request_for
from harness.runs.reproducer import shortest_failing
from harness.runs.run_guest import Judging, ended, run_guest
from harness.runs.timings import Timings


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
    """

    def __init__(
        self,
        host: Host,
        judging: Judging,
        *,
        jobs: int = 1,
        repeat: int = 1,
        build: bool = True,
        shorten: bool = True,
    ) -> None:
        self._host = host
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
            self._host.live.stop()
        self._pool.shutdown(cancel_futures=True)

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
            scenario=case.name, kernel_spec=str(request), policy=self._judging.policy
        )
        if request.spec != asked.spec and not self._build:
            return _Ended(Skipped(case, _needs_build(case)))
        try:
            with timings.phase("prepare"):
                prepared = prepare_case(self._host, case, request)
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

    def submit(
        self, prepared: Prepared, load: Load, result: RunResult, prepare_seconds: float = 0.0
    ) -> Future[RunResult]:
        """Run one guest as soon as there is room for it."""

        def start(evidence: Evidence, timings: Timings) -> AbstractContextManager[BootedGuest]:
            return booted_guest(self._host, prepared, evidence, timings, self._judging.boot_seconds)

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
        self._runs = [
            session.submit(prepared, load, result, 0.0 if number else prepare_seconds)
            for number, load in enumerate(loads)
        ]

    def done(self) -> bool:
        return all(run.done() for run in self._runs)

    def result(self) -> RunResult:
        results = [run.result() for run in self._runs]
        if len(results) == 1:
            return results[0]
        combined = combine(results, time.monotonic() - self._begin)
        new = combined.verdict is Verdict.FAIL and not combined.known_issue
        if new and self._session.shorten:
            load = shortest_failing(combined, self._prepared, self._run_again)
            combined = replace(combined, reproduce=self._command(load))
        return combined

    def _run_again(self, prepared: Prepared, load: Load) -> RunResult:
        return self._session.submit(prepared, load, self._before).result()

    def _command(self, load: Load) -> str:
        name = shlex.quote(self._prepared.case.name)
        return (
            f"harness run {name} --kernel {self._before.kernel_spec} "
            f"--policy {self._before.policy} --load {load.option()}"
        )


def _needs_build(case: Case) -> NotApplicableError:
    fragments = ", ".join(case.scenario.kernel.configs)
    return NotApplicableError(
        f"{case.name} needs a kernel that is built with {fragments}",
        hint="leave --no-build out, or name a kernel with build:",
    )


def run_scenario(
    host: Host, case: Case, kernel: str | KernelRequest, judging: Judging, *, repeat: int = 1
) -> RunResult:
    """Run one scenario on a kernel, its guests side by side.

    Raises:
        UsageError: the input is wrong, or this machine lacks something; nothing was started.
        NotApplicableError: the scenario is not about this kernel.
    """
    with Session(host, judging, jobs=default_jobs(), repeat=repeat) as session:
        return session.run(case, kernel)
