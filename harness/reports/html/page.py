# SPDX-License-Identifier: GPL-2.0-or-later
"""One HTML file for a job: it needs no server, no network and no other file.

The grid is plain HTML. What belongs to single runs is packed into one compressed block that the
page's script opens on demand, so that a report of many runs opens immediately.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from harness.reports.html.details import Strings, run_details
from harness.reports.report_data import (
    OUTCOMES,
    WORDS,
    Chip,
    Job,
    job_of,
    kernel_column,
    summary_text,
)
from harness.runs.result_files import StoredRun

_TOOLTIP = 240


@dataclass(frozen=True)
class ChipView:
    """A chip as the page has it."""

    outcome: str
    text: str
    run: str
    runs: str
    tooltip: str


def html_report(
    runs: Sequence[StoredRun], title: str, when: float | None = None, summary: str = ""
) -> str:
    """The page.

    Args:
        runs: at least one run.
        title: its heading.
        when: the time shown, in seconds since 1970; the current time by default.
        summary: plain text to stand in front of everything else.
    """
    job = job_of(run.record for run in runs)
    names = run_names(runs)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    failures = [(WORDS[one.outcome], one, [names[run] for run in one.runs]) for one in job.failures]
    script, style = _file("report.js"), _file("report.css")
    return environment.get_template("report.html.j2").render(
        title=title,
        summary=summary,
        when=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(when)),
        job=job,
        outcomes=[(name, WORDS[name], count) for name, count in job.counts],
        rows=[
            (
                scenario,
                [
                    _chips(job, job.cells.get((scenario, kernel), ()), names)
                    for kernel in job.kernels
                ],
            )
            for scenario in job.scenarios
        ],
        new=[one for one in failures if one[1].outcome != "KNOWN"],
        known=[one for one in failures if one[1].outcome == "KNOWN"],
        policies=sorted({one.policy for one in job.records}),
        script=script,
        style=style,
        script_hash=_hash(script),
        style_hash=_hash(style),
        packed=_packed(runs, job, names),
    )


def run_names(runs: Sequence[StoredRun]) -> tuple[str, ...]:
    """A short name for each run that stays the same in every report, for links to it."""
    names: list[str] = []
    for run in runs:
        record = run.record
        identity = "\0".join((record.scenario, record.spec, record.policy, run.name))
        name = hashlib.sha256(identity.encode()).hexdigest()[:10]
        same = sum(one.split(".")[0] == name for one in names)
        names.append(f"{name}.{same + 1}" if same else name)
    return tuple(names)


def _chips(job: Job, chips: Sequence[Chip], names: Sequence[str]) -> list[ChipView]:
    views = []
    for chip in chips:
        first = job.records[chip.runs[0]]
        words = [WORDS[chip.outcome], *([chip.label] if chip.label else [])]
        if len(chip.runs) > 1:
            words.append(f"\N{MULTIPLICATION SIGN}{len(chip.runs)}")
        views.append(
            ChipView(
                outcome=chip.outcome,
                text=" ".join(words),
                run=names[chip.runs[0]],
                runs=" ".join(map(str, chip.runs)),
                tooltip=summary_text(first)[:_TOOLTIP],
            )
        )
    return views


def _packed(runs: Sequence[StoredRun], job: Job, names: Sequence[str]) -> str:
    """Everything about single runs, compressed, in letters that HTML has no meaning for."""
    strings = Strings()
    details: list[dict[str, Any]] = [
        {**run_details(run, strings), "id": name, "column": job.kernels.index(kernel)}
        for run, name, kernel in zip(
            runs, names, (kernel_column(run.record) for run in runs), strict=True
        )
    ]
    content = {"outcomes": OUTCOMES, "words": WORDS, "runs": details, "strings": strings.listed}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _file(name: str) -> str:
    """Read a file of this package."""
    return (importlib.resources.files("harness.reports.html") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The source expression of a Content-Security-Policy for exactly this text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
