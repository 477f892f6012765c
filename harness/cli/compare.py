# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `harness compare`: compare two kernels."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.options import GuestOptions, explains_errors, guest_options, json_option
from harness.cli.run import check_writable, write_file
from harness.contract.result import Verdict
from harness.core.errors import UsageError
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario import POLICIES

if TYPE_CHECKING:
    from harness.contract.result import RunResult


@click.command()
@click.argument("scenarios", nargs=-1, metavar="[SCENARIO...]")
@click.option(
    "--kernel",
    "specs",
    multiple=True,
    required=True,
    metavar="SPEC",
    help="Give it twice: the older kernel, then the newer one.",
)
@guest_options
@json_option
@explains_errors
def compare(
    scenarios: tuple[str, ...],
    specs: tuple[str, ...],
    guests: GuestOptions,
    json_file: Path | None,
) -> None:
    """Run scenarios on two kernels and print the differences.

    Without SCENARIO, all scenarios are run. In the table, - is a regression, + a fix, ~ a different
    failure, ? a scenario that was not judged on both kernels.

    Exit code: 0 no regression, 1 a regression, 2 wrong input, 3 a run was not judged.
    """
    from harness.reports.comparison import Change, comparison_lines
    from harness.reports.comparison import compare as compare_results
    from harness.runs.session import Skipped
    from harness.scenario.scenario_files import load_cases

    if len(specs) != 2:
        raise UsageError(
            f"--kernel is given {len(specs)} times",
            hint="give it twice: harness compare --kernel debian:6.18 --kernel debian:7.2",
        )
    cases = load_cases(scenarios or ("*",))
    if json_file is not None:
        check_writable(json_file)
    host = guests.host()
    sides: list[dict[str, RunResult | str]] = []
    requests = [KernelRequest(spec) for spec in specs]
    with guests.session(host, requests[0]) as session:
        for spec, request in zip(specs, requests, strict=True):
            results: dict[str, RunResult | str] = {}
            for case, result in zip(cases, session.run_all(cases, request), strict=True):
                if isinstance(result, Skipped):
                    results[case.name] = str(result.error)
                    click.echo(f"SKIP {case.name} on {spec}", err=True)
                else:
                    results[case.name] = result
                    click.echo(f"{result.verdict.name} {case.name} on {spec}", err=True)
            sides.append(results)
    rows = compare_results(*sides)
    for line in comparison_lines(rows, (specs[0], specs[1])):
        click.echo(line)
    if json_file is not None:
        table = {
            "kernels": list(specs),
            "policy": guests.policy or POLICIES[0],
            "rows": [r.as_json() for r in rows],
        }
        write_file(json_file, json.dumps(table, indent=2) + "\n")
    if any(row.change is Change.REGRESSION for row in rows):
        sys.exit(Verdict.FAIL.exit_code)
    judged = (Verdict.PASS, Verdict.FAIL, None)
    if any(side.verdict not in judged for row in rows for side in (row.first, row.second)):
        sys.exit(Verdict.INCONCLUSIVE.exit_code)
