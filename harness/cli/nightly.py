# SPDX-License-Identifier: GPL-2.0-or-later
"""The command of `ci/nightly`: a night of a branch, from the fetch to the report."""

from __future__ import annotations

import json
import os
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
from harness.core.paths import PROJECT, evidence_root
from harness.core.progress import TerminalProgress
from harness.scenario.kernel_request import KernelRequest

if TYPE_CHECKING:
    from harness.bisect.judge import Flakiness
    from harness.matrix.plan import Combination
    from harness.matrix.watched_pool import Ended
    from harness.nightly.bisect import BisectingTime
    from harness.nightly.diff import Bisecting
    from harness.nightly.night import NightResult, RunJob
    from harness.runs.prepare import Host

_USUAL = PROJECT / "ci" / "nightly.yaml"
_TIMEOUT = "Test interrupted: Timeout reached"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--tree", required=True, metavar="URL|PATH", help="The git repository of Linux.")
@click.option("--branch", default="cxl/next", show_default=True, help="Its branch.")
@click.option(
    "--matrix",
    type=click.Path(path_type=Path),
    default=_USUAL,
    metavar="FILE",
    help="What is run, ci/nightly.yaml without it; its kernel `branch` is the branch.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the history and the reports; beside the evidence of runs without it.",
)
@click.option("-j", "--jobs", type=click.IntRange(1, 256), help="Guests at once on this machine.")
@click.option("--hosts", type=click.Path(path_type=Path), metavar="HOSTS.yaml", help="Run there.")
@click.option(
    "--run-timeout",
    type=click.IntRange(1, 24 * 3600),
    default=3600,
    show_default=True,
    metavar="SECONDS",
    help="How long one combination may take.",
)
@click.option(
    "--bisect-minutes",
    type=click.IntRange(0, 24 * 60),
    default=60,
    show_default=True,
    help="How long looking for the commit of one regression may take; 0 for not at all.",
)
@click.option(
    "--bisect-total-minutes",
    "total_minutes",
    type=click.IntRange(1, 7 * 24 * 60),
    default=240,
    show_default=True,
    help="How long this may take for all regressions of a night together.",
)
@click.option(
    "--runs",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    metavar="N",
    help="How many runs each commit gets when bisecting.",
)
@click.option(
    "--keep",
    type=click.IntRange(1, 10_000),
    default=30,
    show_default=True,
    metavar="NIGHTS",
    help="How many nights keep evidence, report and whole results; verdicts and owners stay.",
)
@click.option("--fresh", is_flag=True, help="Give up a night that was not finished.")
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
    """Run the matrix on what a branch has now, and compare with the nights before.

    Killed and started again, it goes on where it was. Reports are in STATE/nights/latest:
    summary.txt, report.html, results.json, junit.xml, night.json.

    Exit code: 0 no regression, 1 a regression, 2 wrong input, 3 nothing could be judged, the branch
    could not be fetched, or the night was cut short.
    """
    from harness.bisect.judge import Flakiness
    from harness.core.cache import Store
    from harness.core.version import harness_version
    from harness.matrix.lab import load_hosts
    from harness.nightly.diff import Bisecting, Change
    from harness.nightly.history import open_history
    from harness.nightly.night import Asked, Nightly
    from harness.nightly.repo import night_tree
    from harness.runs.prepare import this_host

    folder = (state or evidence_root().parent / "nightly").absolute()
    make_folder(folder, "--state")
    if hosts is not None:
        load_hosts(hosts)  # what is wrong with it is said before anything is fetched or built
    progress = TerminalProgress()
    host = this_host(progress, "auto")
    with (
        Store(folder).lock("nightly", what=f"running a night in {folder}", wait=False),
        open_history(folder, progress.note) as history,
    ):
        followed = night_tree(folder, tree)

        def build(request: KernelRequest) -> None:
            from harness.kernels.resolve import resolve_kernel

            resolve_kernel(request, host.store, progress)

        def bisect(
            one: Combination, good: str, bad: str, evidence: Path, time: BisectingTime
        ) -> Bisecting:
            if bisect_minutes == 0:
                return Bisecting("", "", ("not bisected, as asked",))
            where = (str(followed.folder), good, bad)
            return _bisect(host, one, where, Flakiness(runs), bisect_minutes, evidence, time)

        made = Nightly(
            folder,
            history,
            followed,
            harness_version(),
            build,
            _job_runner(hosts, jobs, run_timeout, progress),
            bisect,
            progress,
        )
        result = made.run(Asked(branch, matrix, fresh, total_minutes))
        text = _write_reports(made.folder(result.night), result, history.results(result.night))
        made.finish(result.night, keep)
    click.echo(text, nl=False)
    latest = folder / "nights" / "latest"
    page = latest / "report.html"  # without any result there is none
    click.echo(f"\nreport: {page if page.exists() else latest / 'summary.txt'}")
    changes = {row.change for row in result.rows}
    if Change.REGRESSION in changes:
        sys.exit(Verdict.FAIL.exit_code)
    if changes <= {Change.UNTOLD, Change.LEFT, Change.SKIPPED}:
        sys.exit(Verdict.INCONCLUSIVE.exit_code)


