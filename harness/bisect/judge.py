# SPDX-License-Identifier: GPL-2.0-or-later
"""Judge one commit: build its kernel, and run guests until the outcome is known."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import msgspec

from harness.contract.failure_signature import failures_of
from harness.contract.result import RunResult, Verdict
from harness.core.errors import InconclusiveError, UnbuildableError
from harness.kernels.resolve import resolve_kernel
from harness.runs.guest_run import Judging
from harness.runs.prepare import Host, MissingModuleError, request_for
from harness.runs.session import Session, SessionOptions, Skipped
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario import Policy
from harness.scenario.scenario_files import Case

SKIPPED = "SKIPPED"

Failures = Mapping[str, tuple[str, ...]]
"""The failures at the bad end, by scenario."""


class Outcome(Enum):
    """The outcome of a commit, or of one scenario at it."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "cannot tell"


@dataclass(frozen=True)
class Flakiness:
    """The number of runs of a scenario at a commit, and how many of them must fail.

    Attributes:
        runs: at least 1.
        need: FAILs that make a commit bad, from 1 to `runs`.
        same_failure: only a failure that occurred at the bad end too counts.
    """

    runs: int = 1
    need: int = 1
    same_failure: bool = False


@dataclass(frozen=True)
class Judged:
    """One scenario at one commit.

    Attributes:
        verdicts: of each run; SKIPPED when the scenario does not apply to this kernel.
        failures: of all runs, see `failures_of`.
        other_failure: it failed, but with none of the failures at the bad end.
        reason: why the outcome is unknown.
        evidence: the folders of the runs.
    """

    scenario: str
    outcome: Outcome
    verdicts: tuple[str, ...]
    failures: tuple[str, ...] = ()
    other_failure: bool = False
    reason: str = ""
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """The scenarios at one commit, in the order requested.

    Attributes:
        build_seconds: to get the kernels, from checking out to having them in the store.
        run_seconds: for the guests, from their start to their verdicts.
    """

    judged: tuple[Judged, ...]
    build_seconds: float
    run_seconds: float


def together(judged: Sequence[Judged]) -> Outcome:
    """The outcome of several scenarios: bad if one is bad, good if all are good."""
    outcomes = [scenario.outcome for scenario in judged]
    for outcome in (Outcome.BAD, Outcome.UNKNOWN):
        if outcome in outcomes:
            return outcome
    return Outcome.GOOD


def judge_runs(
    scenario: str,
    results: Sequence[RunResult],
    flakiness: Flakiness,
    bad_end: Sequence[str] | None = None,
) -> Judged | None:
    """Combine the runs of a scenario at a commit; None while further runs can change the outcome.

    Args:
        scenario: its name.
        results: of the runs so far.
        flakiness: the number of runs, and how many must fail.
        bad_end: the failures at the bad end, None while they are unknown.
    """
    failed = [failures_of(result) for result in results if result.verdict is Verdict.FAIL]
    same = [bad_end is None or _alike(failures, bad_end) for failures in failed]
    lost = [result for result in results if result.verdict not in (Verdict.PASS, Verdict.FAIL)]
    not_counted = same.count(False) if flakiness.same_failure else 0
    bad = len(failed) - not_counted
    left = flakiness.runs - len(results)
    if bad >= flakiness.need:
        outcome = Outcome.BAD
    elif bad + len(lost) + not_counted + left < flakiness.need:
        outcome = Outcome.GOOD
    elif left:
        return None
    else:
        outcome = Outcome.UNKNOWN
    return Judged(
        scenario,
        outcome,
        tuple(result.verdict.name for result in results),
        tuple(dict.fromkeys(name for failures in failed for name in failures)),
        bool(same) and not any(same),
        lost[0].reason if lost and outcome is Outcome.UNKNOWN else "",
        tuple(result.evidence for result in results if result.evidence),
    )


def _alike(failures: Sequence[str], bad_end: Sequence[str]) -> bool:
    """Compare the failures of a run with those at the bad end.

    A rule without a range (usually a warning) can be broken for many reasons: it counts only
    where the bad end has no failure with a range.
    """
    placed = {name for name in bad_end if " " in name.removeprefix("rule ")}
    return bool(set(failures) & (placed or set(bad_end)))


