# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong, by who has to act on it. Only the doors turn these into exit codes."""

from __future__ import annotations


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
        return f"{head}\n  hint: {self.hint}"

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders under pytest-xdist; keyword-only arguments need help.
        return (_rebuild, (type(self), self.message, self.hint, self.where))


def _rebuild(kind: type[HarnessError], message: str, hint: str, where: str | None) -> HarnessError:
    return kind(message, hint=hint, where=where)


class UsageError(HarnessError):
    """The input is wrong, or this machine lacks something: nothing was judged. Exit code 2."""


class InconclusiveError(HarnessError):
    """The run ended without a judgement. Verdict INCONCLUSIVE."""


class DeadlineExpiredError(InconclusiveError):
    """A wait ran out of time."""


class MachineLostError(InconclusiveError):
    """QEMU could not be started, died, or stopped answering."""


class GuestLostError(InconclusiveError):
    """The guest never became ready, or stopped answering."""


class GuestCrashedError(HarnessError):
    """The guest's kernel panicked or oopsed after it was ready: the scenario's own steps did it.

    Verdict FAIL, once the console tail has been read.
    """


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