def _job_runner(
    hosts: Path | None, jobs: int | None, run_timeout: int, progress: TerminalProgress
) -> RunJob:
    """Runs combinations as an avocado job, on this machine or on hosts."""

    def run_job(left: Sequence[Combination], results: Path, ended: Ended) -> None:
        from harness.matrix.lab import connected_pool
        from harness.matrix.watched_pool import WatchedPool

        make_folder(results, "--state")
        pool = WatchedPool(connected_pool(hosts, progress, jobs), ended)
        try:
            with avocado_job(left, pool, results, run_timeout) as job:
                progress.note(f"{len(left)} combinations, {pool.size} at once, in {job.logdir}")
                job.run()
        finally:
            pool.close()
        pool.check()
        by_name = {one.name: one for one in left}
        for test in job.result.tests:
            # Whoever is out of time is not heard of: avocado ends it.
            if test.get("fail_reason") == _TIMEOUT:
                reason = f"INCONCLUSIVE: not done after {run_timeout} s"
                ended(by_name[test["name"].name], None, {"fail_reason": reason})

    return run_job


def _bisect(
    host: Host,
    one: Combination,
    where: tuple[str, str, str],
    flakiness: Flakiness,
    minutes: int,
    evidence: Path,
    time: BisectingTime,
) -> Bisecting:
    """Look for the first bad commit of a combination, in a tree between two commits."""
    from harness.bisect.judge import commit_judge
    from harness.bisect.message import result_lines, step_lines
    from harness.bisect.range import RangeOptions, find_range
    from harness.bisect.run import Bisection
    from harness.core.deadline import Deadline
    from harness.nightly.diff import Bisecting
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
        return Bisecting("", "", lines)
    return Bisecting(found.first.name, found.first.subject, lines[1:])


def _write_reports(folder: Path, result: NightResult, results: list[Any]) -> str:
    """Write all forms of a night's report; the text of its summary."""
    from harness.nightly.report import night_json, night_lines

    text = "\n".join(night_lines(result)) + "\n"
    files = {
        "results.json": json.dumps(results, indent=1) + "\n",
        "night.json": json.dumps(night_json(result), indent=1) + "\n",
        "summary.txt": text,
    }
    for name, content in files.items():
        _write(folder / name, content)
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
    partial = path.with_name(f"{path.name}.part")
    try:
        partial.write_text(text)
        os.replace(partial, path)
    except OSError as error:
        raise UsageError(
            f"the report cannot be written: {error.strerror}",
            where=str(path),
            hint="free some space and start it again: the results are kept",
        ) from None
