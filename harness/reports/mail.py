# SPDX-License-Identifier: GPL-2.0-or-later
"""A plain-text reply for the mailing list, at most 72 columns wide.

A `Tested-by:` is added only if every run of every named result passed, on kernels that the reply
can name; otherwise the reply has the reasons. Scenarios that were not run are listed, so that the
tag covers no more than was tested.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness.contract.result import Finding, RunResult, Verdict
from harness.reports.report_data import (
    KernelColumn,
    configs_of,
    kernel_column,
    outcome_of,
    run_labels,
    telling_findings,
)
from harness.runs.result_files import SourceFacts, StoredRun

COLUMNS = 72
_MOST_IOMEM = 16
_MOST_DMESG = 24
_SHOWN = {"KNOWN": "known FAIL"}


@dataclass(frozen=True)
class Person:
    """The tester.

    Attributes:
        name: as git has it.
        address: without angle brackets.
    """

    name: str
    address: str

    def __str__(self) -> str:
        return f"{self.name} <{self.address}>"


def mail_reply(
    runs: Sequence[StoredRun],
    scenarios: Iterable[str] = (),
    tester: Person | None = None,
    unfinished: int = 0,
) -> str:
    """The reply.

    Args:
        runs: at least one run.
        scenarios: every scenario that there is; those that were not run are named.
        tester: for the tag, None when it is not known.
        unfinished: how many runs have evidence, but no verdict.
    """
    lines = ["Tested with the CXL ownership harness.", ""]
    columns = [kernel_column(run.record) for run in runs]
    for kernel in dict.fromkeys(columns):
        mine = [run for run, column in zip(runs, columns, strict=True) if column == kernel]
        lines += [*_kernel_lines(kernel, mine), "", *_table([run.record for run in mine]), ""]
    lines += [*_summary(runs), *_not_run(runs, scenarios), ""]
    for run in runs:
        if not run.record.passed:
            lines += [*_failure(run.record), ""]
    doubts = [*reasons_against_tag(runs)]
    if unfinished:
        doubts.append(f"{_runs(unfinished)} more have no verdict")
    if doubts:
        lines += _folded(f"No Tested-by: {'; '.join(doubts)}.", "", "  ")
        return "\n".join(lines) + "\n"
    if tester is None:
        lines += _folded(
            "No Tested-by: no tester is named; set user.name and user.email in git, or give "
            "--tested-by 'NAME <ADDRESS>'.",
            "",
            "  ",
        )
        return "\n".join(lines) + "\n"
    # Never folded: tools read it.
    return "\n".join([*lines, f"Tested-by: {tester}"]) + "\n"


def reasons_against_tag(runs: Sequence[StoredRun]) -> tuple[str, ...]:
    """List the reasons against a Tested-by; empty without a reason."""
    found = []
    bad = sum(not run.record.passed for run in runs)
    if not runs:
        found.append("nothing was run")
    if bad:
        found.append(f"{bad} of {_runs(len(runs))} did not pass")
    if any(one.verdict is not Verdict.PASS for run in runs for one in run.record.attempts):
        found.append("some guests did not pass")
    if any(step.outcome != "held" for run in runs for step in run.record.steps):
        found.append("some steps were not done, or failed")
    if any(_source(run).dirty for run in runs):
        found.append("the source had uncommitted changes")
    identities: dict[str, set[str]] = {}
    for run in runs:
        if run.kernel.identity:
            identities.setdefault(run.record.spec, set()).add(run.kernel.identity)
    for spec, several in identities.items():
        if len(several) > 1:
            found.append(f"{len(several)} different kernels were called {spec}")
    if any(not run.kernel.identity for run in runs):
        found.append("the evidence of which kernel ran is missing")
    return tuple(found)


def _source(run: StoredRun) -> SourceFacts:
    return (run.manifest and run.manifest.source) or SourceFacts()


def _kernel_lines(kernel: KernelColumn, runs: Sequence[StoredRun]) -> list[str]:
    request = replace(runs[0].record.request, configs=())
    series = request.series
    lines = _folded(f"kernel:  {replace(request, series=None)}", "", " " * 9)
    if kernel.release:
        lines += _folded(kernel.release, " " * 9, " " * 9)
    source = next((_source(run) for run in runs if _source(run).commit), SourceFacts())
    if source.commit:
        dirty = ", with uncommitted changes" if source.dirty else ""
        lines += _folded(f"commit:  {source.commit}{dirty}", "", " " * 9)
    if series is not None:
        lines += _folded(f"series:  {series}", "", " " * 9)
    for name in _patch_names(runs):
        lines += _folded(name.removesuffix(".patch"), " " * 9, " " * 11)
    lines += _folded(f"policy:  {_joined(run.record.policy for run in runs)}", "", " " * 9)
    machines = _joined(_machine(run) for run in runs)
    return lines + _folded(f"machine: {machines}", "", " " * 9)


def _patch_names(runs: Sequence[StoredRun]) -> list[str]:
    for run in runs:
        if run.manifest and run.manifest.series:
            return [patch.name for patch in run.manifest.series.patches]
    return []


def _machine(run: StoredRun) -> str:
    qemu = f"QEMU {run.kernel.qemu.version_text}".strip()
    return ", ".join(word for word in (qemu, run.record.accel) if word)


def _joined(words: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(word for word in words if word))


def _table(records: Sequence[RunResult]) -> list[str]:
    rows: dict[tuple[str, str], int] = {}
    for record, label in zip(records, run_labels(records), strict=True):
        outcome = outcome_of(record)
        verdict = _SHOWN.get(outcome, outcome)
        guests = f", {len(record.attempts)} guests" if record.attempts else ""
        name = f"{record.scenario} ({label})" if label else record.scenario
        row = (name, f"{verdict}{guests}")
        rows[row] = rows.get(row, 0) + 1
    width = min(max(len(name) for name, _ in rows), COLUMNS - 26)
    lines: list[str] = []
    for (name, verdict), count in sorted(rows.items()):
        times = f", {count} times" if count > 1 else ""
        folded = _folded(f"{name.ljust(width)}  {verdict}{times}", "  ", "    ")
        lines += folded
    return lines


def _summary(runs: Sequence[StoredRun]) -> list[str]:
    counts: dict[str, int] = {}
    for run in runs:
        outcome = outcome_of(run.record)
        words = _SHOWN.get(outcome, outcome)
        counts[words] = counts.get(words, 0) + 1
    counted = ", ".join(f"{count} {words}" for words, count in sorted(counts.items()))
    return _folded(f"{_runs(len(runs))}: {counted}.", "", "  ")


def _runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"


def _not_run(runs: Sequence[StoredRun], scenarios: Iterable[str]) -> list[str]:
    everything = tuple(scenarios)
    missing = sorted(set(everything) - {run.record.scenario for run in runs})
    if not missing:
        return []
    text = f"Not run ({len(missing)} of {len(everything)} scenarios): {', '.join(missing)}."
    return _folded(text, "", "  ")


def _failure(record: RunResult) -> list[str]:
    outcome = outcome_of(record)
    more = f" (config {configs_of(record)})" if configs_of(record) else ""
    lines = _folded(f"{_SHOWN.get(outcome, outcome)}: {record.scenario}{more}", "", "  ")
    if record.load_text:
        lines += _folded(f"loaded: {record.load_text}", "  ", "    ")
    if record.reason:
        lines += _folded(record.reason, "  ", "    ")
    for finding in telling_findings(record.findings):
        lines += _finding(finding)
    if record.known_issue:
        lines += _folded(f"known issue: {' '.join(record.known_issue.split())}", "  ", "    ")
    return [*lines, *_folded(f"reproduce: {record.command}", "  ", "    ")]


def _finding(finding: Finding) -> list[str]:
    where = f"{finding.range} " if finding.range else ""
    lines = [
        *_folded(finding.title, "  ", "    "),
        *_folded(f"{where}{finding.text}", "    ", "      "),
    ]
    for title, texts, most in (
        ("/proc/iomem:", finding.iomem, _MOST_IOMEM),
        ("dmesg:", finding.dmesg, _MOST_DMESG),
    ):
        shown = [line for text in texts for line in text.splitlines()]
        if not shown:
            continue
        lines.append(f"    {title}")
        for line in shown[:most]:
            indent = len(line) - len(line.lstrip(" "))
            start = " " * min(6 + indent, 30)
            lines += _folded(line.strip(), start, f"{start}    ")
        if len(shown) > most:
            lines.append(f"      ... {len(shown) - most} more lines")
    return lines


def _folded(text: str, first: str, later: str) -> list[str]:
    """Lines of at most COLUMNS columns; words are broken only where they are too long for one."""
    clean = "".join(
        letter if letter.isprintable() else " " if letter.isspace() else "?" for letter in text
    )
    wide = any(unicodedata.east_asian_width(letter) in "WF" for letter in clean)
    # Letters of double width: half as many are never too many.
    width = COLUMNS // 2 if wide else COLUMNS
    return textwrap.wrap(
        clean.strip(),
        max(width, len(later) + 8, len(first) + 8),
        initial_indent=first,
        subsequent_indent=later,
        break_on_hyphens=False,
        drop_whitespace=True,
        replace_whitespace=True,
    ) or [""]
