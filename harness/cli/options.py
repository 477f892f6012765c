# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that commands share, and the exit code of each error."""

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
    """Print an error as one message and exit with its code."""

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        signal.signal(signal.SIGTERM, _terminated)
        try:
            return command(*args, **kwargs)
        except HarnessError as error:
            _print_error(f"harness: {error}")
            sys.exit(_exit_code(error))
        except (click.ClickException, click.exceptions.Exit):
            raise
        except BrokenPipeError:
            # The reader of the output has exited: print nothing more, not even at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        except OSError as error:
            # Never status 1, which means that a kernel broke the contract.
            _print_error(f"harness: {error}\n  hint: {_remedy(error)}")
            sys.exit(Verdict.INCONCLUSIVE.exit_code)
        except MemoryError:
            _print_error(
                "harness: out of memory; nothing was judged\n"
                "  hint: free some memory, run fewer guests (--jobs 1), or raise ulimit -v"
            )
            sys.exit(Verdict.INCONCLUSIVE.exit_code)
        except Exception:
            _print_error(traceback.format_exc())
            _print_error(
                "harness: this is a bug in the harness; nothing was judged\n"
                "  hint: report the lines above together with the evidence of the run"
            )
            sys.exit(Verdict.INCONCLUSIVE.exit_code)
        except KeyboardInterrupt:
            _print_error("harness: interrupted")
            sys.exit(128 + signal.SIGINT)

    return guarded  # type: ignore[return-value]


def _print_error(text: str) -> None:
    """Print to standard error. A closed pipe there must not change the exit code."""
    with suppress(OSError):
        click.echo(text, err=True)


_REMEDIES = {
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): "free some space, raise the quota or ulimit -f, or "
    "set HARNESS_STORE, HARNESS_EVIDENCE and TMPDIR to folders on another disk",
    (errno.EMFILE, errno.ENFILE): "raise ulimit -n, or run fewer guests (--jobs 1)",
    (errno.ENOMEM, errno.EAGAIN): "free some memory, run fewer guests (--jobs 1), or raise "
    "ulimit -v and -u",
    (errno.EACCES, errno.EPERM, errno.EROFS): "check the owner and permissions of the path above",
    (errno.EIO,): "check the disk for errors; see dmesg",
}


def _remedy(error: OSError) -> str:
    for numbers, remedy in _REMEDIES.items():
        if error.errno in numbers:
            return remedy
    return "check the path above, and run the command again"


def _terminated(_signal: int, _frame: object) -> None:
    # An exception, so that every `with` block is left and cleans up.
    sys.exit(128 + signal.SIGTERM)


def _exit_code(error: HarnessError) -> int:
    if isinstance(error, UnbuildableError):
        return Verdict.UNBUILDABLE.exit_code
    if isinstance(error, InconclusiveError):
        return Verdict.INCONCLUSIVE.exit_code
    return USAGE


@dataclass(frozen=True)
class GuestOptions:
    """Options for running and judging guests.

    Attributes:
        policy: None for the policy that the kernel's series names.
        qemu: None for HARNESS_QEMU, else the one on PATH.
        evidence: parent folder of the evidence of each guest.
        timeout: seconds until a guest must be ready.
        jobs: concurrent guests, None for the number of cores.
        build: scenarios may build a kernel when a prebuilt one is requested.
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
        """Return this machine.

        Raises:
            UsageError: this machine cannot run guests.
        """
        from harness.core.progress import TerminalProgress
        from harness.runs.prepare import this_host

        return this_host(TerminalProgress(), self.accel, self.qemu)

    def session(self, host: Host, request: KernelRequest, *, repeat: int = 1) -> Session:
        """Make a session of guests with these options, judged by the policy of this kernel.

        Raises:
            UsageError: the kernel's series cannot be read.
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


json_option = click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the results to this file.",
)


def accel_options(command: Command) -> Command:
    """Give a command `--accel` and `--qemu`."""
    for option in (
        click.option(
            "--accel",
            type=click.Choice(["auto", "kvm", "tcg"]),
            default="auto",
            show_default=True,
            help="Accelerator; auto uses KVM if it can boot a kernel here, else TCG.",
        ),
        click.option(
            "--qemu", metavar="PATH", help="QEMU binary, instead of HARNESS_QEMU or PATH."
        ),
    ):
        command = option(command)
    return command


def guest_options(command: Command) -> Command:
    """Give a command the options for running guests, as its argument `guests`."""

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
            show_default="that of the series, else per_range",
            help="Policy to judge by; per_range is mainline's since 7.1.",
        ),
        accel_options,
        click.option(
            "-j",
            "--jobs",
            type=click.IntRange(1, 256),
            show_default="number of cores",
            help="Number of concurrent guests.",
        ),
        click.option(
            "--start",
            type=click.Choice(["auto", "cold", "warm"]),
            default="auto",
            show_default=True,
            help="cold boots every guest, warm restores guests from a snapshot taken after boot, "
            "auto restores when a scenario has several guests.",
        ),
        click.option(
            "--build/--no-build",
            default=True,
            help="With --no-build, skip scenarios that need a kernel built for them.",
        ),
        click.option(
            "--evidence",
            type=click.Path(path_type=Path, file_okay=False),
            show_default="$HARNESS_EVIDENCE",
            help="Folder for the evidence of the runs.",
        ),
        click.option(
            "--timeout",
            type=click.IntRange(1, 24 * 3600),
            default=120,
            show_default=True,
            help="Seconds until a guest must be ready.",
        ),
    )
    for option in reversed(options):
        packed = option(packed)
    return packed  # type: ignore[return-value]


def kernel_options(command: Command) -> Command:
    """Give a command the options that select a kernel, as its argument `request`."""

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
            help="Kernel: debian:VERSION, image:PATH, build:PATH[@REF] or build:debian:VERSION.",
        ),
        click.option(
            "--config",
            "configs",
            metavar="NAME,...",
            default="",
            help="For build: fragments of kernel_configs/ to merge into the base configuration.",
        ),
        click.option(
            "--series",
            type=click.Path(path_type=Path),
            metavar="DIR|MBOX[@vN]",
            help="For build: patches to apply.",
        ),
        click.option("--llvm", is_flag=True, help="For build: compile with clang."),
    )
    for option in reversed(options):
        packed = option(packed)
    return packed  # type: ignore[return-value]
