# SPDX-License-Identifier: GPL-2.0-or-later
"""The data of one run for the page, as compact JSON; texts that runs share are stored once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from harness.contract.dmesg import Record
from harness.contract.iomem_diff import Mark, marked_iomem
from harness.contract.result import Finding, OwnedRange, RunResult
from harness.platform.memory_range import MemoryRange
from harness.reports.html.address_picture import address_picture
from harness.reports.html.address_space import address_space
from harness.reports.report_data import outcome_of, telling_findings
from harness.runs.result_files import StoredRun

_MARKS: dict[Mark, int] = {"same": 0, "wrong": 1, "missing": 2}
_TIME = re.compile(r"^\[ *\d+\.\d+\] ")
# Limits the page size for endless logs; the end of a log has the cause.
_MOST_RECORDS = 4000
# Each has few lines already; the result file has all.
_MOST_DIFFERENCES = 50


class Strings:
    """Texts by number, each kept once."""

    def __init__(self) -> None:
        self.listed: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of a text."""
        found = self._numbers.setdefault(text, len(self.listed))
        if found == len(self.listed):
            self.listed.append(text)
        return found


def run_details(run: StoredRun, strings: Strings) -> dict[str, Any]:
    """One run, for the page's script (`report.js`), which has the meaning of each field."""
    record = run.record
    space = address_space(run)
    return {
        "scenario": record.scenario,
        "spec": record.spec,
        "release": record.kernel.release or "",
        "config": record.kernel.config_sha256 or "",
        "policy": record.policy,
        "accel": record.accel or "",
        "start": record.start,
        "load": record.load_text,
        "outcome": outcome_of(record),
        "reason": record.reason,
        "hint": record.hint,
        "known": strings.number(record.known_issue or ""),
        "notes": record.notes,
        "owners": _owners(record.owners),
        "findings": _findings(record.findings),
        "steps": [
            [one.step, one.outcome, _owners(one.owners), _findings(one.findings)]
            for one in record.steps
        ],
        "attempts": [
            [
                *(one.verdict.name, str(one.load or ""), one.start, one.seconds),
                one.reason or one.outcome,
            ]
            for one in record.attempts
        ],
        "compared": record.compared,
        "differences": [
            [
                *(one.guest, one.evidence, one.part, one.others),
                [strings.number(line) for line in one.only_here],
                [strings.number(line) for line in one.only_there],
            ]
            for one in record.differences[:_MOST_DIFFERENCES]
        ],
        "more_differences": max(0, len(record.differences) - _MOST_DIFFERENCES),
        "picture": strings.number(address_picture(space)),
        "iomem": _iomem(run, [box.range for box in space.boxes()], strings),
        **_log(run, strings),
        "timings": list(record.timings.items()),
        "command": record.command,
        "argv": strings.number(_without_folder(run.argv, record.evidence)),
        "cmdline": strings.number(run.kernel.command_line),
        "qemu": run.kernel.qemu.version_text,
        "evidence": record.evidence,
    }


def _owners(owners: Iterable[OwnedRange]) -> list[Any]:
    return [
        [
            one.name,
            str(one.range),
            str(one.expected),
            [
                [str(piece.range), str(piece.ownership), piece.via, int(one.is_wrong(piece))]
                for piece in one.observed
            ],
        ]
        for one in owners
    ]


def _findings(findings: Iterable[Finding]) -> list[Any]:
    return [
        [
            *(one.title, str(one.range or ""), one.text, one.iomem, one.dmesg, one.phase or ""),
            one.known or "",
        ]
        for one in telling_findings(findings)
    ]


def _iomem(run: StoredRun, interesting: Sequence[MemoryRange], strings: Strings) -> list[Any]:
    """Mark, depth, whether it is near, number of the line, number of the note: five a line."""
    if run.observation is None:
        return []
    return [
        number
        for line in marked_iomem(run.record, run.observation, interesting)
        for number in (
            _MARKS[line.mark],
            line.depth,
            int(line.near),
            strings.number(line.text),
            strings.number(line.note),
        )
    ]


def _log(run: StoredRun, strings: Strings) -> dict[str, Any]:
    """The log: number of the text (against the one before) and microseconds (likewise) by turns.

    Neighbouring lines of one kernel's log have neighbouring numbers, so this packs well.
    """
    if run.observation is None:
        return {"log": [], "offending": []}
    records = run.observation.dmesg[-_MOST_RECORDS:]
    packed: list[int] = []
    last_number = last_time = 0
    for one in records:
        number, micros = strings.number(f"{one.level}{one.text}"), round(one.time * 1e6)
        packed += [number - last_number, micros - last_time]
        last_number, last_time = number, micros
    return {"log": packed, "offending": offending_lines(run.record, records)}


def offending_lines(record: RunResult, records: Sequence[Record]) -> list[int]:
    """Which messages of a log the findings of a run are about, by place."""
    findings = [*record.findings, *(one for step in record.steps for one in step.findings)]
    # Without their times: a trace is one message, with the time of its beginning.
    named = {
        _TIME.sub("", line)
        for one in findings
        for text in one.dmesg
        for line in text.splitlines()
        if line.strip()
    }
    return [
        place
        for place, one in enumerate(records)
        if any(line in named for line in one.text.splitlines())
    ]


def _without_folder(argv: str, evidence: str) -> str:
    """The command line with EVIDENCE for the run's own folder: the same for runs alike."""
    return argv.replace(evidence, "EVIDENCE") if evidence else argv
