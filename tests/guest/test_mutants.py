# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutants x scenarios: each mutant that is marked `ci` is seen by the scenario that it names, with
the finding that it names, and no other of them shows that finding there by accident. `ci/mutants`
runs all mutants.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from harness.contract.result import RULES, Finding, RunResult, Verdict
from harness.core.paths import PROJECT
from harness.guest import modules
from harness.plugins.pytest_plugin import report_text
from harness.runs.guest_run import Judging
from harness.runs.prepare import Host
from harness.runs.session import Session, SessionOptions, default_jobs
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.known_issues import KnownIssues
from harness.scenario.scenario import Policy
from harness.scenario.scenario_files import load_case, scenario_names


@dataclass(frozen=True)
class Mutant:
    """A series that brings a bug back, and where it must show.

    Attributes:
        name: its folder's.
        folder: the series.
        base: the kernel version that it is for.
        policy: whose rules are judged.
        scenario: which fails.
        rule: that is broken.
        finding: a regular expression of the text of the finding that must be among others.
        rules: all that are broken, each time; None where that differs from run to run.
        ci: whether it is booted here.
    """

    name: str
    folder: Path
    base: str
    policy: Policy
    scenario: str
    rule: str
    finding: str
    rules: tuple[str, ...] | None = None
    ci: bool = False

    def shown(self, result: RunResult) -> tuple[Finding, ...]:
        """The findings of a run that are this mutant's."""
        return tuple(
            one
            for one in result.findings
            if one.rule == self.rule and re.search(self.finding, one.text)
        )


def read_mutant(folder: Path) -> Mutant | None:
    """A mutant, or None: one that names no scenario survives them all."""
    series = yaml.safe_load((folder / "series.yaml").read_text())
    shown = series.get("mutant")
    if shown is None:
        return None
    if "rules" in shown:
        shown["rules"] = tuple(shown["rules"])
    return Mutant(folder.name, folder, series["base"], series["policy"], **shown)


FOLDERS = sorted(path.parent for path in (PROJECT / "patches/mutants").glob("*/*/series.yaml"))
ALL = [one for one in map(read_mutant, FOLDERS) if one is not None]
MUTANTS = [one for one in ALL if one.ci]
# A guest that hangs in the first driver shows nothing else, and takes all the time it is given.
HANGING = {"hang-in-hmem", "dead-in-hmem"}
# A dax_hmem that defers nothing cannot be caught while its work is pending: INCONCLUSIVE.
NOT_DEFERRED = {"hmem-does-not-wait"}
SCENARIOS = sorted({one.scenario for one in MUTANTS})
NAMES = [one.name for one in MUTANTS]

Row = Callable[[Mutant], Mapping[str, RunResult]]


def test_there_are_mutants() -> None:
    assert len(MUTANTS) == 11 and len(ALL) >= 40
    assert len({folder.name for folder in FOLDERS}) == len(FOLDERS)
    for one in ALL:
        assert one.scenario in scenario_names()
        assert {one.rule} <= set(one.rules or (one.rule,)) <= set(RULES)


@pytest.fixture(scope="module")
def row(
    harness_host: Host, known_issues: KnownIssues, tmp_path_factory: pytest.TempPathFactory
) -> Row:
    """Runs the scenarios that any mutant names on a mutant; its own only on one that hangs."""

    @functools.cache
    def run(mutant: Mutant) -> Mapping[str, RunResult]:
        names = [mutant.scenario] if mutant.name in HANGING else SCENARIOS
        kernel = KernelRequest(f"build:debian:{mutant.base}", series=mutant.folder)
        judging = Judging(mutant.policy, tmp_path_factory.mktemp(mutant.name), known_issues)
        with (
            pytest.MonkeyPatch.context() as patched,
            Session(harness_host, judging, SessionOptions(default_jobs())) as session,
        ):
            if mutant.name in HANGING:
                patched.setattr(modules, "_LOAD_SECONDS", 15.0)
            found = dict(run_all(session, names, kernel))
            # A host that starves its guests can leave a run without a judgement: once more.
            again = [name for name, one in found.items() if one.verdict is Verdict.INCONCLUSIVE]
            found.update(run_all(session, again, kernel))
        assert len(found) == len(names)
        return found

    return run


def run_all(
    session: Session, names: Sequence[str], kernel: KernelRequest
) -> Iterator[tuple[str, RunResult]]:
    for result in session.run_all([load_case(name) for name in names], kernel):
        assert isinstance(result, RunResult), result
        yield result.scenario, result


@pytest.mark.guest
@pytest.mark.parametrize("mutant", MUTANTS, ids=NAMES)
def test_a_mutant_is_seen(mutant: Mutant, row: Row) -> None:
    result = row(mutant)[mutant.scenario]
    assert result.verdict is Verdict.FAIL, report_text(result)
    assert not result.known_issue, report_text(result)
    assert mutant.shown(result), report_text(result)
    if mutant.rules is not None:
        assert {one.rule for one in result.findings} == set(mutant.rules), report_text(result)


@pytest.mark.guest
@pytest.mark.parametrize("mutant", MUTANTS, ids=NAMES)
def test_no_other_mutant_shows_it(mutant: Mutant, row: Row) -> None:
    for other in MUTANTS:
        if other is not mutant and mutant.scenario in row(other):
            result = row(other)[mutant.scenario]
            if other.name not in NOT_DEFERRED:
                assert result.verdict in (Verdict.PASS, Verdict.FAIL), report_text(result)
            assert not mutant.shown(result), f"{other.name}: {report_text(result)}"


@pytest.mark.guest
def test_the_matrix(row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    """For the log: a line for each mutant, what each scenario found, its own in brackets."""
    lines = [("", *SCENARIOS)]
    for mutant in MUTANTS:
        cells = [_cell(mutant, name, row(mutant)) for name in SCENARIOS]
        lines.append((mutant.name, *cells))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    with capsys.disabled():
        print("\nmutants x scenarios: broken rules, or held; what a mutant must show in brackets")
        for line in lines:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def _cell(mutant: Mutant, scenario: str, results: Mapping[str, RunResult]) -> str:
    if scenario not in results:
        return "not run"
    result = results[scenario]
    rules = ",".join(sorted({one.rule for one in result.findings})) or "held"
    known = " known" if result.known_issue else ""
    return f"[{rules}]" if mutant.scenario == scenario else rules + known
