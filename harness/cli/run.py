# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `harness run`, and how results are shown and written."""

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
    help="Load otherwise than the scenario says: all_orders, parallel, modalias, none, or a "
    "list of modules with commas between.",
)
@click.option(
    "--repeat",
    type=click.IntRange(1, 10_000),
    default=1,
    show_default=True,
    help="How many guests each load gets.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write results here.")
@explains_errors
def run(
    scenarios: tuple[str, ...],
    request: KernelRequest,
    guests: GuestOptions,
    load: str | None,
    repeat: int,
    json_file: Path | None,
) -> None:
    """Run scenarios, and say who owns each Soft Reserved range.

    SCENARIO is a name, a pattern such as 'no_cxl*', or a file.

    Exit code: 0 all PASS, 1 a FAIL, 2 wrong input, 3 INCONCLUSIVE, 4 UNBUILDABLE; of several, the
    first in the order 1, 4, 3. A scenario that is not about this kernel is skipped.
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
        click.echo(f"harness: {error}", err=True)  # and what was found before still counts
    if not results:
        sys.exit(USAGE)
    if len(results) > 1:
        click.echo(summary_line(results))
    sys.exit(_worst(results))


def check_writable(path: Path, option: str = "--json") -> None:
    """Refuse a file that results cannot go to, without touching it.

    Args:
        path: of the file.
        option: that names another one.

    Raises:
        UsageError: it cannot be written.
    """
    why = ""
    if path.is_dir():
        why = "it is a folder"
    elif path.exists():
        why = "" if os.access(path, os.W_OK) else "it may not be written"
    elif not path.parent.is_dir():
        why = "its folder does not exist"
    elif not os.access(path.parent, os.W_OK):
        why = "its folder may not be written"
    if why:
        raise UsageError(
            f"cannot be written: {why}", where=str(path), hint=f"name another file with {option}"
        )


def _write_results(path: Path, results: Sequence[RunResult]) -> None:
    write_file(path, json.dumps([result.as_json() for result in results], indent=2) + "\n")


def make_folder(path: Path, option: str) -> None:
    """Make a folder that results go to, unless it is there.

    Args:
        path: of the folder.
        option: that names another one.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the folder cannot be made: {error.strerror}",
            where=str(path),
            hint=f"name another one with {option}",
        ) from None


def write_file(path: Path, text: str, option: str = "--json") -> None:
    """Write results to a file that the user has named.

    Args:
        path: of the file.
        text: what it is to have.
        option: that names another one.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path.write_text(text)
    except OSError as error:
        raise UsageError(
            f"the results cannot be written: {error.strerror}",
            where=str(path),
            hint=f"free some space, or name another file with {option}; the evidence has them too",
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
    verdict, space, behind = first.partition(" ")
    click.echo(click.style(verdict, fg=_COLOURS[result.verdict], bold=True) + space + behind)
    for line in rest:
        click.echo(line)
