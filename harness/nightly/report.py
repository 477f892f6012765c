# SPDX-License-Identifier: GPL-2.0-or-later
"""A night as text for a person, and as JSON."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from typing import Any

from harness.matrix.plan import BRANCH
from harness.nightly.diff import Change, Row, counts_of
from harness.nightly.night import NightResult

_MOST_ROWS = 200
_LISTED = {
    Change.REGRESSION: "regressions",
    Change.NEW_FAILURE: "fail, and no earlier night saw them",
    Change.UNTOLD: "could not be judged",
    Change.LEFT: "were judged before, and do not concern this kernel any more",
    Change.FIXED: "fixed",
    Change.STILL_FAILS: "fail as before",
}


def night_lines(result: NightResult) -> tuple[str, ...]:
    """What a night saw, what has changed first."""
    return tuple(_lines(result))


def _lines(result: NightResult) -> Iterator[str]:
    night, last = result.night, result.last
    yield f"night {night.number} of {night.branch} at {night.commit[:12]} {night.subject}"
    if last is None:
        yield "the first night of this branch: nothing to compare with"
    else:
        when = time.strftime("%Y-%m-%d", time.gmtime(last.began))
        ahead = "1 new commit" if result.ahead == 1 else f"{result.ahead} new commits"
        yield f"beside night {last.number} of {when} at {last.commit[:12]}: {ahead}"
        if last.harness != night.harness:
            yield "the harness is another one than that night's: a change may be its own"
    yield ", ".join(f"{count} {change.value}" for change, count in counts_of(result.rows))
    for change, heading in _LISTED.items():
        rows = [row for row in result.rows if row.change is change]
        if not rows:
            continue
        yield ""
        yield f"{heading}:"
        for row in rows[:_MOST_ROWS]:
            yield from _row_lines(row, result)
        if len(rows) > _MOST_ROWS:
            yield f"  and {len(rows) - _MOST_ROWS} more, see night.json"
    if result.gone:
        yield ""
        yield "not in the matrix any more:"
        yield from (f"  {line}" for line in result.gone)


def _row_lines(row: Row, result: NightResult) -> Iterator[str]:
    before = row.before
    was = f", was {before.seen} in night {before.night} at {before.commit[:12]}" if before else ""
    yield f"  {row.line}: {row.now}{was}"
    if row.now.failures:
        yield f"    broke: {', '.join(row.now.failures)}"
    if row.now.reason:
        yield f"    {row.now.reason.splitlines()[0]}"
    came = result.bisectings.get(row.line)
    if came is not None:
        if came.commit:
            yield f"    first bad commit: {came.commit} {came.subject}"
        yield from (f"    {line}" for line in came.said)
    if row.change is Change.REGRESSION:
        if row.now.evidence:
            yield f"    evidence: {row.now.evidence}"
        yield f"    {_command(row, result)}"


def _command(row: Row, result: NightResult) -> str:
    line = row.line
    kernel = result.spec if line.kernel == BRANCH else line.kernel
    words = ["harness", "run", line.scenario, "--kernel", kernel]
    words += ["--config", line.configs] if line.configs != "base" else []
    words += ["--series", line.series] if line.series else []
    words += ["--policy", line.policy]
    return shlex.join([*words, *(["--qemu", line.qemu] if line.qemu else [])])


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
            {"combination": one.combination.name, "reason": one.reason}
            for one in result.plan.dropped
        ],
        "gone": [str(line) for line in result.gone],
    }


def _row_json(row: Row, result: NightResult) -> dict[str, Any]:
    came = result.bisectings.get(row.line)
    return {
        "scenario": row.line.scenario,
        "kernel": row.line.kernel,
        "configs": row.line.configs,
        "series": row.line.series,
        "policy": row.line.policy,
        "qemu": row.line.qemu,
        "verdict": row.now.verdict,
        "known_issue": row.now.known,
        "failures": list(row.now.failures),
        "reason": row.now.reason,
        "change": row.change.value,
        "before": None
        if row.before is None
        else {
            "night": row.before.night,
            "commit": row.before.commit,
            "verdict": row.before.seen.verdict,
        },
        "first_bad": None
        if came is None
        else {"commit": came.commit, "subject": came.subject, "said": list(came.said)},
        "evidence": row.now.evidence,
    }
