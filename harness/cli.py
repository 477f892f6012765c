# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: `harness boot`, `list` and `doctor`, and the commands of the other modules."""

from __future__ import annotations

import logging
import sys
from typing import Any

import click

from harness.cli_bisect import bisect, bisect_step
from harness.cli_compare import compare
from harness.cli_fuzz import fuzz
from harness.cli_kernels import register_kernel_commands
from harness.cli_matrix import matrix, matrix_worker
from harness.cli_options import USAGE, accel_options, explains_errors, kernel_options
from harness.cli_report import bundle, replay, report
from harness.cli_run import run
from harness.model.kernel_request import KernelRequest


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="cxl-ownership-harness")
@click.option("-v", "--verbose", is_flag=True, help="Show every program that is started.")
def main(verbose: bool) -> None:
    """Boot real kernels on CXL machines in QEMU and judge who owns each Soft Reserved range."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING, format="%(name)s: %(message)s"
    )
    for noisy in ("paramiko", "asyncio", "qemu"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)


@main.command()
@click.argument("name", metavar="PROFILE|SCENARIO")
@kernel_options
@accel_options
@click.option(
    "--print", "only_print", is_flag=True, help="Print the machine's command line and stop."
)
@explains_errors
def boot(name: str, request: KernelRequest, accel: Any, qemu: str | None, only_print: bool) -> None:
    """Boot the machine of a profile or scenario and give its console to you.

    For a scenario, the firmware state is what the scenario asks for. Leave with Ctrl-A x, or
    by powering the guest off.
    """
    from harness.progress import TerminalProgress
    from harness.runs.interactive import boot_interactive, printed_command_line
    from harness.runs.prepare import this_host

    host = this_host(TerminalProgress(), accel, qemu)
    if only_print:
        click.echo(printed_command_line(host, name, request))
    else:
        sys.exit(boot_interactive(host, name, request))


@main.command(name="list")
@explains_errors
def list_command() -> None:
    """List the scenarios and profiles."""
    from harness.runs.catalogue import (
        load_case,
        load_known_issues,
        load_profile,
        profile_names,
        scenario_names,
    )

    known = {name for issue in load_known_issues().issues for name in issue.scenarios}
    scenarios = scenario_names()
    profiles = profile_names()
    width = max(map(len, (*scenarios, *profiles)))
    click.echo("scenarios:")
    for name in scenarios:
        summary = load_case(name).scenario.summary.split("\n\n")[0]
        mark = " [known issue]" if name in known else ""
        click.echo(f"  {name.ljust(width)}  {' '.join(summary.split())}{mark}")
    click.echo("profiles:")
    for name in profiles:
        click.echo(f"  {name.ljust(width)}  {load_profile(name).summary}")


@main.command()
@explains_errors
def doctor() -> None:
    """Say what this machine lacks, and how to get it."""
    from harness.doctor import diagnose

    checks = diagnose()
    width = max(len(check.name) for check in checks)
    for check in checks:
        click.echo(f"{check.state:8} {check.name.ljust(width)}  {check.found}")
        if check.state != "ok" and check.hint:
            click.echo(f"{'':8} {'':{width}}  hint: {check.hint}")
    if any(check.state == "missing" for check in checks):
        sys.exit(USAGE)


for command in (
    *(run, compare, fuzz, report, bundle, replay),
    *(bisect, bisect_step, matrix, matrix_worker),
):
    main.add_command(command)
register_kernel_commands(main, explains_errors)
