# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors of the harness, by the person who must act. Frontends turn them into exit codes."""

from __future__ import annotations

import re
from functools import partial

# A message may quote text, such as a build's, that is crafted to control the reader's terminal.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Replace characters that control a terminal by ?, except tabs and line ends."""
    return _UNPRINTABLE.sub("?", text)


class HarnessError(Exception):
    """An error with its place, and a hint for the reader.

    Args:
        message: one sentence without a trailing period.
        hint: what the reader can do about it.
        where: file, line and field, or the command.
    """

    def __init__(self, message: str, *, hint: str, where: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where

    def __str__(self) -> str:
        head = f"{self.where}: {self.message}" if self.where else self.message
        return printable(f"{head}\n  hint: {self.hint}")

    def __reduce__(self) -> tuple[object, ...]:
        # Errors are pickled under pytest-xdist, which by default drops keyword-only arguments.
        return (partial(type(self), hint=self.hint), (self.message,), vars(self))


class UsageError(HarnessError):
    """The input is wrong, or this host lacks something: nothing was judged. Exit code 2."""


class InconclusiveError(HarnessError):
    """The run ended before it could be judged. Verdict INCONCLUSIVE."""


class DeadlineExpiredError(InconclusiveError):
    """A wait ran out of time.

    Attributes:
        seconds: the length of the wait, 0 if unknown.
    """

    seconds = 0.0


class MachineLostError(InconclusiveError):
    """QEMU could not be started, crashed, or stopped answering."""


class GuestLostError(InconclusiveError):
    """The guest never became ready, or stopped answering."""


class MomentMissedError(GuestLostError):
    """A transient guest state was missed; retry with a new guest."""


class GuestEndedError(GuestLostError):
    """The guest reset or powered off its machine."""


class GuestCrashedError(HarnessError):
    """The guest's kernel panicked, oopsed or hung in the scenario's own steps. Verdict FAIL.

    Args:
        message: see `HarnessError`, like `hint`.
        trace: the kernel's lines about it, in order.
        step: the step, or phase of the boot.
        kind: of the finding, see `contract.failure_signature`.
        subject: of the finding.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str,
        trace: tuple[str, ...] = (),
        step: str = "",
        kind: str = "panic",
        subject: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.trace = trace
        self.step = step
        self.kind = kind
        self.subject = subject


class PreflightError(InconclusiveError):
    """The guest did not get the machine that the scenario describes."""


class UnbuildableError(HarnessError):
    """The kernel did not build, or a patch did not apply. Verdict UNBUILDABLE."""


class NotConfigurableError(UnbuildableError):
    """The Kconfig of a source cannot give a requested option.

    Attributes:
        fragments: the files that request these options.
    """

    fragments: frozenset[str] = frozenset()
