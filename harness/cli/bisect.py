# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands `harness bisect` and `harness bisect-step`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from harness.bisect.search import Outcome
from harness.cli.options import GuestOptions, explains_errors, guest_options
from harness.cli.run import check_writable, write_file
from harness.contract.result import Verdict
from harness.core.errors import InconclusiveError, UnbuildableError, UsageError
from harness.core.progress import TerminalProgress
from harness.scenario.scenario import POLICIES

if TYPE_CHECKING:
    from harness.bisect.ends import Opened
    from harness.bisect.probe import CommitJudge, Flakiness
    from harness.bisect.run import Ends
    from harness.bisect.search import Bisected, Step
    from harness.runs.prepare import Host
    from harness.runs.session import Session
    from harness.scenario.scenario_files import Case

Function = TypeVar("Function", bound=Callable[..., Any])

# What git bisect run makes of exit codes: 0 good, 1 to 124, 126 and 127 bad, 125 cannot tell,
# 128 and above end the bisection.
STEP_CODES = {Outcome.GOOD: 0, Outcome.BAD: 1, Outcome.UNKNOWN: 125}
STOP = 128
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
    """A command whose wrong use ends a bisection: click's own 2 would make a commit bad."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the command line."""
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            with suppress(OSError):  # nobody may listen any more
                error.show()
            sys.exit(STOP)


