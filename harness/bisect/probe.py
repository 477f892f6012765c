# SPDX-License-Identifier: GPL-2.0-or-later
"""What scenarios say about one commit: its kernel is built, and guests are run until they tell."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from harness.bisect.search import Failures, Judged, Outcome, judge_runs
from harness.contract.result import RunResult, Verdict
from harness.core.errors import InconclusiveError, UnbuildableError
from harness.kernels.resolve import resolve_kernel
from harness.runs.prepare import Host, MissingModuleError, request_for
from harness.runs.session import Session, Skipped
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario_files import Case

SKIPPED = "SKIPPED"


@dataclass(frozen=True)
class Flakiness:
    """How many runs a commit gets, and how many of them must fail.

    Attributes:
        runs: guests of a scenario at a commit, at least 1.
        need: how many must fail for the commit to be bad, from 1 to `runs`.
        same_failure: only what fails as the bad end does counts.
    """

    runs: int = 1
    need: int = 1
    same_failure: bool = False


@dataclass(frozen=True)
class Judgement:
    """What scenarios say about a commit.

    Attributes:
        judged: by scenario, in the order asked.
        build_seconds: to get the kernels.
        run_seconds: for the guests.
    """

    judged: tuple[Judged, ...]
    build_seconds: float
    run_seconds: float


class CommitJudge:
    """Judges kernels with real guests.

    Args:
        host: this machine.
        session: runs the guests.
        cases: the scenarios that can be asked for.
        flakiness: how many runs each gets.
        at_once: how many guests run side by side, at least 1.
    """

    def __init__(
        self,
        host: Host,
        session: Session,
        cases: Sequence[Case],
        flakiness: Flakiness,
        at_once: int = 1,
    ) -> None:
        self._host = host
        self._session = session
        self._cases = {case.name: case for case in cases}
        self._flakiness = flakiness
        self._at_once = at_once
        self._build_seconds = self._run_seconds = 0.0

    def judge(
        self,
        request: KernelRequest,
        scenarios: Sequence[str],
        bad_end: Failures | None = None,
        every: bool = False,
    ) -> Judgement:
        """Build a kernel and run scenarios on it.

        Args:
            request: the kernel.
            scenarios: names of the scenarios, at least one.
            bad_end: what broke at the bad end, where that is known.
            every: ask all scenarios, also when one has told that the commit is bad.

        Raises:
            UsageError: the input is wrong, or this machine lacks something.
            CommandError: git failed.
        """
        self._build_seconds = self._run_seconds = 0.0
        judged: list[Judged] = []
        for name in scenarios:
            judged.append(self._judge(self._cases[name], request, bad_end))
            if judged[-1].outcome is Outcome.BAD and not every:
                break
        return Judgement(tuple(judged), self._build_seconds, self._run_seconds)

    def _judge(self, case: Case, request: KernelRequest, bad_end: Failures | None) -> Judged:
        begin = time.monotonic()
        try:
            # Once, before any guest: a kernel that does not build is not tried again for each.
            resolve_kernel(request_for(case, request), self._host.store, self._host.progress)
        except UnbuildableError as error:
            return _cannot_tell(case, Verdict.UNBUILDABLE.name, str(error))
        except InconclusiveError as error:
            return _cannot_tell(case, Verdict.INCONCLUSIVE.name, str(error))
        finally:
            self._build_seconds += time.monotonic() - begin
        begin = time.monotonic()
        results: list[RunResult] = []
        try:
            return self._run(case, request, bad_end, results)
        except MissingModuleError as error:
            return _cannot_tell(case, SKIPPED, str(error))
        finally:
            prepared = results[0].timings.get("prepare", 0.0) if results else 0.0
            self._run_seconds += max(0.0, time.monotonic() - begin - prepared)

    def _run(
        self,
        case: Case,
        request: KernelRequest,
        bad_end: Failures | None,
        results: list[RunResult],
    ) -> Judged:
        """Run guests, a few at once, until they tell."""
        same_as = None if bad_end is None else bad_end.get(case.name, ())
        asked = self._flakiness
        while True:
            count = min(self._at_once, asked.runs - len(results))
            for result in self._session.run_all([case] * count, request):
                if isinstance(result, Skipped):
                    return _cannot_tell(case, SKIPPED, str(result.error))
                results.append(result)
            left = asked.runs - len(results)
            judged = judge_runs(case.name, results, left, asked.need, same_as, asked.same_failure)
            if judged is not None:
                return judged


def _cannot_tell(case: Case, verdict: str, reason: str) -> Judged:
    return Judged(case.name, Outcome.UNKNOWN, (verdict,), reason=reason)
