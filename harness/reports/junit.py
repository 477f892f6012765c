# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as JUnit XML, the form that CI services read."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from harness.contract.result import Finding, RunResult
from harness.reports.report_data import configs_of, kernel_column, outcome_of, telling_findings
from harness.runs.result_files import StoredRun

# What XML 1.0 cannot hold, however it is escaped.
_NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_report(runs: Sequence[StoredRun]) -> str:
    """One test suite a kernel, one test case a run.

    FAIL is a failure; a FAIL that the known issues explain is skipped, as pytest does it;
    INCONCLUSIVE and UNBUILDABLE are errors, because nothing was judged.
    """
    suites = Element("testsuites", {"name": "cxl-ownership"})
    columns = [kernel_column(run.record) for run in runs]
    for kernel in dict.fromkeys(columns):
        mine = [run for run, column in zip(runs, columns, strict=True) if column == kernel]
        outcomes = [outcome_of(run.record) for run in mine]
        suite = SubElement(
            suites,
            "testsuite",
            {
                "name": _clean(str(kernel)),
                "tests": str(len(mine)),
                "failures": str(outcomes.count("FAIL")),
                "errors": str(sum(one in ("INCONCLUSIVE", "UNBUILDABLE") for one in outcomes)),
                "skipped": str(outcomes.count("KNOWN")),
                "time": f"{sum(run.record.seconds or 0 for run in mine):.3f}",
            },
        )
        ended = [run.ended for run in mine if run.ended is not None]
        if ended:
            suite.set("timestamp", time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(min(ended))))
        for run in mine:
            _case(suite, run)
    ElementTree.indent(suites)
    text = ElementTree.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _case(suite: Element, run: StoredRun) -> None:
    record = run.record
    case = SubElement(
        suite,
        "testcase",
        {
            "classname": _clean(f"ownership.{record.policy}"),
            "name": _clean(_name(record)),
            "time": f"{record.seconds or 0:.3f}",
        },
    )
    properties = SubElement(case, "properties")
    for name, value in (
        ("kernel", record.spec),
        ("release", record.kernel.release),
        ("config_sha256", record.kernel.config_sha256),
        ("accel", record.accel),
        ("start", record.start),
        ("load", record.load_text),
        ("evidence", record.evidence),
        ("reproduce", record.command),
    ):
        if value:
            SubElement(properties, "property", {"name": name, "value": _clean(value)})
    outcome = outcome_of(record)
    text = "\n\n".join(_finding_text(one) for one in telling_findings(record.findings))
    first = record.reason or next((one.text for one in record.findings), outcome)
    if outcome == "FAIL":
        rules = ", ".join(dict.fromkeys(one.rule for one in record.findings))
        child = SubElement(case, "failure", {"type": f"rule {rules}" if rules else "FAIL"})
        child.set("message", _clean(first))
        child.text = _clean(text)
    elif outcome == "KNOWN":
        child = SubElement(case, "skipped", {"type": "known_issue"})
        child.set("message", _clean(f"known issue: {' '.join(str(record.known_issue).split())}"))
        SubElement(case, "system-out").text = _clean(text)
    elif outcome != "PASS":
        child = SubElement(case, "error", {"type": outcome, "message": _clean(first)})
        child.text = _clean(f"{record.reason}\nhint: {record.hint}" if record.hint else first)


def _name(record: RunResult) -> str:
    """The scenario, with the configuration and load that distinguish its runs on a kernel."""
    more = [*([f"config {configs_of(record)}"] if configs_of(record) else [])]
    if record.load_text:
        more.append(record.load_text)
    return f"{record.scenario}[{'; '.join(more)}]" if more else record.scenario


def _finding_text(finding: Finding) -> str:
    where = f"{finding.range} " if finding.range else ""
    lines = [finding.title, f"  {where}{finding.text}"]
    lines += [f"    {line}" for line in (*finding.iomem, *finding.dmesg)]
    return "\n".join(lines)


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
