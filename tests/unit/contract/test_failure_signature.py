# SPDX-License-Identifier: GPL-2.0-or-later
"""The identity of a failure: typed fields, never the text for people."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from evidence_fixtures import stored
from machines import CXL, HMEM, NOBODY, span

from harness.contract import dmesg
from harness.contract.dmesg import kernel_warnings, parse_dmesg
from harness.contract.failure_signature import failures_of, signature
from harness.contract.result import Finding, RunResult
from harness.reports.comparison import compare
from harness.reports.report_data import job_of
from harness.runs.combine import combine, of_one_guest
from harness.runs.repeats import compared
from harness.scenario.known_issues import load_known_issues
from harness.scenario.module_load import Load
from harness.scenario.owner import Ownership

SR = span("110000000-18fffffff")
EVERYWHERE = span("0-ffffffffffffffff")
STRANDED = Finding("1", "t", SR, kind="owner", subject="sr0", expected=HMEM, observed=NOBODY)
ERROR = Finding("6", "t", kind="error", subject="kmem dax2.0: 0x110000000 failed with error -16")
USE = Finding(
    *("use", "t", SR),
    kind="use",
    expected=CXL,
    observed=Ownership(owner="dax_cxl", use="offline"),
)
AFTER = replace(STRANDED, rule="7", phase="reload kmem")
NODE = Finding("node", "t", SR, kind="node", expected=CXL, observed=CXL)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (STRANDED, replace(STRANDED, subject="sr1", range=span("0-1"), iomem=("x",), known="y")),
        (STRANDED, replace(STRANDED, expected=Ownership(owner="dax_hmem"))),
        (ERROR, replace(ERROR, subject="kmem dax0.0: 0x1 failed with error -16", phase="boot")),
        (AFTER, replace(AFTER, dmesg=("x",))),
    ],
)
def test_names_addresses_and_phases_of_messages_do_not_count(one: Finding, other: Finding) -> None:
    assert signature([one]) == signature([other])


def test_rule_owner_use_step_and_error_count() -> None:
    findings = [
        STRANDED,
        replace(STRANDED, rule="2"),
        replace(STRANDED, expected=CXL),
        replace(STRANDED, observed=CXL),
        replace(STRANDED, kind="double_claim"),
        AFTER,
        replace(AFTER, phase="reload dax_hmem"),
        USE,
        replace(USE, observed=Ownership(owner="dax_cxl")),
        NODE,
        replace(NODE, observed=Ownership(owner="dax_cxl", node=1)),
        ERROR,
        replace(ERROR, kind="warning"),
        replace(ERROR, subject=ERROR.subject.replace("-16", "-12")),
        replace(ERROR, rule="step", kind="command_failed"),
    ]
    assert len(signature(findings)) == len(findings)


def failed(root: Path) -> list[RunResult]:
    """Results of real guests that broke the contract in several ways."""
    log = (
        "<3>[    1.000000] cxl_mem mem0: failed\n"
        "<4>[    2.000000] WARNING: CPU: 0 PID: 1 at drivers/cxl/core/region.c:1 x+0x1/0x2\n"
        "<3>[    3.000000] kmem dax2.0: probe with driver kmem failed with error -16\n"
    )
    runs = (
        *stored(root, "partial_region-7.2", "partial_region-6.12"),
        *stored(root / "log", "exact_cover-7.2", dmesg=log),
    )
    return [replace(run.record, load=Load("in_order", ("kmem",))) for run in runs]


def reworded(result: RunResult) -> RunResult:
    """The same result with every text for people replaced."""
    findings = tuple(replace(finding, text=f"#{n}") for n, finding in enumerate(result.findings))
    return replace(result, findings=findings)


def test_rewording_a_message_does_not_change_what_a_failure_is(tmp_path: Path) -> None:
    before = failed(tmp_path)
    after = [reworded(result) for result in before]
    assert len(signature(one for result in before for one in result.findings)) > 4
    for one, other in zip(before, after, strict=True):
        assert signature(one.findings) == signature(other.findings)
        assert failures_of(one) == failures_of(other)
        (row,) = compare({"s": one}, {"s": other})
        assert row.change.value == "same"
        (group,) = job_of([one, other]).failures
        assert group.runs == (0, 1)
        assert compared(combine([one, other], 1.0), [one, other]).differences == ()
    both = reworded(combine(before, 1.0))
    assert "different_outcomes" in {one.kind for one in both.findings}
    assert of_one_guest(both).findings == reworded(before[0]).findings


def test_known_issues_do_not_depend_on_the_words_for_people(tmp_path: Path) -> None:
    issues = load_known_issues().issues
    for result in failed(tmp_path):
        covering = [
            [one.covers(finding, [EVERYWHERE]) for one in issues] for finding in result.findings
        ]
        again = [[one.covers(f, [EVERYWHERE]) for one in issues] for f in reworded(result).findings]
        assert covering == again


def test_words_of_kinds_are_for_people_only(monkeypatch: pytest.MonkeyPatch) -> None:
    log = parse_dmesg("<3>[    1.0] cxl_mem mem0: failed\n<4>[    2.0] kernel BUG at x.c:1\n")
    before = [(one.kind, one.subject) for one in kernel_warnings(log)]
    monkeypatch.setattr(dmesg, "KINDS", dict.fromkeys(dmesg.KINDS, "reworded"))
    found = kernel_warnings(log)
    assert [(one.kind, one.subject) for one in found] == before
    assert all(str(one).startswith("reworded: ") for one in found)
