# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether guests that were asked for the same have left the same: their evidence is read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from harness.contract.result import Difference, RunResult
from harness.runs.repeat_differences import NOT_COMPARED, Guest, comparable_parts, differences
from harness.scenario.module_load import Load

# More than any file of the evidence that is compared; a guest must not fill the memory.
_MOST_BYTES = 16 << 20


def compared(combined: RunResult, results: Sequence[RunResult]) -> RunResult:
    """The result of a scenario, with what differs between its guests that loaded the same.

    Args:
        combined: the scenario's.
        results: those of its guests, in the order of `combined.attempts`.
    """
    by_load: dict[Load, list[tuple[int, RunResult]]] = {}
    for number, one in enumerate(results, 1):
        if one.load is not None and one.evidence:
            by_load.setdefault(one.load, []).append((number, one))
    count = 0
    found: list[Difference] = []
    for alike in by_load.values():
        if len(alike) > 1:
            count += len(alike)
            # Most guests have most parts in common: each is kept once.
            kept: dict[tuple[str, ...], tuple[str, ...]] = {}
            found += differences([_guest(number, one, kept) for number, one in alike])
    ordered = sorted(found, key=lambda one: one.guest)
    return replace(combined, compared=count, differences=tuple(ordered))


def read_evidence(folder: Path) -> dict[str, str]:
    """The files of a run's evidence that are compared, by path below the folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name in NOT_COMPARED or path.name.startswith(".") or not path.is_file():
            continue
        with suppress(OSError), path.open("rb") as file:
            text = file.read(_MOST_BYTES).decode("utf-8", "replace")
            found[path.relative_to(folder).as_posix()] = text
    return found


def _guest(number: int, result: RunResult, kept: dict[tuple[str, ...], tuple[str, ...]]) -> Guest:
    parts: Mapping[str, tuple[str, ...]] = comparable_parts(
        result, read_evidence(Path(result.evidence))
    )
    return Guest(
        number,
        result.evidence,
        {name: kept.setdefault(lines, lines) for name, lines in parts.items()},
    )
