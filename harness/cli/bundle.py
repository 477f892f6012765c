# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands `harness bundle`, `judge` and `replay`: use the evidence of one run again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import click

from harness.cli.options import GuestOptions, explains_errors, guest_options
from harness.cli.run import check_writable, write_file
from harness.contract.result import RunResult
from harness.core.errors import UsageError
from harness.core.paths import evidence_root
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario import POLICIES, Policy


@click.command()
@click.argument("run", metavar="RUN")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file. Default: RUN.zip.")
@explains_errors
def bundle(run: str, output: Path | None) -> None:
    """Pack the evidence of one run into a file that another person can replay.

    RUN is an evidence folder, or its name in the default folder.
    """
    from harness.bundle.pack import pack

    folder = _evidence(run)
    if not folder.is_dir():
        raise UsageError(
            f"there is no evidence folder {run}",
            hint=f"without --evidence, runs write their evidence to {evidence_root()}",
        )
    target = output or Path(f"{folder.resolve().name}.zip")
    if not target.exists():
        check_writable(target, "-o")
    packed = pack(folder, target)
    if packed.note:
        click.echo(f"note: {packed.note}", err=True)
    size = packed.path.stat().st_size
    click.echo(f"{packed.path}: {packed.files} files, {-(-size // 1024)} KiB")
    click.echo(f"replay it with: harness replay {packed.path}")


@click.command()
@click.argument("evidence", metavar="EVIDENCE")
@click.option("--policy", type=click.Choice(POLICIES), help="Another policy than the recorded one.")
@explains_errors
def judge(evidence: str, policy: Policy | None) -> None:
    """Judge the recorded observation of a run again, without a guest.

    EVIDENCE is an evidence folder, its name in the default folder, or a bundle. Steps after boot
    are not judged. Exit code: as for harness run, for the new judgement.
    """
    from harness.bundle.judge import judge_again, open_recording

    with open_recording(_evidence(evidence), policy) as recording:
        _print_recorded(recording.run.record)
        result, differences = judge_again(recording)
    _print_result(result, differences)
    sys.exit(result.verdict.exit_code)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--kernel", "spec", metavar="SPEC", help="Another kernel than the recorded one.")
@guest_options
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the result here.")
@explains_errors
def replay(bundle: Path, spec: str | None, guests: GuestOptions, json_file: Path | None) -> None:
    """Run a bundle again, with its scenario, profile, load, policy, kernel and series.

    Prints the differences from the recorded run. Exit code: as for harness run, for the new run.
    """
    from harness.bundle.judge import open_recording, result_differences
    from harness.bundle.replay import request_of, run_differences

    if json_file is not None:
        check_writable(json_file)
    with open_recording(bundle, guests.policy) as recording:
        _print_recorded(recording.run.record)
        request = KernelRequest(spec) if spec is not None else request_of(recording)
        options = replace(guests, policy=recording.policy)
        with options.session(options.host(), request) as session:
            result = session.run(recording.case, request)
        notes = tuple(run_differences(recording, result))
    _print_result(result, result_differences(recording.run.record, result), notes)
    if json_file is not None:
        write_file(json_file, json.dumps([result.as_json()], indent=2) + "\n")
    sys.exit(result.verdict.exit_code)


def _evidence(name: str) -> Path:
    """The path of evidence that is named by a path, or by its name in the default folder."""
    usual = evidence_root() / name
    return usual if usual.is_dir() and not Path(name).exists() else Path(name)


def _print_recorded(record: RunResult) -> None:
    click.echo(
        f"recorded: {record.verdict.name} {record.scenario} on {record.spec}, "
        f"policy {record.policy}"
    )


def _print_result(result: RunResult, differences: Iterable[str], notes: Iterable[str] = ()) -> None:
    from harness.reports.terminal import result_lines

    lines = [*result_lines(result), *(f"note: {note}" for note in notes)]
    lines += [f"differs: {difference}" for difference in differences] or ["the same as recorded"]
    click.echo("\n".join(lines))
