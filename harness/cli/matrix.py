# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `harness matrix`, and the hidden `harness matrix-worker`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.options import explains_errors, json_option
from harness.cli.run import check_writable, make_folder, write_file
from harness.contract.result import Verdict
from harness.core.paths import PROJECT, evidence_root

if TYPE_CHECKING:
    from harness.matrix.plan import Combination, Plan
    from harness.matrix.worker_pool import Pool, WorkerPool

_USUAL = PROJECT / "ci" / "matrix.yaml"


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[MATRIX.yaml]")
@click.option("--shard", metavar="I/N", help="Run part I of N, to split a matrix over CI jobs.")
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1, 256),
    show_default="limit of cores and memory",
    help="Number of concurrent guests on this machine.",
)
@click.option(
    "--hosts",
    type=click.Path(path_type=Path),
    metavar="HOSTS.yaml",
    help="Run on the hosts of this file, over SSH.",
)
@click.option(
    "--run-timeout",
    type=click.IntRange(1, 7 * 24 * 3600),
    metavar="SECONDS",
    help="Time limit of one entry, including the build of its kernel.",
)
@json_option
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    show_default="jobs, next to the evidence folder",
    help="Parent folder of the job's results.",
)
@click.option("--list", "only_list", is_flag=True, help="Print the entries and exit.")
@explains_errors
def matrix(
    file: Path | None,
    shard: str | None,
    jobs: int | None,
    hosts: Path | None,
    run_timeout: int | None,
    json_file: Path | None,
    results: Path | None,
    only_list: bool,
) -> None:
    """Run a matrix file as one avocado job. The default is ci/matrix.yaml.

    Exit code as for harness run, except that known issues do not count.
    """
    from harness.matrix.matrix_file import load_matrix, parse_shard

    part = parse_shard(shard) if shard is not None else None
    if json_file is not None:
        check_writable(json_file)
    plan = load_matrix(file or _USUAL)
    chosen = part.of(plan.chosen) if part else plan.chosen
    if only_list:
        for entry in chosen:
            click.echo(entry.name)
    _print_dropped(plan)
    if only_list:
        return
    if not chosen:
        click.echo(f"shard {shard} of {len(plan.chosen)} entries is empty")
        return
    from harness.core.progress import TerminalProgress
    from harness.matrix.lab import connected_pool

    jobs_folder = results or evidence_root().parent / "jobs"
    make_folder(jobs_folder, "--results")
    pool = connected_pool(hosts, TerminalProgress(), jobs)
    try:
        sys.exit(_run_job(chosen, pool, jobs_folder, run_timeout, json_file))
    finally:
        pool.close()


@click.command(name="matrix-worker", hidden=True)
@explains_errors
def matrix_worker() -> None:
    """Run entries that `harness matrix` sends to standard input."""
    from harness.matrix.worker import serve_standard_input
    from harness.reports.terminal import result_lines

    serve_standard_input(result_lines)


def _print_dropped(plan: Plan) -> None:
    reasons: dict[str, list[str]] = {}
    for dropped in plan.dropped:
        reasons.setdefault(dropped.reason, []).append(dropped.combination.name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        click.echo(f"left out: {names[0]}{more}: {reason}", err=True)


def _run_job(
    chosen: tuple[Combination, ...],
    pool: WorkerPool,
    results: Path,
    run_timeout: int | None,
    json_file: Path | None,
) -> int:
    """Run an avocado job and return the exit code."""
    job = avocado_job(chosen, pool, results, run_timeout)
    with job:
        click.echo(f"{len(chosen)} entries, {pool.size} concurrent; results in {job.logdir}")
        job.run()
    tests = job.result.tests
    runs = [json.loads(test["whiteboard"]) for test in tests if test.get("whiteboard")]
    text = json.dumps(runs, indent=2) + "\n"
    write_file(Path(job.logdir, "matrix.json"), text)
    if json_file is not None:
        write_file(json_file, text)
    for test in tests:
        if test["status"] not in ("PASS", "WARN"):
            click.echo(f"{test['status']} {test['name'].name}: {test.get('fail_reason', '')}")
    counts: dict[str, int] = {}
    for test in tests:
        counts[test["status"]] = counts.get(test["status"], 0) + 1
    missing = len(chosen) - len(tests)
    if missing:
        counts["NOT RUN"] = missing
    click.echo(", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    return exit_code(tests, missing)


def exit_code(tests: list[dict[str, Any]], missing: int) -> int:
    """Return the exit code of a job: as for `harness run`, except that known issues do not count.

    Args:
        tests: avocado's tests, with `status` and `fail_class`.
        missing: the number of entries that did not finish.
    """
    if any(test["status"] == "FAIL" for test in tests):
        return Verdict.FAIL.exit_code
    if any(test.get("fail_class") == Verdict.UNBUILDABLE.name for test in tests):
        return Verdict.UNBUILDABLE.exit_code
    if missing or any(test["status"] not in ("PASS", "WARN", "SKIP") for test in tests):
        return Verdict.INCONCLUSIVE.exit_code
    return Verdict.PASS.exit_code


def avocado_job(
    chosen: Sequence[Combination], pool: Pool, results: Path, run_timeout: int | None
) -> Any:
    """Make an avocado job.

    Args:
        results: parent folder of the job's results.
        run_timeout: seconds for one entry, or None.
    """
    from avocado.core.job import Job
    from avocado.core.suite import TestSuite

    from harness.plugins.avocado_plugin import KIND, runnable_of

    config: dict[str, Any] = {
        "core.show": ["app"],
        "run.results_dir": str(results),
        "run.spawner": KIND,
        "run.max_parallel_tasks": pool.size,
        "sysinfo.collect.enabled": False,
    }
    if run_timeout is not None:
        config["task.timeout.running"] = run_timeout
    tests = [runnable_of(one) for one in chosen]
    job = Job(config, [TestSuite("", config, tests=tests, job_config=config)])
    job.ownership_pool = pool
    for handler in logging.getLogger().handlers:
        # Avocado logs through the same root logger, and prints its own messages.
        handler.addFilter(lambda record: not record.name.startswith("avocado"))
    return job
