# SPDX-License-Identifier: GPL-2.0-or-later
"""Find and kill QEMU processes that an earlier harness left running. See docs/reliability.md."""

from __future__ import annotations

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
# In the environment of every QEMU: the harness that started it.
_OWNER = "CXL_OWNERSHIP_HARNESS_OWNER"
# The console option of qemu_profiles/machine.j2, which no other program uses.
_CONSOLE = re.compile(r"file,id=console,path=/dev/fd/\d+,logfile=(?P<log>.+),logappend=(?:on|off)")
_HARNESS = re.compile(r"(?:^|/)(?:python[\d.]*|harness|pytest)$")
_TOO_DEEP = 64


@dataclass(frozen=True)
class Orphan:
    """A QEMU whose harness has ended.

    Attributes:
        log: the file to which it writes its console.
    """

    pid: int
    log: str


def owner_environment() -> dict[str, str]:
    """Return the environment variable of a QEMU that names this harness."""
    return {_OWNER: _identity(_PROC, "self")}


def reap_orphans(proc: Path = _PROC) -> tuple[Orphan, ...]:
    """Kill the user's QEMUs that provably belong to a harness that has ended, and log each.

    The proof: the environment that the process was started with names the harness, by process
    number and start time, in these namespaces, and that process no longer exists. Other QEMUs of
    the harness are left alone: `find_orphans` lists them.
    """
    killed = []
    for folder in _own_processes(proc):
        pid = int(folder.name)
        with suppress(OSError):
            if not _owner_is_gone(proc, folder):
                continue
            handle = os.pidfd_open(pid)
            try:
                # The handle keeps the process number from being reused.
                if _owner_is_gone(proc, folder):
                    console = _console(folder) or "no file"
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    killed.append(Orphan(pid, console))
                    log.warning(
                        "killed process %d, a QEMU of a harness that has ended; it wrote to %s",
                        pid,
                        console,
                    )
            finally:
                os.close(handle)
    return tuple(killed)


def find_orphans(proc: Path = _PROC) -> tuple[Orphan, ...]:
    """Return the user's QEMUs with a command line of the harness and no harness as an ancestor.

    A QEMU is a child of the harness that started it, or of a wrapper that `--qemu` names. One with
    an ancestor that may be a harness is left out.
    """
    found = []
    for folder in _own_processes(proc):
        with suppress(OSError):
            console = _console(folder)
            if console is not None and not _below_a_harness(proc, folder):
                found.append(Orphan(int(folder.name), console))
    return tuple(sorted(found, key=lambda orphan: orphan.pid))


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
    owners = [word for word in _words(folder, "environ") if word.startswith(f"{_OWNER}=")]
    if len(owners) != 1:
        return False
    owner = owners[0].partition("=")[2]
    spaces, _, rest = owner.rpartition(" ")[0].rpartition(" ")
    if not rest.isdecimal() or spaces != _namespaces(proc, "self"):
        return False
    try:
        return _identity(proc, rest) != owner
    except FileNotFoundError:
        return True


def _identity(proc: Path, pid: str) -> str:
    """Return namespaces, number and start time of a process, which are unique in this boot."""
    state = _state(proc / pid)
    spaces = _namespaces(proc, "self")
    # A zombie has ended, unless it has other threads.
    if state[0] in "ZX" and state[17] in "01":
        return f"{spaces} {pid} ended"
    number = os.getpid() if pid == "self" else int(pid)
    return f"{spaces} {number} {state[19]}"


def _namespaces(proc: Path, pid: str) -> str:
    """Return the namespaces that give process numbers and start times their meaning."""
    return " ".join(_namespace(proc / pid / "ns" / kind) for kind in ("pid", "time"))


def _namespace(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return "none"  # a kernel before 5.6, or one without them


def _words(folder: Path, name: str) -> list[str]:
    return (folder / name).read_bytes().decode(errors="replace").split("\0")


def _state(folder: Path) -> list[str]:
    """Return the fields of proc_pid_stat(5) after the name, which may contain any text."""
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
