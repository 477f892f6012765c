# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands `harness bisect` and `harness bisect-step`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from harness.cli.options import GuestOptions, explains_errors, guest_options
from harness.cli.run import check_writable, write_file
from harness.contract.result import Verdict
from harness.core.errors import InconclusiveError, UnbuildableError, UsageError
from harness.core.progress import TerminalProgress

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from harness.bisect.judge import CommitJudge, Flakiness
    from harness.bisect.range import CommitRange
    from harness.bisect.run import Bisection, Step
    from harness.scenario.kernel_request import KernelRequest

Function = TypeVar("Function", bound=Callable[..., Any])

# For git bisect run, 0 is good, 1 to 124, 126 and 127 are bad, 125 is skip, and 128 and above end
# the bisection.
_CANNOT_TELL = 125
_STEP_CODES = {"good": 0, "bad": 1, "cannot tell": _CANNOT_TELL}
_STOP = 128
_MOST_RUNS = 1000


def _build_options(command: Function) -> Function:
    """Give a command the options that shape builds, as `configs` and `llvm`."""
    command = click.option("--llvm", is_flag=True, help="Build with clang instead of gcc.")(command)
    return click.option(
        "--config",
        "configs",
        metavar="NAME,...",
        default="",
        help="Fragments of kernel_configs/ on top of the base.",
    )(command)


def _flaky_options(command: Function) -> Function:
    """Give a command `--runs` and `--need`."""
    command = click.option(
        "--need",
        type=click.IntRange(1, _MOST_RUNS),
        default=1,
        show_default=True,
        metavar="M",
        help="How many of the runs must FAIL for a commit to be bad.",
    )(command)
    return click.option(
        "--runs",
        type=click.IntRange(1, _MOST_RUNS),
        default=1,
        show_default=True,
        metavar="N",
        help="How many runs each scenario gets at each commit.",
    )(command)


