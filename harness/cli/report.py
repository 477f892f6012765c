# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands about results that are there already: `report`, `bundle` and `replay`."""

from __future__ import annotations

import json
import re
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from harness.cli.options import GuestOptions, explains_errors, guest_options
from harness.cli.run import check_writable, write_file
from harness.contract.result import RunKernel, RunResult, Verdict
from harness.core.errors import HarnessError, UsageError
from harness.core.paths import evidence_root

if TYPE_CHECKING:
    from harness.bundle.replay import Recording
    from harness.reports.mail import Person

_PERSON = re.compile(r"\s*(?P<name>[^<>\n\r]*[^<>\s])\s*<(?P<address>[^<>@\s]+@[^<>@\s]+)>\s*")
_ORIGIN = re.compile(r"[a-z0-9_]+")


@click.command()
@click.argument(
    "results", nargs=-1, type=click.Path(path_type=Path), metavar="[RESULTS.json|EVIDENCE...]"
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write one HTML page here.")
@click.option("--title", default="CXL ownership", show_default=True, help="The page's heading.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML here.")
@click.option("--kcidb", type=click.Path(path_type=Path), help="Write KernelCI's KCIDB JSON here.")
@click.option(
    "--kcidb-origin", metavar="NAME", help="For --kcidb: your CI system's name; cxl_ownership."
)
@click.option("--mail", is_flag=True, help="Print a reply for the mailing list.")
@click.option(
    "--tested-by", metavar="'NAME <ADDRESS>'", help="For --mail: who vouches, not as git has it."
)
@explains_errors
def report(
    results: tuple[Path, ...],
    output: Path | None,
    title: str,
    junit: Path | None,
    kcidb: Path | None,
    kcidb_origin: str | None,
    mail: bool,
    tested_by: str | None,
) -> None:
    """Make a report of results: files that --json wrote, or folders of evidence, at any depth.

    Without any, of all evidence in its usual place. Exit code: 0, whatever the verdicts; 2 for
    wrong input.
    """
    from harness.runs.result_files import load_runs, unfinished_runs

    if output is None and junit is None and kcidb is None and not mail:
        raise UsageError(
            "nothing is asked for", hint="give -o FILE.html, --junit FILE, --kcidb FILE or --mail"
        )
    if kcidb_origin is not None and not _ORIGIN.fullmatch(kcidb_origin):
        raise UsageError(
            f"--kcidb-origin {kcidb_origin!r} is not a name",
            hint="small letters, digits and underscores, as KernelCI has registered it",
        )
    given = _person(tested_by) if tested_by is not None else None
    asked = {"-o": output, "--junit": junit, "--kcidb": kcidb}
    targets = {option: path for option, path in asked.items() if path is not None}
    for option, path in targets.items():
        check_writable(path, option)
    if len({path.absolute() for path in targets.values()}) < len(targets):
        raise UsageError("two reports would go to the same file", hint="name one file for each")
    paths = results or (evidence_root(),)
    runs = load_runs(paths)
    if not runs:
        raise UsageError("there is no result in it", hint="run something with --json first")
    unfinished = unfinished_runs(paths)
    if unfinished:
        click.echo(
            f"note: left out, because they have no verdict (under way, or killed): "
            f"{len(unfinished)}, such as {unfinished[-1]}",
            err=True,
        )
    if output is not None:
        from harness.reports.html.page import html_report

        write_file(output, html_report(runs, title), "-o")
    if junit is not None:
        from harness.reports.junit import junit_report

        write_file(junit, junit_report(runs), "--junit")
    if kcidb is not None:
        from harness.reports.kcidb import ORIGIN, kcidb_report

        content = kcidb_report(runs, kcidb_origin or ORIGIN)
        write_file(kcidb, json.dumps(content, indent=1) + "\n", "--kcidb")
    if mail:
        from harness.reports.mail import mail_reply
        from harness.scenario.scenario_files import scenario_names

        tester = given or _git_person()
        click.echo(mail_reply(runs, scenario_names(), tester, len(unfinished)), nl=False)


def _person(text: str) -> Person:
    from harness.reports.mail import Person

    match = _PERSON.fullmatch(text)
    if match is None:
        raise UsageError(
            f"--tested-by {text!r} is not a name with an address",
            hint="write it as in a commit: 'Jane Doe <jane@example.org>'",
        )
    return Person(match["name"], match["address"])


def _git_person() -> Person | None:
    """The user as git has them, None without git or without both name and address."""
    from harness.core.deadline import Deadline
    from harness.core.process import run

    words = {}
    hint = "give --tested-by instead"
    for key in ("user.name", "user.email"):
        with suppress(HarnessError, OSError):
            asked = run(
                ["git", "config", "--get", key],
                deadline=Deadline(10, "git config", hint=hint),
                check=False,
            )
            words[key] = asked.stdout.strip()
    with suppress(UsageError):
        return _person(f"{words.get('user.name', '')} <{words.get('user.email', '')}>")
    return None


@click.command()
@click.argument("evidence", metavar="RUN")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file; RUN.zip here.")
@explains_errors
def bundle(evidence: str, output: Path | None) -> None:
    """Pack one run's evidence into a file that another person can replay.

    RUN is an evidence folder, or its name in the usual place.
    """
    from harness.bundle.pack import pack

    folder = Path(evidence)
    if not folder.is_dir() and (evidence_root() / evidence).is_dir():
        folder = evidence_root() / evidence
    if not folder.is_dir():
        raise UsageError(
            f"there is no evidence folder {evidence}",
            hint=f"the evidence of runs is in {evidence_root()} unless --evidence said otherwise",
        )
    target = output or Path(f"{folder.resolve().name}.zip")
    if not target.exists():
        check_writable(target, "-o")
    packed = pack(folder, target)
    for note in packed.notes:
        click.echo(f"note: {note}", err=True)
    size = packed.path.stat().st_size
    click.echo(f"{packed.path}: {packed.files} files, {-(-size // 1024)} KiB")
    click.echo(f"replay it with: harness replay {packed.path}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--judge-only", is_flag=True, help="Start nothing: judge what was recorded again.")
@click.option("--kernel", "spec", metavar="SPEC", help="Another kernel than the recorded one.")
@guest_options
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the result here.")
@explains_errors
def replay(
    file: Path, judge_only: bool, spec: str | None, guests: GuestOptions, json_file: Path | None
) -> None:
    """Run a bundle again, with its scenario and profile, its load, policy, kernel and series.

    Says in what the new run differs from the recorded one. Exit code: as harness run, for what was
    found now. It is judged by the recorded policy unless --policy is given.
    """
    from harness.bundle.pack import unpack
    from harness.bundle.replay import read_recording

    if judge_only and (spec is not None or json_file is not None):
        raise UsageError(
            "--judge-only runs no kernel and has no new result",
            hint="leave --kernel and --json out, or --judge-only",
        )
    if json_file is not None:
        check_writable(json_file)
    with TemporaryDirectory(prefix="harness-replay-") as folder:
        recording = read_recording(unpack(file, Path(folder)))
        record = recording.record
        if guests.policy is not None:
            recording = replace(recording, policy=guests.policy)
        click.echo(
            f"recorded: {record.verdict.name} {record.scenario} on {record.spec}, "
            f"policy {record.policy}"
        )
        verdict = (
            _judge_again(recording)
            if judge_only
            else _run_again(recording, spec, guests, json_file)
        )
    sys.exit(verdict.exit_code)


def _judge_again(recording: Recording) -> Verdict:
    from harness.bundle.replay import judge_again, owner_differences, program_differs
    from harness.reports.terminal import result_lines

    again = judge_again(recording)
    record = recording.record
    result = RunResult(
        scenario=record.scenario,
        request=record.request,
        policy=recording.policy,
        kernel=RunKernel(record.kernel.release),
        verdict=again.judgement.verdict,
        owners=again.judgement.owners,
        findings=again.judgement.findings,
        reason="judged again from the recorded observation; steps are not in it",
    )
    for line in result_lines(result):
        click.echo(line)
    differences = list(owner_differences(record, result.owners))
    if program_differs(recording, again.state):
        differences.append("the firmware program: today's plan has other decoders")
    _compare(record.verdict, result.verdict, differences)
    return result.verdict


def _run_again(
    recording: Recording, spec: str | None, guests: GuestOptions, json_file: Path | None
) -> Verdict:
    from harness.bundle.replay import owner_differences, request_of, run_differences
    from harness.reports.terminal import result_lines
    from harness.scenario.kernel_request import KernelRequest

    request = KernelRequest(spec) if spec is not None else request_of(recording)
    options = replace(guests, policy=recording.policy)
    with options.session(options.host(), request) as session:
        result = session.run(recording.case, request)
    for line in result_lines(result):
        click.echo(line)
    if json_file is not None:
        write_file(json_file, json.dumps([result.as_json()], indent=2) + "\n")
    for line in run_differences(recording, result):
        click.echo(f"note: {line}")
    _compare(
        recording.record.verdict, result.verdict, owner_differences(recording.record, result.owners)
    )
    return result.verdict


def _compare(recorded: Verdict, now: Verdict, differences: tuple[str, ...] | list[str]) -> None:
    for line in differences:
        click.echo(f"differs: {line}")
    if recorded is not now:
        click.echo(f"differs: recorded {recorded.name}, now {now.name}")
    elif not differences:
        click.echo("the same as recorded")
