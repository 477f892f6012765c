# SPDX-License-Identifier: GPL-2.0-or-later
"""Two kernels side by side, as text for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.reports.comparison import Change, Row, Side

MARKS = {
    Change.SAME: " ",
    Change.REGRESSION: "-",
    Change.FIX: "+",
    Change.OTHER_OWNER: "~",
    Change.OTHER_FAILURE: "~",
    Change.UNKNOWN: "?",
    Change.NOT_RUN: "",
}


def comparison_lines(rows: Sequence[Row], kernels: tuple[str, str]) -> tuple[str, ...]:
    """A table with a line for each scenario that was run, and what its marks count to.

    Args:
        rows: the scenarios.
        kernels: what the two kernels are called.
    """
    table = [("", "scenario", *kernels, "")]
    for row in rows:
        if row.change is Change.NOT_RUN:
            continue
        said = "" if row.change is Change.SAME else row.change.value
        cells = (_cell(row.first), _cell(row.second))
        table.append((MARKS[row.change], row.scenario, *cells, said))
    widths = [max(len(line[column]) for line in table) for column in range(5)]
    lines = [
        " ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    left_out = [row.scenario for row in rows if row.change is Change.NOT_RUN]
    if left_out:
        lines.append(f"about neither kernel: {', '.join(left_out)}")
    counts = Counter(row.change for row in rows)
    lines.append(", ".join(f"{counts[one]} {one.value}" for one in Change if counts[one]))
    return tuple(lines)


def _cell(side: Side) -> str:
    if side.verdict is None:
        return "skipped"
    if not side.owners:
        return side.verdict.name
    return f"{side.verdict.name} {', '.join(side.owners)}" + (f" ({side.why})" if side.why else "")
