# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `harness fuzz`: compare a kernel with the oracle on random layouts."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.options import GuestOptions, explains_errors, guest_options, kernel_options
from harness.contract.result import Verdict

if TYPE_CHECKING:
    from harness.fuzz.campaign import Tally
    from harness.scenario.kernel_request import KernelRequest


@click.command()
@click.option(
    "--minutes",
    type=click.FloatRange(0, 7 * 24 * 60),
    default=10,
    show_default=True,
    help="The time for drawing layouts; guests that run then finish.",
)
@click.option(
    "--shrink-minutes",
    type=click.FloatRange(0, 24 * 60),
    default=4,
    show_default=True,
    help="The time limit for shrinking a new failure; 0 saves the layout as it was drawn.",
)
@click.option("--seed", type=click.IntRange(0), help="Draw the same layouts again.")
@click.option(
    "--save",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("fuzz-found"),
    show_default=True,
    help="The folder for scenarios of failures.",
)
@kernel_options
@guest_options
@explains_errors
def fuzz(
    minutes: float,
    shrink_minutes: float,
    seed: int | None,
    folder: Path,
    request: KernelRequest,
    guests: GuestOptions,
) -> None:
    """Compare a kernel with the oracle on random layouts.

    A failure that no known issue explains is shrunk to the smallest layout that fails in the same
    way, and saved as a scenario: `harness run FILE` runs it again.

    Exit code: 0 no new failure, 1 a new failure, 2 invalid input, 3 a layout that could not be
    judged, 4 the kernel does not build.
    """
    from harness.fuzz.campaign import Campaign, ForgetfulHost
    from harness.runs.prepare import policy_for

    seed = secrets.randbelow(1_000_000) if seed is None else seed
    host = guests.host()
    forgetful = ForgetfulHost(host.qemu, host.store, host.progress, host.accel)
    click.echo(f"seed {seed}")
    with guests.session(forgetful, request) as session:
        policy = policy_for(guests.policy, request)
        campaign = Campaign(session, request, policy, folder, seed, shrink_minutes * 60)
        tally = campaign.run(minutes * 60)
    _print_tally(tally)
    if tally.new:
        sys.exit(Verdict.FAIL.exit_code)
    if tally.inconclusive or tally.refused:
        sys.exit(Verdict.INCONCLUSIVE.exit_code)


def _print_tally(tally: Tally) -> None:
    for failure in tally.new:
        click.echo(f"NEW {failure.file}, {failure.how}")
        for line in sorted(failure.signature):
            click.echo(f"  {line}")
        click.echo(f"  evidence: {failure.result.evidence}")
    for file in tally.inconclusive:
        click.echo(f"INCONCLUSIVE {file}")
    for reason, count in tally.refused.most_common():
        click.echo(f"REFUSED {count} times: {reason}")
    click.echo(str(tally))
