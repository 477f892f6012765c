# SPDX-License-Identifier: GPL-2.0-or-later
"""A run's result as text for a person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.contract.result import (
    Attempt,
    Finding,
    OwnedRange,
    RunResult,
    StepOutcome,
    Verdict,
)
from harness.core.errors import printable
from harness.reports.report_data import telling_findings

_MOST_IOMEM_LINES = 16
_MOST_TRACE_LINES = 20
_MOST_ATTEMPTS = 8
_MOST_DIFFERENCES = 6
_MOST_APART = 3


def headline(result: RunResult) -> str:
    """The verdict on one line."""
    kernel = result.spec
    if result.kernel.release:
        kernel += f" ({result.kernel.release})"
    took = result.timings.get("total")
    parts = [
        f"{result.verdict.name} {result.scenario}",
        f"on {kernel}, policy {result.policy}",
        *([result.accel] if result.accel else []),
        *([f"{len(result.attempts)} guests"] if result.attempts else []),
        *([f"{took:.1f} s"] if took is not None else []),
    ]
    return f"{parts[0]} {', '.join(parts[1:])}"


def result_lines(result: RunResult) -> tuple[str, ...]:
    """Format one run, without colours."""
    lines = [headline(result)]
    lines += _table(result.owners)
    lines += _step_lines(result.steps)
    if result.reason:
        lines += _wrapped("  ", result.reason)
    if result.hint:
        lines.append(f"  hint: {result.hint}")
    lines += _attempt_lines(result.attempts)
    lines += _difference_lines(result)
    if result.reproduce:
        lines += ["  reproduce:", f"    {result.reproduce}"]
    partly = any(one.known for one in result.findings) and not result.known_issue
    for finding in telling_findings(result.findings):
        lines += _finding_lines(finding, result.evidence, mark_new=partly)
    for note in result.notes:
        lines += _wrapped("  ", f"note: {note}")
    if result.known_issue:
        lines += ["  known issue:", *_wrapped("    ", result.known_issue.strip())]
    if result.verdict is not Verdict.PASS and result.evidence:
        lines.append(f"  evidence: {result.evidence}")
    # A guest's output must not move the cursor or change the title of the terminal.
    return tuple(printable(line) for line in lines)


def summary_line(results: Sequence[RunResult]) -> str:
    """Count the verdicts of several runs."""
    counts = [(verdict.name, sum(r.verdict is verdict for r in results)) for verdict in Verdict]
    return ", ".join(f"{count} {name}" for name, count in counts if count)


def _table(owners: Iterable[OwnedRange]) -> list[str]:
    rows = []
    for one in owners:
        for piece in one.observed:
            mark = "!" if one.is_wrong(piece) else " "
            rows.append((mark, one.name, str(piece.range), str(piece.ownership), piece.via))
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        "  "
        + " ".join(
            (row[0], *(row[c].ljust(widths[c]) for c in range(1, 4)), f"by {row[4]}")
        ).rstrip()
        for row in rows
    ]


def _attempt_lines(attempts: Sequence[Attempt]) -> list[str]:
    """The guests that did not end with PASS."""
    bad = [one for one in attempts if one.verdict is not Verdict.PASS]
    lines = [f"    {one.verdict.name} {one.load}: {one.reason}" for one in bad[:_MOST_ATTEMPTS]]
    if len(bad) > _MOST_ATTEMPTS:
        lines.append(f"    and {len(bad) - _MOST_ATTEMPTS} more, see --json")
    return lines


def _difference_lines(result: RunResult) -> list[str]:
    """Differences between guests with the same load."""
    if not result.compared:
        return []
    found = result.differences
    if not found:
        return [f"    {result.compared} guests with the same verdict, owners, findings and steps"]
    lines, guest = [], 0
    for one in found[:_MOST_DIFFERENCES]:
        if one.guest != guest:
            guest = one.guest
            lines.append(f"  guest {guest} differs, see {one.evidence}")
        lines.append(f"    in {one.part}, from {_counted(one.others)}:")
        lines += _apart("+", one.only_here) + _apart("-", one.only_there)
    if len(found) > _MOST_DIFFERENCES:
        lines.append(f"    and {len(found) - _MOST_DIFFERENCES} more differences, see --json")
    return lines


def _counted(others: int) -> str:
    return "1 other" if others == 1 else f"{others} others"


def _apart(sign: str, apart: Sequence[str]) -> list[str]:
    lines = [f"      {sign} {line}" for line in apart[:_MOST_APART]]
    if len(apart) > _MOST_APART:
        lines.append(f"      {sign} … and {len(apart) - _MOST_APART} more lines")
    return lines


def _step_lines(steps: Sequence[StepOutcome]) -> list[str]:
    """The number of steps after which the contract held; all by name if one did not."""
    if not steps:
        return []
    if all(one.outcome == "held" for one in steps):
        return [f"    after {len(steps)} more step{'s' if len(steps) > 1 else ''} as well"]
    words = {"held": "  after", "broke": "! after", "not_done": "  not done:"}
    return [f"  {words[one.outcome]} {one.step}" for one in steps]


def _finding_lines(finding: Finding, evidence: str | None, *, mark_new: bool) -> list[str]:
    where = f" {finding.range}" if finding.range else ""
    mark = f" [known: {finding.known}]" if finding.known else " [new]" if mark_new else ""
    lines = [f"  {finding.title}", f"   {where} {finding.text}{mark}"]
    if finding.iomem:
        lines.append("    /proc/iomem:")
        lines += [f"      {line}" for line in finding.iomem[:_MOST_IOMEM_LINES]]
    messages = finding.decoded or finding.dmesg
    if messages:
        lines.append("    dmesg, decoded:" if finding.decoded else "    dmesg:")
        shown = [line for text in messages for line in text.splitlines()]
        lines += [f"      {line}" for line in shown[:_MOST_TRACE_LINES]]
        if len(shown) > _MOST_TRACE_LINES:
            see = f"{evidence}/verdict.json" if evidence else "--json"
            lines.append(f"      and {len(shown) - _MOST_TRACE_LINES} more lines, see {see}")
    return lines


def _wrapped(indent: str, text: str) -> list[str]:
    return [f"{indent}{line}" for line in text.splitlines()]
