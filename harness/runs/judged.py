# SPDX-License-Identifier: GPL-2.0-or-later
"""Judging one guest by what was observed in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.contract.dmesg import TIMED, in_phases
from harness.contract.expected import Expected
from harness.contract.judge import Judgement, judge
from harness.contract.observation import Observation, Undecoded
from harness.contract.observed_owners import pieces_of
from harness.contract.result import Piece
from harness.core.errors import GuestEndedError, MachineLostError
from harness.guest.observe import require_whole_log
from harness.machine.firmware import check_committed, unanswered
from harness.machine.qemu import Qemu
from harness.runs.boot import BootedGuest
from harness.runs.prepare import Prepared


def judging_inputs(
    guest: BootedGuest, prepared: Prepared, observation: Observation
) -> dict[str, Any]:
    """What a judgement rests on beside the observation and the scenario, for the evidence."""
    return {
        "step_marks": guest.shell.marks.token,
        "boot_counts": prepared.boot_counts,
        "built_in": list(prepared.built_in_drivers()),
        "driver_options": prepared.bootable.driver_options,
        "expected_messages": [one.pattern for one in prepared.expected_lines()],
        "undecoded": [{"range": str(one.range), "text": one.text} for one in observation.undecoded],
    }


def with_undecoded(guest: BootedGuest, prepared: Prepared, observation: Observation) -> Observation:
    """Add to an observation which memory of the drivers does not answer.

    The guest is stopped meanwhile, so that nothing else reads or writes that memory.

    Raises:
        HarnessError: QEMU or the guest has ended.
    """
    owned = [
        (decoder, piece)
        for decoder in prepared.state.decoders
        for piece in pieces_of(decoder.range, observation)
        if piece.owner in ("dax_cxl", "dax_hmem")
    ]
    if not owned:
        return observation
    machine = guest.machine
    try:
        machine.command("stop")
        try:
            with machine.telling_its_end():
                parts = [(decoder, piece.range) for decoder, piece in owned]
                found = unanswered(machine.qtest, parts)
                undecoded = tuple(
                    _undecoded(machine, prepared, piece, why)
                    for (_, piece), why in zip(owned, found, strict=True)
                    if why
                )
        finally:
            machine.command("cont")
    except (MachineLostError, GuestEndedError):
        guest.check()
        raise
    return replace(observation, undecoded=undecoded)


def _undecoded(machine: Qemu, prepared: Prepared, piece: Piece, why: str) -> Undecoded:
    settings = [one for one in prepared.settings if one.range.overlaps(piece.range)]
    problems = check_committed(machine.qtest, prepared.layout, settings)
    return Undecoded(
        piece.range,
        f"memory of {piece.owner} ({piece.via}) is not decoded: {'; '.join((*problems, why))}",
    )


def judge_guest(
    guest: BootedGuest,
    prepared: Prepared,
    observation: Observation,
    expected: Expected,
) -> Judgement:
    """Hold what was observed in a guest against the owners that it must have by now.

    Args:
        guest: the guest, which knows how its steps are marked in the kernel's log.
        prepared: its scenario.
        observation: what was observed.
        expected: what must be so by now.

    Raises:
        GuestLostError: a line that counts may be missing from the guest's log, or the log says that
            something took too long by a clock that runs too fast.
    """
    marks = guest.shell.marks
    require_whole_log(observation.dmesg, marks, from_boot=prepared.boot_counts)
    judgement = judge(
        replace(observation, dmesg=in_phases(observation.dmesg, marks)),
        prepared.state,
        expected,
        prepared.expected_lines(),
        boot_counts=prepared.boot_counts,
    )
    if any(one.kind in TIMED for one in judgement.findings):
        guest.watch.check_clock()
    return judgement
