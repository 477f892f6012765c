# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands share: options, and how errors become messages and exit codes."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from harness.contract.result import Verdict
from harness.core.errors import HarnessError, InconclusiveError, UnbuildableError
from harness.core.paths import evidence_root
from harness.scenario.scenario import POLICIES, Policy

if TYPE_CHECKING:
    from harness.runs.guest_pool import StartOption
    from harness.runs.prepare import Host
    from harness.runs.session import Session
    from harness.scenario.kernel_request import KernelRequest

USAGE = 2
_DEFAULT_KERNEL = "debian:7.2"

Command = TypeVar("Command", bound=Callable[..., Any])


def explains_errors(command: Command) -> Command:
    """Turn errors into one message and the exit code that belongs to them."""

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        signal.signal(signal.SIGTERM, _terminated)
        try:
            return command(*args, **kwargs)
        except HarnessError as error:
            _say(f"harness: {error}")
            sys.exit(_exit_code(error))
        except (click.ClickException, click.exceptions.Exit):
            raise
        except BrokenPipeError:
            # Who read the output has gone; nothing more can be said there, not even at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        except OSError as error:
            # Never status 1, which says that a kernel broke the contract.
            _say(f"harness: {error}\n  hint: {_what_to_do(error)}")
            sys.exit(Verdict.INCONCLUSIVE.exit_code)
        except MemoryError:
            _say(
                "harness: the machine has no memory left; nothing was judged\n"
                "  hint: close something, run fewer guests at once (--jobs 1), or raise ulimit -v"
            )
            sys.exit(Verdict.INCONCLUSIVE.exit_code)
        except Exception:
            _say(traceback.format_exc())
            _say(
                "harness: this is a defect of the harness; nothing was judged\n"
                "  hint: report the lines above, with the evidence of the run"
            )
            sys.exit(Verdict.INCONCLUSIVE.exit_code)
        except KeyboardInterrupt:
            _say("harness: interrupted")
            sys.exit(128 + signal.SIGINT)

    return guarded  # type: ignore[return-value]


def _say(text: str) -> None:
    """Say why a command ends. Where nobody listens any more, its exit code is all the same."""
    with suppress(OSError):
        click.echo(text, err=True)


_REMEDIES = {
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): "free some space, or raise the quota or ulimit -f; "
    "HARNESS_STORE, HARNESS_EVIDENCE and TMPDIR name folders on other disks",
    (errno.EMFILE, errno.ENFILE): "raise ulimit -n, or run fewer guests at once (--jobs 1)",
    (errno.ENOMEM, errno.EAGAIN): "close something, run fewer guests at once (--jobs 1), or raise "
    "ulimit -v and -u",
    (errno.EACCES, errno.EPERM, errno.EROFS): "see who owns what is named there, and whether you "
    "may write to it",
    (errno.EIO,): "is the disk sound? see dmesg",
}


def _what_to_do(error: OSError) -> str:
    """What the user can do about an error of the operating system that nobody foresaw."""
    for numbers, remedy in _REMEDIES.items():
        if error.errno in numbers:
            return remedy
    return "see whether what is named there is as it should be, and start again"


def _terminated(_signal: int, _frame: object) -> None:
    # An exception, so that every `with` on the way out does its part.
    sys.exit(128 + signal.SIGTERM)


def _exit_code(error: HarnessError) -> int:
    if isinstance(error, UnbuildableError):
        return Verdict.UNBUILDABLE.exit_code
    if isinstance(error, InconclusiveError):
        return Verdict.INCONCLUSIVE.exit_code
    return USAGE