class StepCommand(click.Command):
    """A command that ends a bisection unless it could judge the commit.

    Wrong input, a full disk or a defect of the harness must not mark a commit as bad.
    """

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the command line."""
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            with suppress(OSError):  # standard error may be closed
                error.show()
            sys.exit(_STOP)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else _STOP
            sys.exit(code if code in _STEP_CODES.values() or code > _STOP else _STOP)


@click.command(name="bisect-step", cls=StepCommand)
@click.argument("scenarios", nargs=-1, required=True, metavar="SCENARIO...")
@_build_options
@_flaky_options
@guest_options
@explains_errors
def bisect_step(
    scenarios: tuple[str, ...],
    configs: str,
    llvm: bool,
    runs: int,
    need: int,
    guests: GuestOptions,
) -> None:
    """Judge the kernel tree of the current folder, for git bisect run.

    The tree is built as it is checked out, in the store; with git bisect start --no-checkout,
    the commit that git has chosen is built. A commit is bad when a scenario FAILs, known issue or
    not, and good when all PASS.

    Exit code: 0 good, 1 bad, 125 cannot tell (not built, not judged, or a kernel to which the
    scenario does not apply), 128 wrong input or a broken machine, which ends the bisection.
    """
    from harness.bisect.judge import together
    from harness.bisect.message import judged_lines
    from harness.kernels.build.git import ask
    from harness.scenario.kernel_request import request_of_options

    flakiness = _flakiness(runs, need)
    top = ask(Path.cwd(), "rev-parse", "--show-toplevel")
    spec = f"build:{top.stdout.rstrip() if top.status == 0 else Path.cwd()}"
    head = ask(Path.cwd(), "rev-parse", "--quiet", "--verify", "BISECT_HEAD")
    if head.status == 0:
        spec += f"@{head.stdout.strip()}"
    request = request_of_options(spec, configs, None, llvm=llvm)
    try:
        with _judge(scenarios, flakiness, guests, request) as judge:
            judged = judge.judge(request, judge.scenarios).judged
    except (InconclusiveError, UnbuildableError) as error:
        with suppress(OSError):
            click.echo(f"harness: {error}", err=True)
        sys.exit(_CANNOT_TELL)
    for line in judged_lines(judged):
        click.echo(line)
    sys.exit(_STEP_CODES[together(judged).value])


@click.command()
@click.argument("scenarios", nargs=-1, required=True, metavar="SCENARIO...")
@click.option(
    "--tree",
    required=True,
    metavar="PATH",
    help="The git tree; nothing in it is changed. With --series also debian:VERSION.",
)
@click.option("--good", metavar="REF", help="A commit at which the scenarios PASS.")
@click.option("--bad", metavar="REF", help="A commit at which one of them FAILs.")
@click.option(
    "--series",
    type=click.Path(path_type=Path),
    metavar="DIR|MBOX[@vN]",
    help="Bisect over these patches, on top of --good (or of what the tree has at HEAD).",
)
@click.option("--first-good", is_flag=True, help="Look for the fix: --bad is the older commit.")
@_build_options
@_flaky_options
@click.option(
    "--same-failure",
    is_flag=True,
    help="Only a FAIL with a rule and range that broke at the bad end counts; a commit with "
    "another FAIL is skipped. Without it, every FAIL is bad.",
)
@click.option("--fresh", is_flag=True, help="Forget the steps of an interrupted bisection.")
@guest_options
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the steps here.")
@explains_errors
def bisect(
    scenarios: tuple[str, ...],
    tree: str,
    good: str | None,
    bad: str | None,
    series: Path | None,
    first_good: bool,
    configs: str,
    llvm: bool,
    runs: int,
    need: int,
    same_failure: bool,
    fresh: bool,
    guests: GuestOptions,
    json_file: Path | None,
) -> None:
    """Find the first commit that breaks a scenario.

    Both ends are judged first. Of several scenarios, only those that PASS at the good end and FAIL
    at the bad end are used; a commit is bad when one of them FAILs, known issue or not. After an
    interruption, the same command continues where it stopped.

    Exit code: 0 found, 2 wrong input or ends that do not differ, 3 cannot tell (the possible
    commits are listed, or an end could not be judged), 4 an end does not build.
    """
    from harness.bisect.range import RangeOptions, find_range
    from harness.bisect.run import Bisection
    from harness.scenario.kernel_request import request_of_options

    flakiness = _flakiness(runs, need, same_failure)
    request = request_of_options("build:", configs, series, llvm=llvm)
    if json_file is not None:
        check_writable(json_file)
    with _judge(scenarios, flakiness, guests, request) as judge:
        store = judge.host.store
        options = RangeOptions(tree, good, bad, request, first_good)
        ends = find_range(options, store, judge.host.progress)
        lock = f"bisect-{ends.source.name}"
        with store.lock(lock, what=f"bisecting {tree}", wait=False):
            bisection = Bisection(ends, judge, store, _Listener())
            if fresh:
                bisection.forget()
            found = _run(bisection, json_file)
    if not found:
        sys.exit(Verdict.INCONCLUSIVE.exit_code)


def _run(bisection: Bisection, json_file: Path | None) -> bool:
    """Bisect and print the result; False if there are several candidates."""
    from harness.bisect.message import result_json, result_lines

    if bisection.steps:
        steps = len(bisection.steps)
        click.echo(f"continuing an interrupted bisection; steps made: {steps}", err=True)
    try:
        result = bisection.run()
    except (KeyboardInterrupt, SystemExit):
        click.echo(
            "harness: the steps so far are kept; run the same command to continue, or mark "
            f"commits by hand with git -C {bisection.folder} bisect",
            err=True,
        )
        raise
    for line in result_lines(result):
        click.echo(line)
    if json_file is not None:
        write_file(json_file, json.dumps(result_json(result), indent=2) + "\n")
    # Not earlier: a command that is repeated because of an error gets the same result.
    bisection.forget()
    return result.first is not None


class _Listener(TerminalProgress):
    """Prints the steps."""

    def begins(self, ends: CommitRange, count: int) -> None:
        """Print the first line."""
        from harness.bisect.message import begin_line

        click.echo(begin_line(ends, count))

    def step(self, step: Step, again: bool) -> None:
        """Print a step."""
        from harness.bisect.message import step_lines

        first, *rest = step_lines(step, again)
        word = step.outcome.value
        colour = {"good": "green", "bad": "red"}.get(word, "yellow")
        click.echo(click.style(word, fg=colour, bold=True) + first[len(word) :])
        for line in rest:
            click.echo(line)


def _flakiness(runs: int, need: int, same_failure: bool = False) -> Flakiness:
    from harness.bisect.judge import Flakiness

    if need > runs:
        raise UsageError(
            f"--need {need} is more than --runs {runs}",
            hint=f"name at least as many runs: --runs {need} --need {need}",
        )
    return Flakiness(runs, need, same_failure)


def _judge(
    scenarios: tuple[str, ...], flakiness: Flakiness, guests: GuestOptions, request: KernelRequest
) -> AbstractContextManager[CommitJudge]:
    """A judge for which a known issue is a failure."""
    from harness.bisect.judge import commit_judge
    from harness.runs.guest_run import Judging
    from harness.runs.prepare import policy_for
    from harness.runs.session import default_jobs
    from harness.scenario.known_issues import KnownIssues
    from harness.scenario.scenario_files import load_cases

    cases = load_cases(scenarios)
    policy = policy_for(guests.policy, request)
    judging = Judging(policy, guests.evidence, KnownIssues(issues=()), guests.timeout)
    return commit_judge(guests.host(), judging, cases, flakiness, guests.jobs or default_jobs())
