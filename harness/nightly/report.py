# SPDX-License-Identifier: GPL-2.0-or-later
"""The report of a night as text and as JSON."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from harness.matrix.plan import BRANCH, NO_CONFIG
from harness.nightly.diff import Change, EntryKey, Row, counts_of
from harness.nightly.night import NightResult

_MOST_ROWS = 200
_LISTED = {
    Change.REGRESSION: "regressions",
    Change.NEW_FAILURE: "failures of entries that no earlier night judged",
    Change.NOT_JUDGED: "could not be judged",
    Change.LEFT: "judged before, but no longer apply to this kernel",
    Change.FIXED: "fixed",
    Change.STILL_FAILS: "fail as before",
}


def night_lines(result: NightResult) -> Iterator[str]:
    """The lines of the summary, changes first."""
    night, last = result.night, result.last
    yield f"night {night.number} of {night.branch} at {night.commit[:12]} {night.subject}"
    if last is None:
        yield "the first night of this branch: nothing to compare with"
    else:
        date = time.strftime("%Y-%m-%d", time.gmtime(last.began))
        ahead = "1 new commit" if result.ahead == 1 else f"{result.ahead} new commits"
        yield f"compared with night {last.number} of {date} at {last.commit[:12]}: {ahead}"
        if last.harness != night.harness:
            yield "that night ran another version of the harness, which can be the cause of changes"
    yield ", ".join(f"{count} {change.value}" for change, count in counts_of(result.rows))
    for change, heading in _LISTED.items():
        rows = [row for row in result.rows if row.change is change]
        if rows:
            yield from ("", f"{heading}:")
        for row in rows[:_MOST_ROWS]:
            yield from _row_lines(row, result)
        if len(rows) > _MOST_ROWS:
            yield f"  and {len(rows) - _MOST_ROWS} more, see night.json"
    if result.gone:
        yield from ("", "no longer in the matrix:", *(f"  {key}" for key in result.gone))


def _row_lines(row: Row, result: NightResult) -> Iterator[str]:
    before = row.before
    yield f"  {row.key}: {row.now}" + (
        f", was {before.outcome} in night {before.night} at {before.commit[:12]}" if before else ""
    )
    if row.now.failures:
        yield f"    broke: {', '.join(row.now.failures)}"
    if row.now.reason:
        yield f"    {row.now.reason.splitlines()[0]}"
    bisection = result.bisections.get(row.key)
    if bisection is not None:
        if bisection.commit:
            yield f"    first bad commit: {bisection.commit} {bisection.subject}"
        yield from (f"    {line}" for line in bisection.lines)
    if row.change is Change.REGRESSION:
        if row.now.evidence:
            yield f"    evidence: {row.now.evidence}"
        yield f"    {_command(row.key, result.spec)}"


def _command(key: EntryKey, branch: str) -> str:
    """The command line that runs an entry again."""
    words = ["harness", "run", key.scenario]
    words += ["--kernel", branch if key.kernel == BRANCH else key.kernel]
    words += ["--config", key.configs] if key.configs != NO_CONFIG else []
    words += ["--series", key.series] if key.series else []
    words += ["--policy", key.policy]
    return shlex.join([*words, *(["--qemu", key.qemu] if key.qemu else [])])


def night_json(result: NightResult) -> dict[str, Any]:
    """The object of `night.json`."""
    night, last = result.night, result.last
    return {
        "night": night.number,
        "tree": night.tree,
        "branch": night.branch,
        "commit": night.commit,
        "subject": night.subject,
        "harness": night.harness,
        "last": {"night": last.number, "commit": last.commit} if last else None,
        "new_commits": result.ahead,
        "counts": {change.value: count for change, count in counts_of(result.rows)},
        "rows": [_row_json(row, result) for row in result.rows],
        "left_out": [
            {"combination": dropped.combination.name, "reason": dropped.reason}
            for dropped in result.plan.dropped
        ],
        "gone": [str(key) for key in result.gone],
    }


def _row_json(row: Row, result: NightResult) -> dict[str, Any]:
    now, before, bisection = row.now, row.before, result.bisections.get(row.key)
    return {
        **asdict(row.key),
        "verdict": now.verdict,
        "known_issue": now.known,
        "failures": list(now.failures),
        "reason": now.reason,
        "change": row.change.value,
        "before": before
        and {
            "night": before.night,
            "commit": before.commit,
            "verdict": before.outcome.verdict,
        },
        "first_bad": bisection
        and {
            "commit": bisection.commit,
            "subject": bisection.subject,
            "said": list(bisection.lines),
        },
        "evidence": now.evidence,
    }
