# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: `harness run`, `boot`, `list` and `doctor`."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from harness.cli_kernels import register_kernel_commands
from harness.errors import HarnessError, InconclusiveError, UnbuildableError
from harness.model.scenario import POLICIES
from harness.model.verdict import Verdict
from harness.paths import evidence_root

if TYPE_CHECKING:
    from harness.model.kernel_request import KernelRequest
    from harness.model.scenario import Policy
    from harness.model.verdict import RunResult

USAGE = 2
_DEFAULT_KERNEL = "debian:7.2"

Command = TypeVar("Command", bound=Callable[..., Any])


def _explains_errors(command: Command) -> Command:
    """Turn errors into one message and the exit code that belongs to them."""

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        signal.signal(signal.SIGTERM, _terminated)
        try:
            return command(*args, **kwargs)
        except HarnessError as error:
            click.echo(f"harness: {error}", err=True)
            sys.exit(_exit_code(error))
        except (click.ClickException, click.exceptions.Exit):
            raise
        except BrokenPipeError:
            # Who read the output has gone; nothing more can be said there, not even at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        except OSError as error:
            # Never status 1, which says that a kernel broke the contract.
            click.echo(
                f"harness: {error}\n  hint: is the disk full, or a file of the harness locked?",
                err=True,
            )
            sys.exit(Verdict.INCONCLUSIVE.value)
        except Exception:
            click.echo(traceback.format_exc(), err=True)
            click.echo(
                "harness: this is a defect of the harness; nothing was judged\n"
                "  hint: report the lines above, with the evidence of the run",
                err=True,
            )
            sys.exit(Verdict.INCONCLUSIVE.value)
        except KeyboardInterrupt:
            click.echo("harness: interrupted", err=True)
            sys.exit(128 + signal.SIGINT)

    return guarded  # type: ignore[return-value]


def _terminated(_signal: int, _frame: object) -> None:
    # An exception, so that every `with` on the way out does its part.
    sys.exit(128 + signal.SIGTERM)


def _exit_code(error: HarnessError) -> int:
    if isinstance(error, UnbuildableError):
        return Verdict.UNBUILDABLE.value
    if isinstance(error, InconclusiveError):
        return Verdict.INCONCLUSIVE.value
    return USAGE


_kernel_option = click.option(
    "--kernel",
    "spec",
    default=_DEFAULT_KERNEL,
    show_default=True,
    metavar="SPEC",
    help="debian:VERSION, image:PATH, build:PATH[@REF] or build:debian:VERSION.",
)
_config_option = click.option(
    "--config",
    "configs",
    metavar="NAME,...",
    default="",
    help="For build: fragments of kernel_configs/ on top of the base.",
)
_series_option = click.option(
    "--series",
    type=click.Path(path_type=Path),
    metavar="DIR|MBOX",
    help="For build: patches to apply.",
)
_llvm_option = click.option("--llvm", is_flag=True, help="For build: clang instead of gcc.")


def _request(spec: str, configs: str, series: Path | None, llvm: bool) -> KernelRequest:
    from harness.model.kernel_request import KernelRequest

    names = tuple(name.strip() for name in configs.split(",") if name.strip())
    return KernelRequest(spec, names, series, None, "clang" if llvm else "gcc")


