# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: `harness boot`, `list` and `doctor`, and the commands of the other modules."""

from __future__ import annotations

import logging
import sys
from typing import Any

import click

from harness.cli.bisect import bisect, bisect_step
from harness.cli.bundle import bundle, judge, replay
from harness.cli.compare import compare
from harness.cli.fuzz import fuzz
from harness.cli.kernels import register_kernel_commands
from harness.cli.matrix import matrix, matrix_worker
from harness.cli.options import USAGE, accel_options, explains_errors, kernel_options
from harness.cli.report import report
from harness.cli.run import run
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario import POLICIES, Policy


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
    from harness.core.progress import TerminalProgress
    from harness.runs.interactive import boot_interactive, printed_command_line
    from harness.runs.prepare import this_host

    host = this_host(TerminalProgress(), accel, qemu)
    if only_print:
        click.echo(printed_command_line(host, name, request))
    else:
        sys.exit(boot_interactive(host, name, request))


@main.command(name="list")
@click.option("--kernel", "kernel", help="Mark what is known to fail on this kernel or version.")
@click.option("--policy", type=click.Choice(POLICIES), default=POLICIES[0], show_default=True)
@explains_errors
def list_command(kernel: str | None, policy: Policy) -> None:
    """List the scenarios and profiles."""
    from harness.scenario.scenario_files import (
        load_case,
        load_profile,
        profile_names,
        scenario_names,
    )

    marks = _known_failures(kernel, policy) if kernel else {}
    scenarios = scenario_names()
    profiles = profile_names()
    width = max(map(len, (*scenarios, *profiles)))
    click.echo("scenarios:")
    for name in scenarios:
        summary = load_case(name).scenario.summary.split("\n\n")[0]
        mark = f" [{marks[name]}]" if name in marks else ""
        click.echo(f"  {name.ljust(width)}  {' '.join(summary.split())}{mark}")
    click.echo("profiles:")
    for name in profiles:
        click.echo(f"  {name.ljust(width)}  {load_profile(name).summary}")


def _known_failures(kernel: str, policy: Policy) -> dict[str, str]:
    """The scenarios that are known to fail on a kernel, each with the issues that it meets."""
    from harness.core.progress import TerminalProgress
    from harness.machine.address_probe import machine_layout
    from harness.runs.prepare import this_host
    from harness.scenario.known_issues import known_failures, version_of
    from harness.scenario.scenario_files import load_case, scenario_names

    release = version_of(kernel)
    host = this_host(TerminalProgress(), "auto")
    marks = {}
    for name in scenario_names():
        case = load_case(name)
        layout = machine_layout(host.qemu, case.profile, host.remember("layouts"))
        issues = known_failures(case, layout, release, policy)
        if issues:
            sure = "fails" if any(not one.sometimes for one in issues) else "may fail"
            marks[name] = f"{sure}: {', '.join(one.name for one in issues)}"
    return marks


@main.command()
@explains_errors
def doctor() -> None:
    """Say what this machine lacks, and how to get it."""
    from harness.cli.doctor import diagnose

    checks = diagnose()
    width = max(len(check.name) for check in checks)
    for check in checks:
        click.echo(f"{check.state:8} {check.name.ljust(width)}  {check.found}")
        if check.state != "ok" and check.hint:
            click.echo(f"{'':8} {'':{width}}  hint: {check.hint}")
    if any(check.state == "missing" for check in checks):
        sys.exit(USAGE)


for command in (
    *(run, compare, fuzz, report, bundle, judge, replay),
    *(bisect, bisect_step, matrix, matrix_worker),
):
    main.add_command(command)
register_kernel_commands(main, explains_errors)
