# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `harness run`, and writing results to a file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.options import (
    USAGE,
    GuestOptions,
    explains_errors,
    guest_options,
    json_option,
    kernel_options,
)
from harness.contract.result import Verdict
from harness.core.errors import UsageError

if TYPE_CHECKING:
    from harness.contract.result import RunResult
    from harness.scenario.kernel_request import KernelRequest


@click.command()
@click.argument("scenarios", nargs=-1, required=True, metavar="SCENARIO...")
@kernel_options
@guest_options
@click.option(
    "--load",
    metavar="HOW",
    help="Replace the scenario's guest.load: all_orders, parallel, modalias, none, or "
    "comma-separated modules.",
)
@click.option(
    "--repeat",
    type=click.IntRange(1, 10_000),
    default=1,
    show_default=True,
    help="Number of guests for each load.",
)
@json_option
@explains_errors
def run(
    scenarios: tuple[str, ...],
    request: KernelRequest,
    guests: GuestOptions,
    load: str | None,
    repeat: int,
    json_file: Path | None,
) -> None:
    """Run scenarios and judge who owns each Soft Reserved range.

    SCENARIO is a name, a pattern such as 'no_cxl*', or a YAML file. A scenario that does not apply
    to the kernel is skipped.

    Exit code: 0 all PASS, 1 a FAIL, 2 wrong input, 3 INCONCLUSIVE, 4 UNBUILDABLE. With several
    verdicts, FAIL wins over UNBUILDABLE, and UNBUILDABLE over INCONCLUSIVE.
    """
    from harness.reports.terminal import summary_line
    from harness.runs.minimize import requested_load
    from harness.runs.session import Skipped
    from harness.scenario.scenario_files import load_cases

    cases = load_cases(scenarios)
    if load is not None:
        cases = tuple(requested_load(case, load) for case in cases)
    if json_file is not None:
        check_writable(json_file)
    host = guests.host()
    results: list[RunResult] = []
    try:
        with guests.session(host, request, repeat=repeat) as session:
            for result in session.run_all(cases, request):
                if isinstance(result, Skipped):
                    if len(cases) == 1:
                        raise result.error
                    click.echo(f"SKIP {result.case.name}: {result.error}")
                    continue
                results.append(result)
                _print_result(result)
                if json_file is not None:
                    _write_results(json_file, results)
    except UsageError as error:
        if not any(result.verdict is Verdict.FAIL for result in results):
            raise
        click.echo(f"harness: {error}", err=True)  # the FAIL still decides the exit code
    if not results:
        sys.exit(USAGE)
    if len(results) > 1:
        click.echo(summary_line(results))
    sys.exit(_worst(results))


def check_writable(path: Path, option: str = "--json") -> None:
    """Check that results can be written to a file, without changing it.

    Args:
        option: the option with which the user chose the file.

    Raises:
        UsageError: the file cannot be written.
    """
    why = ""
    if path.is_dir():
        why = "it is a folder"
    elif path.exists():
        why = "" if os.access(path, os.W_OK) else "no write permission"
    elif not path.parent.is_dir():
        why = "its folder does not exist"
    elif not os.access(path.parent, os.W_OK):
        why = "no write permission for its folder"
    if why:
        raise UsageError(
            f"cannot be written: {why}", where=str(path), hint=f"choose another file with {option}"
        )


def _write_results(path: Path, results: Sequence[RunResult]) -> None:
    write_file(path, json.dumps([result.as_json() for result in results], indent=2) + "\n")


def make_folder(path: Path, option: str) -> None:
    """Make a folder for results unless it exists.

    Args:
        option: the option with which the user chose the folder.

    Raises:
        UsageError: the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the folder cannot be made: {error.strerror}",
            where=str(path),
            hint=f"choose another one with {option}",
        ) from None


def write_file(path: Path, text: str, option: str = "--json") -> None:
    """Write results to a file.

    Args:
        option: the option with which the user chose the file.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        path.write_text(text)
    except OSError as error:
        raise UsageError(
            f"the results cannot be written: {error.strerror}",
            where=str(path),
            hint=f"free some space, or choose another file with {option}; the results are also "
            "in the evidence",
        ) from None


def _worst(results: Sequence[RunResult]) -> int:
    for verdict in (Verdict.FAIL, Verdict.UNBUILDABLE, Verdict.INCONCLUSIVE):
        if any(result.verdict is verdict for result in results):
            return verdict.exit_code
    return 0


_COLOURS = {
    Verdict.PASS: "green",
    Verdict.FAIL: "red",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.UNBUILDABLE: "yellow",
}


def _print_result(result: RunResult) -> None:
    from harness.reports.terminal import result_lines

    first, *rest = result_lines(result)
    verdict, space, rest_of_line = first.partition(" ")
    coloured = click.style(verdict, fg=_COLOURS[result.verdict], bold=True)
    click.echo(coloured + space + rest_of_line)
    for line in rest:
        click.echo(line)