_accel_option = click.option(
    "--accel",
    type=click.Choice(["auto", "kvm", "tcg"]),
    default="auto",
    show_default=True,
    help="What runs the guest; auto takes KVM where it boots a kernel.",
)
_qemu_option = click.option(
    "--qemu", metavar="PATH", help="The QEMU to use, instead of HARNESS_QEMU or the one on PATH."
)


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
@click.argument("scenarios", nargs=-1, required=True, metavar="SCENARIO...")
@_kernel_option
@_config_option
@_series_option
@_llvm_option
@click.option(
    "--policy",
    type=click.Choice(POLICIES),
    help="Whose rules are judged: per_range (mainline since 7.1) or all_or_nothing; without it, "
    "the policy that the series names, else per_range.",
)
@_accel_option
@_qemu_option
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write results here.")
@click.option(
    "--evidence",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder in which each run makes its own; default in the user's state folder.",
)
@click.option(
    "--timeout",
    type=click.IntRange(1, 24 * 3600),
    default=120,
    show_default=True,
    help="Seconds that a guest may take to become ready.",
)
@_explains_errors
def run(
    scenarios: tuple[str, ...],
    spec: str,
    configs: str,
    series: Path | None,
    llvm: bool,
    policy: Policy | None,
    accel: Any,
    qemu: str | None,
    json_file: Path | None,
    evidence: Path | None,
    timeout: int,
) -> None:
    """Run scenarios, given by name or file, and say who owns each Soft Reserved range.

    Exit code: 0 all PASS, 1 a FAIL, 2 wrong input, 3 INCONCLUSIVE, 4 UNBUILDABLE; of several, the
    first in the order 1, 4, 3. A scenario that is not about this kernel is skipped.
    """
    from harness.progress import TerminalProgress
    from harness.reports.terminal import summary_line
    from harness.runs.catalogue import load_case, load_known_issues
    from harness.runs.prepare import NotApplicableError, policy_for, this_host
    from harness.runs.run_scenario import run_scenario

    cases = [load_case(name) for name in scenarios]
    known = load_known_issues()
    if json_file is not None:
        _check_writable(json_file)
    request = _request(spec, configs, series, llvm)
    judged = policy_for(policy, request)
    host = this_host(TerminalProgress(), accel, qemu)
    results: list[RunResult] = []
    skipped = None
    for case in cases:
        try:
            result = run_scenario(
                host,
                case,
                request,
                judged,
                evidence or evidence_root(),
                known,
                boot_seconds=timeout,
            )
        except NotApplicableError as error:
            if len(cases) == 1:
                raise
            skipped = error
            click.echo(f"SKIP {case.name}: {error}")
            continue
        results.append(result)
        _print_result(result)
        if json_file is not None:
            _write_results(json_file, results)
    if skipped is not None and not results:
        sys.exit(USAGE)
    if len(results) > 1:
        click.echo(summary_line(results))
    sys.exit(_worst(results))


@main.command()
@click.argument("name", metavar="PROFILE|SCENARIO")
@_kernel_option
@_config_option
@_series_option
@_llvm_option
@_accel_option
@_qemu_option
@click.option(
    "--print", "only_print", is_flag=True, help="Print the machine's command line and stop."
)
@_explains_errors
def boot(
    name: str,
    spec: str,
    configs: str,
    series: Path | None,
    llvm: bool,
    accel: Any,
    qemu: str | None,
    only_print: bool,
) -> None:
    """Boot the machine of a profile or scenario and give its console to you.

    For a scenario, the firmware state is what the scenario asks for. Leave with Ctrl-A x, or
    by powering the guest off.
    """
    from harness.progress import TerminalProgress
    from harness.runs.interactive import boot_interactive, printed_command_line
    from harness.runs.prepare import this_host

    request = _request(spec, configs, series, llvm)
    host = this_host(TerminalProgress(), accel, qemu)
    if only_print:
        click.echo(printed_command_line(host, name, request))
    else:
        sys.exit(boot_interactive(host, name, request))


@main.command(name="list")
@_explains_errors
def list_command() -> None:
    """List the scenarios and profiles."""
    from harness.runs.catalogue import (
        load_case,
        load_known_issues,
        load_profile,
        profile_names,
        scenario_names,
    )

    known = {issue.scenario for issue in load_known_issues().issues}
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
@_explains_errors
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


register_kernel_commands(main, _explains_errors)


def _check_writable(path: Path) -> None:
    """Refuse a file that results cannot go to, without touching it."""
    from harness.errors import UsageError

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
            f"cannot be written: {why}", where=str(path), hint="name another file with --json"
        )


def _write_results(path: Path, results: Sequence[RunResult]) -> None:
    from harness.errors import UsageError

    text = json.dumps([result.as_json() for result in results], indent=2) + "\n"
    try:
        path.write_text(text)
    except OSError as error:
        raise UsageError(
            f"the results cannot be written: {error.strerror}",
            where=str(path),
            hint="free some space, or name another file with --json; the evidence has them too",
        ) from None


def _worst(results: Sequence[RunResult]) -> int:
    for verdict in (Verdict.FAIL, Verdict.UNBUILDABLE, Verdict.INCONCLUSIVE):
        if any(result.verdict is verdict for result in results):
            return int(verdict.value)
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