def _ends_bisections(command: Function) -> Function:
    """Turn errors into the exit codes of `harness bisect-step`."""

    @explains_errors
    @wraps(command)
    def judged(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (InconclusiveError, UnbuildableError) as error:
            with suppress(OSError):
                click.echo(f"harness: {error}", err=True)
            sys.exit(STEP_CODES[Outcome.UNKNOWN])

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return judged(*args, **kwargs)
        except SystemExit as ending:
            # What is left says nothing about the commit: wrong input, a full disk, a defect.
            if ending.code not in (*STEP_CODES.values(), None) and _code(ending) < STOP:
                sys.exit(STOP)
            raise

    return guarded  # type: ignore[return-value]


def _code(ending: SystemExit) -> int:
    return ending.code if isinstance(ending.code, int) else 1


@click.command(name="bisect-step", cls=StepCommand)
@click.argument("scenarios", nargs=-1, required=True, metavar="SCENARIO...")
@_build_options
@_flaky_options
@guest_options
@_ends_bisections
def bisect_step(
    scenarios: tuple[str, ...],
    configs: str,
    llvm: bool,
    runs: int,
    need: int,
    guests: GuestOptions,
) -> None:
    """Judge the kernel tree that this is started in, for git bisect run.

    The tree is built as it is checked out, in the store. A commit is bad when a scenario FAILs,
    known issue or not, and good when all PASS.

    Exit code: 0 good, 1 bad, 125 nobody can tell (not built, not judged, or a kernel that the
    scenario is not about), 128 wrong input or a broken machine, which ends the bisection.
    """
    from harness.bisect.message import judged_lines
    from harness.bisect.probe import Flakiness
    from harness.kernels.build.git import ask
    from harness.scenario.kernel_request import request_of_options
    from harness.scenario.scenario_files import load_cases

    flakiness = Flakiness(*_checked_need(runs, need))
    cases = load_cases(scenarios)
    host = guests.host()
    top = ask(Path.cwd(), "rev-parse", "--show-toplevel")
    folder = top.stdout.rstrip("\n") if top.status == 0 else str(Path.cwd())
    request = request_of_options(f"build:{folder}", configs, None, llvm=llvm)
    with _session(guests, host) as session:
        judge = _judge(host, session, cases, flakiness, guests)
        judgement = judge.judge(request, [case.name for case in cases])
    for line in judged_lines(judgement.judged):
        click.echo(line)
    from harness.bisect.search import together

    sys.exit(STEP_CODES[together(judgement.judged)])


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
    help="Only a FAIL with a rule and range that broke at the bad end counts; of another, nobody "
    "can tell. Without it, every FAIL is bad.",
)
@click.option("--fresh", is_flag=True, help="Forget what an interrupted bisection found out.")
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

    Both ends are looked at first. Of several scenarios, those that PASS at the good end and FAIL
    at the bad one judge; a commit is bad when one of them FAILs, known issue or not. Interrupted
    and started again with the same words, it goes on where it stopped.

    Exit code: 0 found, 2 wrong input or ends that do not differ, 3 nobody can tell (the commits
    that it may be are listed, or an end could not be judged), 4 an end does not build.
    """
    from harness.bisect.ends import Asked, open_bisection
    from harness.bisect.probe import Flakiness
    from harness.runs.prepare import policy_for
    from harness.scenario.kernel_request import request_of_options
    from harness.scenario.scenario_files import load_cases

    flakiness = Flakiness(*_checked_need(runs, need), same_failure)
    request = request_of_options("build:", configs, series, llvm=llvm)
    guests = replace(guests, policy=policy_for(guests.policy, request))
    cases = load_cases(scenarios)
    if json_file is not None:
        check_writable(json_file)
    host = guests.host()
    asked = Asked(tree, good, bad, request, first_good)
    opened = open_bisection(asked, host.store, host.progress)
    with host.store.lock(f"bisect-{opened.source}", what=f"bisecting {tree}", wait=False):
        result = _bisected(opened, cases, flakiness, guests, host, fresh, json_file)
    if result.first is None:
        sys.exit(Verdict.INCONCLUSIVE.exit_code)


def _bisected(
    opened: Opened,
    cases: Sequence[Case],
    flakiness: Flakiness,
    guests: GuestOptions,
    host: Host,
    fresh: bool,
    json_file: Path | None,
) -> Bisected:
    """Bisect, and show what comes out."""
    from harness.bisect.message import result_json, result_lines
    from harness.bisect.record import open_record
    from harness.bisect.run import GO_ON, Bisection

    key = opened.key(cases, guests.policy or POLICIES[0], flakiness, host.qemu.identity)
    names = tuple(case.name for case in cases)
    question = f"{' '.join(names)} from {opened.ends.good.short} to {opened.ends.bad.short}"
    record = open_record(host.store, key, question, host.progress, fresh)
    if record.count:
        click.echo(f"going on with an interrupted bisection; steps made: {record.count}", err=True)
    try:
        with _session(guests, host) as session:
            judge = _judge(host, session, cases, flakiness, guests)
            result = Bisection(opened.ends, opened.history, judge, names, record, _Listener()).run()
    except (KeyboardInterrupt, SystemExit):
        click.echo(f"harness: the steps so far are kept; {GO_ON}", err=True)
        raise
    kernel = opened.history.kernel(result.first) if result.first else None
    for line in result_lines(result, kernel):
        click.echo(line)
    if json_file is not None:
        write_file(json_file, json.dumps(result_json(result), indent=2) + "\n")
    # Only now: until here, somebody who starts it again wants this answer.
    record.forget()
    return result


class _Listener(TerminalProgress):
    """Shows steps as they are made."""

    def begins(self, ends: Ends, count: int) -> None:
        """Say what is about to be done."""
        from harness.bisect.message import begin_line

        click.echo(begin_line(ends, count))

    def step(self, step: Step, again: bool) -> None:
        """Show a step."""
        from harness.bisect.message import step_lines

        first, *rest = step_lines(step, again)
        colour = {Outcome.GOOD: "green", Outcome.BAD: "red"}.get(step.outcome, "yellow")
        word = step.outcome.value
        click.echo(click.style(word, fg=colour, bold=True) + first[len(word) :])
        for line in rest:
            click.echo(line)


def _checked_need(runs: int, need: int) -> tuple[int, int]:
    if need > runs:
        raise UsageError(
            f"--need {need} of --runs {runs} can never be",
            hint=f"name at least as many runs: --runs {need} --need {need}",
        )
    return runs, need


def _session(guests: GuestOptions, host: Host) -> Session:
    """A session in which a failure is a failure, known or not, and is not made shorter."""
    from harness.runs.guest_run import Judging
    from harness.runs.session import Session, SessionOptions, default_jobs
    from harness.scenario.known_issues import KnownIssues

    judging = Judging(
        guests.policy or POLICIES[0], guests.evidence, KnownIssues(issues=()), guests.timeout
    )
    options = SessionOptions(guests.jobs or default_jobs(), minimize=False)
    return Session(host, judging, options)


def _judge(
    host: Host,
    session: Session,
    cases: Sequence[Case],
    flakiness: Flakiness,
    guests: GuestOptions,
) -> CommitJudge:
    from harness.bisect.probe import CommitJudge
    from harness.runs.session import default_jobs

    return CommitJudge(host, session, cases, flakiness, guests.jobs or default_jobs())
