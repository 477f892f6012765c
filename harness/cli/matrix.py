# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands `harness matrix` and `harness matrix-worker`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.options import explains_errors
from harness.cli.run import check_writable, make_folder, write_file
from harness.contract.result import Verdict
from harness.core.paths import PROJECT, evidence_root

if TYPE_CHECKING:
    from harness.matrix.plan import Combination, Plan
    from harness.matrix.worker_pool import Pool, WorkerPool

_USUAL = PROJECT / "ci" / "matrix.yaml"


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[MATRIX.yaml]")
@click.option("--shard", metavar="I/N", help="Run only part I of N: for CI that splits by itself.")
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1, 256),
    help="Guests that run at once on this machine; as its cores and memory allow when left out.",
)
@click.option(
    "--hosts",
    type=click.Path(path_type=Path),
    metavar="HOSTS.yaml",
    help="Run on these hosts, over SSH.",
)
@click.option(
    "--run-timeout",
    type=click.IntRange(1, 7 * 24 * 3600),
    metavar="SECONDS",
    help="How long one combination may take, its kernel's build included.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write results here.")
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder in which the job makes its own; default beside the evidence of runs.",
)
@click.option("--list", "only_list", is_flag=True, help="Print the combinations and stop.")
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
    """Run all combinations of a matrix file as one avocado job; ci/matrix.yaml without a name.

    Exit code as of harness run, but a failure that is known is none.
    """
    from harness.matrix.matrix_file import load_matrix, parse_shard

    part = parse_shard(shard) if shard is not None else None
    if json_file is not None:
        check_writable(json_file)
    plan = load_matrix(file or _USUAL)
    chosen = part.of(plan.chosen) if part else plan.chosen
    if only_list:
        for one in chosen:
            click.echo(one.name)
    _print_dropped(plan)
    if only_list:
        return
    if not chosen:
        click.echo(f"shard {shard} of {len(plan.chosen)} combinations is empty")
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
    """Run combinations that come on standard input: the far end of `harness matrix`."""
    from harness.matrix.worker import serve_standard_input
    from harness.reports.terminal import result_lines

    serve_standard_input(result_lines)


def _print_dropped(plan: Plan) -> None:
    reasons: dict[str, list[str]] = {}
    for one in plan.dropped:
        reasons.setdefault(one.reason, []).append(one.combination.name)
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
    """Run an avocado job; the exit code."""
    job = avocado_job(chosen, pool, results, run_timeout)
    with job:
        click.echo(f"{len(chosen)} combinations, {pool.size} at once; results in {job.logdir}")
        job.run()
    tests = job.result.tests
    said = [json.loads(one["whiteboard"]) for one in tests if one.get("whiteboard")]
    text = json.dumps(said, indent=2) + "\n"
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
    """The exit code of a job: as of `harness run`, but a failure that is known is none.

    Args:
        tests: as avocado has them, with `status` and `fail_class`.
        missing: how many were never run to an end.
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
    """An avocado job that is to be entered and run.

    Args:
        chosen: what it runs.
        pool: on what.
        results: folder in which it makes its own.
        run_timeout: seconds for one combination, or None.
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
        # Avocado logs all it does through the same root, and shows what is for people itself.
        handler.addFilter(lambda record: not record.name.startswith("avocado"))
    return job
