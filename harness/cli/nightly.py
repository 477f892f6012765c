# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `ci/nightly`: run a night of a branch, from the fetch to the report."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.matrix import avocado_job
from harness.cli.options import explains_errors
from harness.cli.run import make_folder
from harness.contract.result import Verdict
from harness.core.errors import UsageError
from harness.core.files import write_atomic
from harness.core.paths import PROJECT, evidence_root
from harness.core.progress import TerminalProgress
from harness.scenario.kernel_request import KernelRequest

if TYPE_CHECKING:
    from harness.bisect.judge import Flakiness
    from harness.matrix.plan import Combination
    from harness.matrix.watched_pool import Ended
    from harness.nightly.bisect import BisectingTime
    from harness.nightly.diff import BisectOutcome
    from harness.nightly.night import NightResult, RunJob
    from harness.runs.prepare import Host

_DEFAULT_MATRIX = PROJECT / "ci" / "nightly.yaml"
_TIMEOUT = "Test interrupted: Timeout reached"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--tree", required=True, metavar="URL|PATH", help="A git repository of Linux.")
@click.option("--branch", default="cxl/next", show_default=True, help="A branch of it.")
@click.option(
    "--matrix",
    type=click.Path(path_type=Path),
    default=_DEFAULT_MATRIX,
    metavar="FILE",
    help="A matrix file; its kernel `branch` stands for the branch. Default: ci/nightly.yaml.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder of the history and the reports. Default: next to the evidence of runs.",
)
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1, 256),
    help="The number of concurrent guests on this host.",
)
@click.option(
    "--hosts", type=click.Path(path_type=Path), metavar="HOSTS.yaml", help="Run on these hosts."
)
@click.option(
    "--run-timeout",
    type=click.IntRange(1, 24 * 3600),
    default=3600,
    show_default=True,
    metavar="SECONDS",
    help="The time limit for one matrix entry.",
)
@click.option(
    "--bisect-minutes",
    type=click.IntRange(0, 24 * 60),
    default=60,
    show_default=True,
    help="The time limit for the bisection of one regression; 0 for no bisection.",
)
@click.option(
    "--bisect-total-minutes",
    "total_minutes",
    type=click.IntRange(1, 7 * 24 * 60),
    default=240,
    show_default=True,
    help="The time limit for all bisections of a night.",
)
@click.option(
    "--runs",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    metavar="N",
    help="The number of runs of each commit in a bisection.",
)
@click.option(
    "--keep",
    type=click.IntRange(1, 10_000),
    default=30,
    show_default=True,
    metavar="NIGHTS",
    help="The number of nights that keep evidence, report and whole results; verdicts are kept.",
)
@click.option("--fresh", is_flag=True, help="Give up an unfinished night and begin a new one.")
@explains_errors
def nightly(
    tree: str,
    branch: str,
    matrix: Path,
    state: Path | None,
    jobs: int | None,
    hosts: Path | None,
    run_timeout: int,
    bisect_minutes: int,
    total_minutes: int,
    runs: int,
    keep: int,
    fresh: bool,
) -> None:
    """Run the matrix on a branch, and compare the results with the nights before.

    A night that was killed continues when it is started again. Reports are in STATE/nights/latest:
    summary.txt, report.html, results.json, junit.xml, night.json.

    Exit code: 0 no regression, 1 a regression, 2 invalid input, 3 nothing could be judged, the
    branch could not be fetched, or the night was interrupted.
    """
    from harness.bisect.judge import Flakiness
    from harness.core.cache import Store
    from harness.core.version import harness_version
    from harness.kernels.resolve import resolve_kernel
    from harness.matrix.lab import load_hosts
    from harness.nightly.diff import BisectOutcome
    from harness.nightly.history import open_history
    from harness.nightly.night import Nightly, NightOptions
    from harness.nightly.repo import night_tree
    from harness.runs.prepare import this_host

    folder = (state or evidence_root().parent / "nightly").absolute()
    make_folder(folder, "--state")
    if hosts is not None:
        load_hosts(hosts)  # report errors in it before anything is fetched or built
    progress = TerminalProgress()
    host = this_host(progress, "auto")
    with (
        Store(folder).lock("nightly", what=f"running a night in {folder}", wait=False),
        open_history(folder, progress.note) as history,
    ):
        followed = night_tree(folder, tree)

        def build(request: KernelRequest) -> None:
            resolve_kernel(request, host.store, progress)

        def bisect(
            entry: Combination, good: str, bad: str, evidence: Path, time: BisectingTime
        ) -> BisectOutcome:
            if bisect_minutes == 0:
                return BisectOutcome("", "", ("not bisected: --bisect-minutes is 0",))
            where = (str(followed.folder), good, bad)
            return _bisect(host, entry, where, Flakiness(runs), bisect_minutes, evidence, time)

        nights = Nightly(
            folder,
            history,
            followed,
            harness_version(),
            build,
            _job_runner(hosts, jobs, run_timeout, progress),
            bisect,
            progress.note,
        )
        result = nights.run(NightOptions(branch, matrix, fresh, total_minutes))
        results = history.results(result.night)
        text = _write_reports(nights.folder(result.night), result, results)
        nights.finish(result.night, keep)
    latest = folder / "nights" / "latest"
    report = latest / ("report.html" if results else "summary.txt")
    click.echo(f"{text}\nreport: {report}")
    sys.exit(_exit_code(result))


