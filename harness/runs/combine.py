# SPDX-License-Identifier: GPL-2.0-or-later
"""Combine the results of several guests of one scenario."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from harness.contract.result import Attempt, Finding, RunResult, Verdict

_MOST_NAMED = 3
_DIFFERENTLY = "different_outcomes"


def attempt_of(result: RunResult) -> Attempt:
    """The entry of one guest in the list of a scenario's guests."""
    return Attempt(
        load=result.load,
        verdict=result.verdict,
        outcome=outcome(result),
        reason=result.reason or next((one.text for one in result.findings), ""),
        start=result.start,
        seconds=round(result.seconds or 0.0, 3),
        evidence=result.evidence,
    )


def outcome(result: RunResult) -> str:
    """All observed owners in one line, to compare guests."""
    owned = []
    for one in result.owners:
        pieces = [f"{piece.range} {piece.ownership}" for piece in one.observed]
        owned.append(f"{one.name} {', '.join(pieces)}")
    return "; ".join(owned)


def combine(results: Sequence[RunResult], seconds: float) -> RunResult:
    """One result for all guests of a scenario.

    It is the result of the first guest with a new failure; without one, of the first with a known
    failure, then of the first that was not judged, then of the first. Different outcomes are a
    finding too (rule 7).

    Args:
        results: of each guest, at least one, in the order of the loads.
        seconds: from the first guest's start to the last one's end.
    """
    if len(results) == 1:
        return results[0]
    failed = [one for one in results if one.verdict is Verdict.FAIL]
    unjudged = [one for one in results if one.verdict not in (Verdict.FAIL, Verdict.PASS)]
    new = [one for one in failed if not one.known_issue]
    first = (new or failed or unjudged or list(results))[0]
    findings = first.findings
    reason = first.reason
    if failed:
        known = None if _differ_for_new_reasons(results) else _first_known(failed)
        findings = (*findings, *_different_outcomes(results, known))
        reason = f"{len(failed)} of {len(results)} guests broke the contract, the first by loading "
        reason += str(first.load)
    elif unjudged:
        reason = f"{len(unjudged)} of {len(results)} guests were not judged: {first.reason}"
    explained = all(one.known_issue for one in failed) and not unjudged
    issues = dict.fromkeys(name for one in results for name in one.issues)
    return replace(
        first,
        findings=findings,
        reason=reason,
        known_issue=first.known_issue if explained else None,
        issues=tuple(issues),
        retried=sum(one.retried for one in results),
        timings={**first.timings, "total": seconds},
        attempts=tuple(attempt_of(one) for one in results),
    )


def of_one_guest(combined: RunResult) -> RunResult:
    """The result without the finding of different outcomes, which no single guest can have."""
    own = tuple(one for one in combined.findings if one.kind != _DIFFERENTLY)
    return replace(combined, findings=own)


def _differ_for_new_reasons(results: Sequence[RunResult]) -> bool:
    """True if outcomes differ among the guests without a known failure, one of which failed."""
    unexplained = [one for one in results if one.owners and not one.known_issue]
    failed = any(one.verdict is Verdict.FAIL for one in unexplained)
    return failed and len({outcome(one) for one in unexplained}) > 1


def _first_known(failed: Sequence[RunResult]) -> str | None:
    """The name of the first known issue of the guests whose failure is known."""
    findings = (finding for one in failed if one.known_issue for finding in one.findings)
    return next((finding.known for finding in findings if finding.known), None)


def _different_outcomes(results: Sequence[RunResult], known: str | None) -> tuple[Finding, ...]:
    judged = [one for one in results if one.owners]
    counts = Counter(outcome(one) for one in judged)
    if len(counts) < 2:
        return ()
    shown = []
    for what, count in counts.most_common(_MOST_NAMED):
        load = next(one.load for one in judged if outcome(one) == what)
        shown.append(f"{count} with {what}, the first by loading {load}")
    more = len(counts) - len(shown)
    if more:
        shown.append(f"{more} more outcomes")
    text = f"{len(judged)} guests ended differently: {'; '.join(shown)}"
    return (Finding("7", text, known=known, kind=_DIFFERENTLY),)
