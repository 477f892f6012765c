# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `harness report`: reports of results in HTML, JUnit, KCIDB and mail."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.options import explains_errors
from harness.cli.run import check_writable, write_file
from harness.core.errors import HarnessError, UsageError
from harness.core.paths import evidence_root

if TYPE_CHECKING:
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
    "--kcidb-origin", metavar="NAME", help="For --kcidb: your CI system. Default: cxl_ownership."
)
@click.option("--mail", is_flag=True, help="Print a reply for the mailing list.")
@click.option(
    "--tested-by", metavar="'NAME <ADDRESS>'", help="For --mail: the tester. Default: git's user."
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
    """Make a report of results: files of --json, or folders with evidence at any depth.

    Without arguments, report all evidence in the default folder. Exit code: 0 for any verdicts, 2
    for invalid input.
    """
    from harness.runs.result_files import load_runs, unfinished_runs

    if output is None and junit is None and kcidb is None and not mail:
        raise UsageError(
            "no report is requested",
            hint="give -o FILE.html, --junit FILE, --kcidb FILE or --mail",
        )
    if kcidb_origin is not None and not _ORIGIN.fullmatch(kcidb_origin):
        raise UsageError(
            f"--kcidb-origin {kcidb_origin!r} is not a valid name",
            hint="use the lowercase letters, digits and underscores registered with KernelCI",
        )
    given = _person(tested_by) if tested_by is not None else None
    requested = {"-o": output, "--junit": junit, "--kcidb": kcidb}
    targets = {option: path for option, path in requested.items() if path is not None}
    for option, path in targets.items():
        check_writable(path, option)
    if len({path.absolute() for path in targets.values()}) < len(targets):
        raise UsageError("two reports have the same file", hint="name one file for each")
    paths = results or (evidence_root(),)
    runs = load_runs(paths)
    if not runs:
        raise UsageError(
            f"no results in {', '.join(map(str, paths))}", hint="run a scenario with --json first"
        )
    unfinished = unfinished_runs(paths)
    if unfinished:
        click.echo(
            f"note: skipped {len(unfinished)} runs without a verdict (running or killed), such as "
            f"{unfinished[-1]}",
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
            f"--tested-by {text!r} is not a name and an address",
            hint="write it as in a commit: 'Jane Doe <jane@example.org>'",
        )
    return Person(match["name"], match["address"])


def _git_person() -> Person | None:
    """The user of git, None without git or without a name and an address."""
    from harness.core.deadline import Deadline
    from harness.core.process import run

    with suppress(HarnessError, OSError):
        name, address = (
            run(
                ["git", "config", "--get", key],
                deadline=Deadline(10, "git config", hint="give --tested-by instead"),
                check=False,
            ).stdout.strip()
            for key in ("user.name", "user.email")
        )
        return _person(f"{name} <{address}>")
    return None