def _exit_code(result: NightResult) -> int:
    from harness.nightly.diff import Change

    changes = {row.change for row in result.rows}
    if Change.REGRESSION in changes:
        return Verdict.FAIL.exit_code
    judged = changes - {Change.NOT_JUDGED, Change.LEFT, Change.SKIPPED}
    return Verdict.PASS.exit_code if judged else Verdict.INCONCLUSIVE.exit_code


def _job_runner(
    hosts: Path | None, jobs: int | None, run_timeout: int, progress: TerminalProgress
) -> RunJob:
    """A function that runs matrix entries as an avocado job, on this host or on others."""

    def run_job(left: Sequence[Combination], results: Path, ended: Ended) -> None:
        from harness.matrix.lab import connected_pool
        from harness.matrix.watched_pool import WatchedPool

        make_folder(results, "--state")
        pool = WatchedPool(connected_pool(hosts, progress, jobs), ended)
        try:
            with avocado_job(left, pool, results, run_timeout) as job:
                progress.note(f"{len(left)} entries, {pool.size} concurrently, in {job.logdir}")
                job.run()
        finally:
            pool.close()
        pool.check()
        entries = {entry.name: entry for entry in left}
        for test in job.result.tests:
            # The pool reports no end for an entry that avocado interrupted.
            if test.get("fail_reason") == _TIMEOUT:
                reason = f"INCONCLUSIVE: not done after {run_timeout} s"
                ended(entries[test["name"].name], None, {"fail_reason": reason})

    return run_job


def _bisect(
    host: Host,
    one: Combination,
    where: tuple[str, str, str],
    flakiness: Flakiness,
    minutes: int,
    evidence: Path,
    time: BisectingTime,
) -> BisectOutcome:
    """Look for the first bad commit of a matrix entry, in a tree between two commits."""
    from harness.bisect.judge import commit_judge
    from harness.bisect.message import result_lines, step_lines
    from harness.bisect.range import RangeOptions, find_range
    from harness.bisect.run import Bisection
    from harness.core.deadline import Deadline
    from harness.nightly.diff import BisectOutcome
    from harness.runs.guest_run import Judging
    from harness.runs.prepare import this_host
    from harness.runs.session import default_jobs
    from harness.scenario.known_issues import KnownIssues
    from harness.scenario.scenario_files import load_case

    if one.qemu is not None or one.accel != host.accel:
        host = this_host(host.progress, one.accel, one.qemu)
    tree, good, bad = where
    case = load_case(one.scenario)
    ends = find_range(
        RangeOptions(tree, good, bad, replace(one.request, spec="build:")),
        host.store,
        host.progress,
    )
    judging = Judging(one.policy, evidence, KnownIssues(issues=()), one.timeout)
    left = time.left()
    option = "--bisect-minutes" if 60 * minutes <= left else "--bisect-total-minutes"
    deadline = Deadline(
        min(60 * minutes, round(left)),
        "the bisection",
        hint=f"start harness bisect by hand, or take a larger {option}",
    )

    class Steps(TerminalProgress):
        def begins(self, ends: Any, count: int) -> None:
            self.note(f"{count} commits from {ends.old.short} to {ends.new.short}")

        def step(self, step: Any, again: bool) -> None:
            time.keep()
            self.note(f"  {step_lines(step, again)[0]}")

    with commit_judge(host, judging, [case], flakiness, default_jobs()) as judge:
        bisection = Bisection(ends, judge, host.store, Steps(), deadline)
        found = bisection.run()
    bisection.forget()
    lines = result_lines(found, run_command=False)
    if found.first is None:
        return BisectOutcome("", "", lines)
    return BisectOutcome(found.first.name, found.first.subject, lines[1:])


def _write_reports(folder: Path, result: NightResult, results: list[Any]) -> str:
    """Write the report of a night in all formats, and return its summary."""
    from harness.nightly.report import night_json, night_lines

    text = "\n".join(night_lines(result)) + "\n"
    _write(folder / "results.json", json.dumps(results, indent=1) + "\n")
    _write(folder / "night.json", json.dumps(night_json(result), indent=1) + "\n")
    _write(folder / "summary.txt", text)
    if results:
        from harness.reports.html.page import html_report
        from harness.reports.junit import junit_report
        from harness.runs.result_files import load_runs

        night = result.night
        runs = load_runs([folder / "results.json"])
        title = f"{night.branch} at {night.commit[:12]}, night {night.number}"
        _write(folder / "report.html", html_report(runs, title, summary=text))
        _write(folder / "junit.xml", junit_report(runs))
    return text


def _write(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    try:
        write_atomic(path, text)
    except OSError as error:
        raise UsageError(
            f"the report cannot be written: {error.strerror}",
            where=str(path),
            hint="free some space and start the night again: the results are kept",
        ) from None