@dataclass(frozen=True)
class GuestOptions:
    """How guests are run and judged.

    Attributes:
        policy: whose rules, None for those that the kernel's series names.
        accel: `auto`, `kvm` or `tcg`.
        qemu: the QEMU to use, None for the usual one.
        evidence: folder in which each guest's run makes its own.
        timeout: seconds that a guest may take to become ready.
        jobs: guests that run at once, None for as many as there are cores.
        build: whether scenarios may build a kernel when a prebuilt one is asked for.
        start: how guests start: `auto`, `cold` or `warm`.
    """

    policy: Policy | None
    accel: Any
    qemu: str | None
    evidence: Path
    timeout: int
    jobs: int | None
    build: bool
    start: StartOption

    def host(self) -> Host:
        """This machine.

        Raises:
            UsageError: it cannot run guests.
        """
        from harness.core.progress import TerminalProgress
        from harness.runs.prepare import this_host

        return this_host(TerminalProgress(), self.accel, self.qemu)

    def session(self, host: Host, request: KernelRequest, *, repeat: int = 1) -> Session:
        """A session of guests with these options, judged as this kernel is meant to be.

        Raises:
            UsageError: the kernel's series is none.
        """
        from harness.runs.guest_run import Judging
        from harness.runs.prepare import policy_for
        from harness.runs.session import Session, SessionOptions, default_jobs
        from harness.scenario.known_issues import load_known_issues

        policy = policy_for(self.policy, request)
        judging = Judging(policy, self.evidence, load_known_issues(), self.timeout)
        jobs = self.jobs or default_jobs()
        options = SessionOptions(jobs, repeat=repeat, build=self.build, start=self.start)
        return Session(host, judging, options)


def accel_options(command: Command) -> Command:
    """Give a command `--accel` and `--qemu`."""
    for option in (
        click.option(
            "--accel",
            type=click.Choice(["auto", "kvm", "tcg"]),
            default="auto",
            show_default=True,
            help="What runs the guest; auto takes KVM where it boots a kernel.",
        ),
        click.option(
            "--qemu", metavar="PATH", help="The QEMU to use, not HARNESS_QEMU or the one on PATH."
        ),
    ):
        command = option(command)
    return command


def guest_options(command: Command) -> Command:
    """Give a command the options of runs, as its argument `guests`."""

    @wraps(command)
    def packed(*args: Any, **kwargs: Any) -> Any:
        names = ("policy", "accel", "qemu", "timeout", "jobs", "build", "start")
        given = {name: kwargs.pop(name) for name in names}
        folder = kwargs.pop("evidence") or evidence_root()
        return command(*args, guests=GuestOptions(evidence=folder, **given), **kwargs)

    options = (
        click.option(
            "--policy",
            type=click.Choice(POLICIES),
            help="Whose rules are judged: per_range (mainline since 7.1) or all_or_nothing; "
            "without it, the policy that the series names, else per_range.",
        ),
        accel_options,
        click.option(
            "-j",
            "--jobs",
            type=click.IntRange(1, 256),
            help="Guests that run at once; as many as there are cores when it is left out.",
        ),
        click.option(
            "--start",
            type=click.Choice(["auto", "cold", "warm"]),
            default="auto",
            show_default=True,
            help="Boot every guest (cold), or restore it from one that was saved after its boot "
            "(warm); auto restores where a scenario has several guests.",
        ),
        click.option(
            "--build/--no-build",
            default=True,
            help="Without building, scenarios that no prebuilt kernel serves are skipped.",
        ),
        click.option(
            "--evidence",
            type=click.Path(path_type=Path, file_okay=False),
            help="Folder in which each run makes its own; default in the user's state folder.",
        ),
        click.option(
            "--timeout",
            type=click.IntRange(1, 24 * 3600),
            default=120,
            show_default=True,
            help="Seconds that a guest may take to become ready.",
        ),
    )
    for option in reversed(options):
        packed = option(packed)
    return packed  # type: ignore[return-value]


def kernel_options(command: Command) -> Command:
    """Give a command the options that name a kernel, as its argument `request`."""

    @wraps(command)
    def packed(*args: Any, **kwargs: Any) -> Any:
        from harness.scenario.kernel_request import request_of_options

        named = (kwargs.pop("spec"), kwargs.pop("configs"), kwargs.pop("series"))
        request = request_of_options(*named, llvm=kwargs.pop("llvm"))
        return command(*args, request=request, **kwargs)

    options = (
        click.option(
            "--kernel",
            "spec",
            default=_DEFAULT_KERNEL,
            show_default=True,
            metavar="SPEC",
            help="debian:VERSION, image:PATH, build:PATH[@REF] or build:debian:VERSION.",
        ),
        click.option(
            "--config",
            "configs",
            metavar="NAME,...",
            default="",
            help="For build: fragments of kernel_configs/ on top of the base.",
        ),
        click.option(
            "--series",
            type=click.Path(path_type=Path),
            metavar="DIR|MBOX[@vN]",
            help="For build: patches to apply.",
        ),
        click.option("--llvm", is_flag=True, help="For build: clang instead of gcc."),
    )
    for option in reversed(options):
        packed = option(packed)
    return packed  # type: ignore[return-value]