@contextmanager
def commit_judge(
    host: Host, judging: Judging, cases: Sequence[Case], flakiness: Flakiness, jobs: int
) -> Iterator[CommitJudge]:
    """A judge for the length of the block; no guest is spent on shortening a failing load."""
    with Session(host, judging, SessionOptions(jobs, minimize=False)) as session:
        yield CommitJudge(session, cases, flakiness, judging.policy, jobs)


class CommitJudge:
    """Judges kernels with real guests.

    Args:
        session: runs the guests, `jobs` of them concurrently.
        cases: the scenarios.
        flakiness: how many runs each gets.
        policy: the rules of the session.
        jobs: at least 1.

    Attributes:
        host: this machine.
        scenarios: the names of the scenarios.
        identity: everything apart from the kernel that the outcome depends on.
    """

    def __init__(
        self,
        session: Session,
        cases: Sequence[Case],
        flakiness: Flakiness,
        policy: Policy,
        jobs: int = 1,
    ) -> None:
        self.host = session.host
        self._session = session
        self._cases = {case.name: case for case in cases}
        self._flakiness = flakiness
        self._jobs = jobs
        self.scenarios = tuple(self._cases)
        parts = (flakiness, policy, self.host.qemu.identity)
        self.identity = (*map(str, parts), *map(_text_of, cases))

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
            scenarios: names of scenarios, at least one.
            bad_end: None while it is unknown.
            every: run all scenarios, also after one has shown that the commit is bad.

        Raises:
            UsageError: the input is wrong, or this machine lacks something.
            CommandError: git failed.
        """
        judged: list[Judged] = []
        build_seconds = run_seconds = 0.0
        for name in scenarios:
            case, begin = self._cases[name], time.monotonic()
            unbuilt = self._build(case, request)
            built = time.monotonic()
            build_seconds += built - begin
            if unbuilt is not None:
                judged.append(unbuilt)
                continue
            results: list[RunResult] = []
            judged.append(self._run(case, request, bad_end, results))
            prepared = results[0].timings.get("prepare", 0.0) if results else 0.0
            run_seconds += max(0.0, time.monotonic() - built - prepared)
            if judged[-1].outcome is Outcome.BAD and not every:
                break
        return Judgement(tuple(judged), build_seconds, run_seconds)

    def _build(self, case: Case, request: KernelRequest) -> Judged | None:
        """Build the kernel before any guest: a failing build is not repeated for each of them."""
        try:
            resolve_kernel(request_for(case, request), self.host.store, self.host.progress)
        except UnbuildableError as error:
            return _cannot_tell(case, Verdict.UNBUILDABLE.name, str(error))
        except InconclusiveError as error:
            return _cannot_tell(case, Verdict.INCONCLUSIVE.name, str(error))
        return None

    def _run(
        self,
        case: Case,
        request: KernelRequest,
        bad_end: Failures | None,
        results: list[RunResult],
    ) -> Judged:
        """Run guests, a few concurrently, until the outcome is known."""
        failures = None if bad_end is None else bad_end.get(case.name, ())
        while True:
            count = min(self._jobs, self._flakiness.runs - len(results))
            try:
                for result in self._session.run_all([case] * count, request):
                    if isinstance(result, Skipped):
                        return _cannot_tell(case, SKIPPED, str(result.error))
                    results.append(result)
            except MissingModuleError as error:
                return _cannot_tell(case, SKIPPED, str(error))
            judged = judge_runs(case.name, results, self._flakiness, failures)
            if judged is not None:
                return judged


def _cannot_tell(case: Case, verdict: str, reason: str) -> Judged:
    return Judged(case.name, Outcome.UNKNOWN, (verdict,), reason=reason)


def _text_of(case: Case) -> str:
    """The scenario and profile as text, the same in every process."""
    value = (case.name, case.scenario, case.profile)
    return msgspec.json.encode(value, enc_hook=repr, order="deterministic").decode()
