# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading everything that a verdict rests on from the guest, in one command."""

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
_NOT_KEPT = "has the guest run out of memory? see serial.log in the evidence, and run it again"
_EARLY = "dmesg -r | grep -e 'soft reserved' -e 'ACPI: SRAT: '"


def observe(shell: GuestShell, seconds: float = _SECONDS) -> dict[str, str]:
    """The sections that the guest's `observe` prints, by name.

    Raises:
        GuestLostError: they are cut off, or the guest is gone.
        DeadlineExpiredError: they did not come in time.
    """
    token = secrets.token_hex(16)
    done = shell.run(f"observe {token}", Deadline(seconds, "the observation of the guest"))
    try:
        return split_sections(done.output, token)
    except ObservationError as error:
        raise _unreadable(str(error), _NOT_KEPT) from None


def read_sections(sections: dict[str, str]) -> Observation:
    """The observation in these sections.

    Raises:
        GuestLostError: they are not what a whole guest prints.
    """
    try:
        return parse_observation(sections)
    except ObservationError as error:
        raise _unreadable(str(error), "what came is in observation/ in the evidence") from None


def require_whole_log(records: Sequence[Record], marks: StepMarks, *, from_boot: bool) -> None:
    """Refuse a log in which a line that counts may be missing.

    Args:
        records: the guest's log.
        marks: the marks of its steps.
        from_boot: whether the boot counts too.

    Raises:
        GuestLostError: it is not whole.
    """
    try:
        require_whole(records, marks, from_boot=from_boot)
    except DmesgError as error:
        raise GuestLostError(
            f"the guest's kernel log cannot be trusted: {error}",
            hint="did something flood it? see observation/dmesg in the evidence; kernel.cmdline: "
            "[log_buf_len=16M] in the scenario makes it larger",
        ) from None


def early_messages(shell: GuestShell, seconds: float = _SECONDS) -> tuple[Record, ...]:
    """The kernel's messages about Soft Reserved ranges and the SRAT, up to now.

    Raises:
        GuestLostError: there are none, or the guest is gone.
        DeadlineExpiredError: they did not come in time.
    """
    # Filtered in the guest: the whole log takes longer to encrypt there than to search.
    done = shell.run(_EARLY, Deadline(seconds, "the guest's early messages"))
    try:
        return parse_dmesg(done.output)
    except DmesgError as error:
        raise _unreadable(str(error), _NOT_KEPT) from None


def _unreadable(why: str, hint: str) -> GuestLostError:
    return GuestLostError(f"what the guest printed is not a whole observation: {why}", hint=hint)
