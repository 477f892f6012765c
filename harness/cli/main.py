# SPDX-License-Identifier: GPL-2.0-or-later
"""The `harness` command, with its subcommands `boot`, `list` and `doctor`."""

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


class _OrderedGroup(click.Group):
    """Lists commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_OrderedGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="cxl-ownership-harness")
@click.option("-v", "--verbose", is_flag=True, help="Print every program that is started.")
def main(verbose: bool) -> None:
    """Boot kernels on QEMU machines with CXL and judge who owns each Soft Reserved range."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING, format="%(name)s: %(message)s"
    )
    for noisy in ("paramiko", "asyncio", "qemu"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)


@click.command()
@click.argument("name", metavar="PROFILE|SCENARIO")
@kernel_options
@accel_options
@click.option("--print", "only_print", is_flag=True, help="Print QEMU's command line and exit.")
@explains_errors
def boot(name: str, request: KernelRequest, accel: Any, qemu: str | None, only_print: bool) -> None:
    """Boot a profile or scenario with its console on this terminal.

    For a scenario, its firmware state is set up first. Ctrl-A x quits, as does powering off the
    guest.
    """
    from harness.core.progress import TerminalProgress
    from harness.runs.interactive import boot_interactive, printed_command_line
    from harness.runs.prepare import this_host

    host = this_host(TerminalProgress(), accel, qemu)
    if only_print:
        click.echo(printed_command_line(host, name, request))
    else:
        sys.exit(boot_interactive(host, name, request))


@click.command(name="list")
@click.option(
    "--kernel",
    metavar="SPEC|VERSION",
    help="Mark the scenarios that are known to fail on this kernel.",
)
@click.option("--policy", type=click.Choice(POLICIES), default=POLICIES[0], show_default=True)
@explains_errors
def list_command(kernel: str | None, policy: Policy) -> None:
    """List scenarios and profiles."""
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
    """Return the known issues of each scenario that they affect on a kernel, as text."""
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
            verb = "fails" if any(not issue.sometimes for issue in issues) else "may fail"
            marks[name] = f"{verb}: {', '.join(issue.name for issue in issues)}"
    return marks


@click.command()
@explains_errors
def doctor() -> None:
    """Check this machine, and print how to install what is missing."""
    from harness.cli.doctor import diagnose

    checks = diagnose()
    width = max(len(check.name) for check in checks)
    for check in checks:
        click.echo(f"{check.state:8} {check.name.ljust(width)}  {check.found}")
        if check.state != "ok" and check.hint:
            click.echo(f"{'':8} {'':{width}}  hint: {check.hint}")
    if any(check.state == "missing" for check in checks):
        sys.exit(USAGE)


def _register_commands() -> None:
    """Add the commands in the order in which a user needs them."""
    for command in (doctor, list_command, run, boot, compare):
        main.add_command(command)
    register_kernel_commands(main, explains_errors)
    for command in (
        bisect,
        bisect_step,
        report,
        bundle,
        judge,
        replay,
        matrix,
        fuzz,
        matrix_worker,
    ):
        main.add_command(command)


_register_commands()
