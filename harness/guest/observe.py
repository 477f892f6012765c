# SPDX-License-Identifier: GPL-2.0-or-later
"""Read all inputs of a verdict from the guest, with one command."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from harness.contract.dmesg import DmesgError, Record, StepMarks, parse_dmesg, require_whole
from harness.contract.observation import Observation, ObservationError
from harness.contract.observation_parser import parse_observation, split_sections
from harness.core.deadline import Deadline
from harness.core.errors import GuestLostError
from harness.guest.ssh import GuestShell

_SECONDS = 60.0
_INCOMPLETE = "is the guest out of memory? see serial.log in the evidence, and run it again"
_EARLY = "dmesg -r | grep -e 'soft reserved' -e 'ACPI: SRAT: '"


def observe(shell: GuestShell, seconds: float = _SECONDS) -> dict[str, str]:
    """Run the guest's `observe`; returns its sections by name.

    Raises:
        GuestLostError: they are incomplete, or the guest is gone.
        DeadlineExpiredError: no reply in time.
    """
    token = secrets.token_hex(16)
    done = shell.run(f"observe {token}", Deadline(seconds, "the observation of the guest"))
    try:
        return split_sections(done.output, token)
    except ObservationError as error:
        raise _unreadable(str(error), _INCOMPLETE) from None


def read_sections(sections: dict[str, str]) -> Observation:
    """Parse the sections.

    Raises:
        GuestLostError: they are malformed or contradict each other.
    """
    try:
        return parse_observation(sections)
    except ObservationError as error:
        raise _unreadable(str(error), "the output is in observation/ in the evidence") from None


def require_whole_log(records: Sequence[Record], marks: StepMarks, *, from_boot: bool) -> None:
    """Refuse a kernel log that may lack a line that counts.

    Args:
        records: the guest's log.
        marks: the marks of its steps.
        from_boot: whether the boot counts too.

    Raises:
        GuestLostError: the log is incomplete.
    """
    try:
        require_whole(records, marks, from_boot=from_boot)
    except DmesgError as error:
        raise GuestLostError(
            f"the guest's kernel log cannot be trusted: {error}",
            hint="was it flooded? see observation/dmesg in the evidence; kernel.cmdline: "
            "[log_buf_len=16M] in the scenario makes it larger",
        ) from None


def early_messages(shell: GuestShell, seconds: float = _SECONDS) -> tuple[Record, ...]:
    """The kernel's messages about Soft Reserved ranges and the SRAT so far.

    Raises:
        GuestLostError: the output is no kernel log, or the guest is gone.
        DeadlineExpiredError: no reply in time.
    """
    # Filtered in the guest, which takes longer to encrypt the whole log than to search it.
    done = shell.run(_EARLY, Deadline(seconds, "the guest's early messages"))
    try:
        return parse_dmesg(done.output)
    except DmesgError as error:
        raise _unreadable(str(error), _INCOMPLETE) from None


def _unreadable(why: str, hint: str) -> GuestLostError:
    return GuestLostError(f"invalid observation from the guest: {why}", hint=hint)
