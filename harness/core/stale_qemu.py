# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMUs of the harness whose harness is gone, and their end. See docs/reliability.md."""

from __future__ import annotations

import functools
import logging
import os
import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

_PROC = Path("/proc")
# Every QEMU has this in its environment: which harness started it.
_OWNER = "CXL_OWNERSHIP_HARNESS_OWNER"
# How qemu_profiles/machine.j2 gives a guest's console to the harness: nobody else does it so.
_CONSOLE = re.compile(r"file,id=console,path=/dev/fd/\d+,logfile=(?P<log>.+),logappend=(?:on|off)")
_HARNESS = re.compile(r"(?:^|/)(?:python[\d.]*|harness|pytest)$")
_TOO_DEEP = 64


@dataclass(frozen=True)
class Orphan:
    """A QEMU that nobody waits for.

    Attributes:
        pid: its process number.
        log: the file to which it writes its console.
    """

    pid: int
    log: str


def owner_environment() -> dict[str, str]:
    """What to put into the environment of a QEMU, so that a later harness knows whose it was."""
    return {_OWNER: _identity(_PROC, "self")}


@functools.cache
def reap_orphans_once() -> None:
    """Before the first guest of this process: see `reap_orphans`."""
    for one in reap_orphans():
        log.warning(
            "killed process %d, a QEMU of a harness that is gone; it wrote to %s", one.pid, one.log
        )


def reap_orphans(proc: Path = _PROC) -> tuple[Orphan, ...]:
    """Kill the user's QEMUs that are proved to be those of a harness that is gone.

    The proof: the environment that the process was started with names the harness, by process
    number and start time, in these namespaces, and there is no such process any more. A process
    of which less is known is left alone: `find_orphans` names it.

    Args:
        proc: where the kernel shows processes.

    Returns:
        Those that were killed.
    """
    killed = []
    for folder in _own_processes(proc):
        pid = int(folder.name)
        with suppress(OSError):
            if not _owner_is_gone(proc, folder):
                continue
            handle = os.pidfd_open(pid)
            try:
                # The handle stays with one process: what is seen now is true of what it names.
                if _owner_is_gone(proc, folder):
                    console = _console(folder) or "no file"
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    killed.append(Orphan(pid, console))
            finally:
                os.close(handle)
    return tuple(killed)


def find_orphans(proc: Path = _PROC) -> tuple[Orphan, ...]:
    """The user's QEMUs whose command line is the harness's and which has none above it.

    A QEMU is a child of the harness that started it, or a child of a wrapper of `--qemu` that is,
    until that ends. One that has what could be a harness above it is left out.

    Args:
        proc: where the kernel shows processes.
    """
    found = []
    for folder in _own_processes(proc):
        with suppress(OSError):
            console = _console(folder)
            if console is not None and not _below_a_harness(proc, folder):
                found.append(Orphan(int(folder.name), console))
    return tuple(sorted(found, key=lambda one: one.pid))


def _own_processes(proc: Path) -> Iterator[Path]:
    for folder in proc.glob("[0-9]*"):
        with suppress(OSError):
            if folder.stat().st_uid == os.getuid():
                yield folder


def _console(folder: Path) -> str | None:
    for word in _words(folder, "cmdline"):
        if match := _CONSOLE.fullmatch(word):
            return match["log"].replace(",,", ",")
    return None


def _owner_is_gone(proc: Path, folder: Path) -> bool:
    marks = [word for word in _words(folder, "environ") if word.startswith(f"{_OWNER}=")]
    if len(marks) != 1:
        return False
    owner = marks[0].partition("=")[2]
    spaces, _, rest = owner.rpartition(" ")[0].rpartition(" ")
    if not rest.isdecimal() or spaces != _namespaces(proc, "self"):
        return False
    try:
        return _identity(proc, rest) != owner
    except FileNotFoundError:
        return True


def _identity(proc: Path, pid: str) -> str:
    """A process, told apart from all others of this boot: namespaces, number and start time."""
    state = _state(proc / pid)
    spaces = _namespaces(proc, "self")
    # A zombie starts nothing and waits for nothing; one of its threads might.
    if state[0] in "ZX" and state[17] in "01":
        return f"{spaces} {pid} ended"
    number = os.getpid() if pid == "self" else int(pid)
    return f"{spaces} {number} {state[19]}"


def _namespaces(proc: Path, pid: str) -> str:
    """Those in which a process number and a start time mean the same."""
    return " ".join(_namespace(proc / pid / "ns" / kind) for kind in ("pid", "time"))


def _namespace(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return "none"  # a kernel before 5.6, or one without them


def _words(folder: Path, name: str) -> list[str]:
    return (folder / name).read_bytes().decode(errors="replace").split("\0")


def _state(folder: Path) -> list[str]:
    """The fields of proc_pid_stat(5) from the third: behind the name, which may be anything."""
    return (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()


def _below_a_harness(proc: Path, folder: Path) -> bool:
    for _ in range(_TOO_DEEP):
        parent = _state(folder)[1]
        folder = proc / parent
        if parent == "0" or not folder.is_dir():
            return False
        if any(_HARNESS.search(word) for word in _words(folder, "cmdline")[:3]):
            return True
    return True
