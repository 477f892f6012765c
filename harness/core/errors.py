# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong, by who has to act on it. Only the doors turn these into exit codes."""

from __future__ import annotations

import re

# What a message quotes, of a build say, may be meant for the terminal of who reads it.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """A text with ? for characters that control a terminal, but for tabs and line ends."""
    return _UNPRINTABLE.sub("?", text)


class HarnessError(Exception):
    """Something went wrong: what, where, and what to do about it.

    Args:
        message: what is wrong, one sentence without a trailing period.
        hint: what the reader can do about it.
        where: file, line and field, or the command, that it is about.
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
        # Exceptions cross process borders under pytest-xdist; keyword-only arguments need help.
        return (_rebuild, (type(self), self.message, vars(self)))


def _rebuild(kind: type[HarnessError], message: str, attributes: dict[str, object]) -> HarnessError:
    error = kind(message, hint="")
    vars(error).update(attributes)
    return error


class UsageError(HarnessError):
    """The input is wrong, or this machine lacks something: nothing was judged. Exit code 2."""


class InconclusiveError(HarnessError):
    """The run ended without a judgement. Verdict INCONCLUSIVE."""


class DeadlineExpiredError(InconclusiveError):
    """A wait ran out of time.

    Attributes:
        seconds: for how long was waited, 0 where nobody says.
    """

    seconds = 0.0


class MachineLostError(InconclusiveError):
    """QEMU could not be started, died, or stopped answering."""


class GuestLostError(InconclusiveError):
    """The guest never became ready, or stopped answering."""


class MomentMissedError(GuestLostError):
    """The guest was to be caught in a state that passes, and was not: another one may be."""


class GuestEndedError(GuestLostError):
    """The guest ended its machine: it reset or powered off."""


class GuestCrashedError(HarnessError):
    """The guest's kernel broke in the scenario's own steps: a panic, an oops, a hang. Verdict FAIL.

    Args:
        message: what is wrong.
        hint: what the reader can do about it.
        where: what it is about.
        trace: the kernel's own lines about it, as they came.
        step: in which step, or phase of the boot.
        hung: whether the step does not return, and no line of the kernel says why.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str,
        where: str | None = None,
        trace: tuple[str, ...] = (),
        step: str = "",
        hung: bool = False,
    ) -> None:
        super().__init__(message, hint=hint, where=where)
        self.trace = trace
        self.step = step
        self.hung = hung


class PreflightError(InconclusiveError):
    """The guest did not get the machine that the scenario asked for."""


class UnbuildableError(HarnessError):
    """The kernel did not build, or a patch did not apply. Verdict UNBUILDABLE."""


class NotConfigurableError(UnbuildableError):
    """A source whose Kconfig does not give what was asked for.

    Attributes:
        fragments: the files that ask for the options that it does not give.
    """

    fragments: frozenset[str] = frozenset()
