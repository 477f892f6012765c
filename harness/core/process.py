# SPDX-License-Identifier: GPL-2.0-or-later
"""Start other programs. All programs of the harness are started here."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness.core.deadline import Deadline
from harness.core.errors import HarnessError, UsageError

log = logging.getLogger(__name__)

# A killed process ends sooner, unless it waits for broken hardware.
_REAP_SECONDS = 30.0

# A child gets no other variable of the caller's environment: no secrets, no other locale.
_KEPT_ENVIRONMENT = (
    "PATH", "HOME", "USER", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME",
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "SSL_CERT_FILE",
)  # fmt: skip


class CommandError(HarnessError):
    """A program ended with a status other than zero."""


@dataclass(frozen=True)
class Completed:
    """A program that has ended. Output is text, undecodable bytes replaced."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str


def child_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Return the allow-listed environment for a child, in the C locale, with `extra` on top."""
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    return kept | {"LC_ALL": "C.UTF-8"} | (extra or {})


def find_program(name: str, *, hint: str) -> Path:
    """Return the absolute path of a program on PATH.

    Raises:
        UsageError: it is not installed; the error has this hint.
    """
    found = shutil.which(name)
    if found is None:
        raise UsageError(f"the program {name} is not installed", hint=hint)
    return Path(found)


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    deadline: Deadline,
    check: bool = True,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    stdin: str | bytes | None = None,
    hint: str = "run the command by hand to see more",
) -> Completed:
    """Run a program to its end and return its output.

    The program is killed, with its group, when the deadline passes or the caller is interrupted.

    Raises:
        CommandError: `check` is true, and the status is not zero.
        DeadlineExpiredError: the program ran past the deadline.
    """
    with spawn(
        argv,
        cwd=cwd,
        env=env,
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        try:
            given = stdin.encode() if isinstance(stdin, str) else stdin
            out, err = child.communicate(given, timeout=deadline.check())
        except subprocess.TimeoutExpired:
            raise deadline.error() from None
    done = Completed(
        tuple(os.fspath(word) for word in argv),
        child.returncode,
        out.decode(errors="replace"),
        err.decode(errors="replace"),
    )
    if check and done.status != 0:
        tail = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-12:])
        raise CommandError(
            f"{Path(done.argv[0]).name} {ending(done.status)}" + (f":\n{tail}" if tail else ""),
            where=shlex.join(done.argv),
            hint=hint,
        )
    return done


@contextmanager
def spawn(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program that cannot outlive the block, nor this process.

    The child gets SIGKILL when the harness ends in any way. It runs in a session of its own, so
    that Ctrl-C reaches the harness first and the whole group can be killed.
    """
    words = [os.fspath(word) for word in argv]
    log.debug("starting: %s", shlex.join(words))
    # setpriv (util-linux) sets the parent-death signal after fork and before exec; a preexec_fn
    # cannot do that safely in a process with threads. If the harness was killed before that, the
    # shell has another parent and does not start the program.
    alive = ["/bin/sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"', str(os.getpid())]
    guarded = ["setpriv", "--pdeathsig", "KILL", "--", *alive, *words]
    child = subprocess.Popen(
        guarded,
        cwd=cwd,
        env=child_environment(env),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        end_group(child)


def ending(status: int) -> str:
    """Describe how a program ended; a negative status is a signal."""
    return f"ended with status {status}" if status >= 0 else f"was killed by signal {-status}"


def end_group(child: subprocess.Popen[bytes]) -> None:
    """Kill the rest of a child's process group, reap the child and close its pipes.

    The kernel does not reuse a process number while its group has a process. Once the child has
    been reaped, a process with its number, and the group of that, belong to another program.
    """
    if child.returncode is None or not os.path.exists(f"/proc/{child.pid}"):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    try:
        child.wait(_REAP_SECONDS)
    except subprocess.TimeoutExpired:
        # It waits in the kernel for a disk or a network that does not answer.
        log.warning("process %d was killed and does not end", child.pid)
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
