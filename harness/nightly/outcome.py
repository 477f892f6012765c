# SPDX-License-Identifier: GPL-2.0-or-later
"""The outcome of one matrix entry in one night; the only place where a night reads results."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from harness.contract.failure_signature import failures_of
from harness.contract.result import NotAResultError, RunResult, Verdict, read_result
from harness.core.errors import HarnessError, UnbuildableError
from harness.matrix.entry import Message
from harness.matrix.plan import Combination
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario_files import load_case

SKIPPED = "SKIPPED"


@dataclass(frozen=True)
class Outcome:
    """The end of a matrix entry.

    Attributes:
        verdict: the name of a verdict, or SKIPPED if the scenario does not apply to the kernel.
        known: the known issue that explains the failure, or empty.
        failures: the rules and ranges that failed, see `failures_of`.
        reason: of the other verdicts than PASS and FAIL.
        evidence: the folder of the run.
    """

    verdict: str
    known: str = ""
    failures: tuple[str, ...] = ()
    reason: str = ""
    evidence: str = ""

    @property
    def passed(self) -> bool:
        """The contract held."""
        return self.verdict == Verdict.PASS.name

    @property
    def failed(self) -> bool:
        """The contract was broken, for a known reason or not."""
        return self.verdict == Verdict.FAIL.name

    @property
    def unbuildable(self) -> bool:
        """The kernel did not build."""
        return self.verdict == Verdict.UNBUILDABLE.name

    def __str__(self) -> str:
        return f"{self.verdict} (known)" if self.known else self.verdict


def outcome_of(result: RunResult) -> Outcome:
    """The outcome that a result states."""
    return Outcome(
        result.verdict.name,
        result.known_issue or "",
        failures_of(result),
        result.reason,
        result.evidence,
    )


def outcome_at_end(result: Mapping[str, Any] | None, message: Message) -> Outcome:
    """The outcome of a matrix entry.

    Args:
        result: of the run, None if it has none.
        message: the last status message of the entry.
    """
    if result is not None:
        with suppress(NotAResultError):
            return outcome_of(read_result(result))
    reason = str(message.get("fail_reason", ""))
    kind = message.get("fail_class", "")
    if kind == "NotApplicable":
        return Outcome(SKIPPED, reason=reason)
    unbuildable = kind == Verdict.UNBUILDABLE.name
    verdict = Verdict.UNBUILDABLE if unbuildable else Verdict.INCONCLUSIVE
    return Outcome(verdict.name, reason=reason or "the run ended without a result")


def result_without_kernel(
    entry: Combination, request: KernelRequest, error: HarnessError
) -> RunResult:
    """The result of an entry whose kernel could not be built or fetched."""
    unbuildable = isinstance(error, UnbuildableError)
    return RunResult(
        load_case(entry.scenario).name,
        request,
        entry.policy,
        verdict=Verdict.UNBUILDABLE if unbuildable else Verdict.INCONCLUSIVE,
        reason=error.message if error.where is None else f"{error.where}: {error.message}",
        hint=error.hint,
    )
