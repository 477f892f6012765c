# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMUs of the harness whose harness is gone. There should be none: see docs/reliability.md."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
# How qemu_profiles/machine.j2 gives a guest's console to the harness: nobody else does it so.
_CONSOLE = re.compile(r"file,id=console,path=/dev/fd/\d+,logfile=(?P<log>.+),logappend=(?:on|off)")
_HARNESS = re.compile(r"(?:^|/)(?:python[\d.]*|harness|pytest)$")


@dataclass(frozen=True)
class Orphan:
    """A QEMU that nobody waits for.

    Attributes:
        pid: its process number.
        log: the file to which it writes its console.
    """

    pid: int
    log: str


def find_orphans(proc: Path = _PROC) -> tuple[Orphan, ...]:
    """The user's QEMUs whose command line is the harness's and whose parent is none.

    A QEMU is the child of the harness that started it until that ends. One whose parent could be a
    harness is left out.

    Args:
        proc: where the kernel shows processes.
    """
    found = []
    for folder in proc.glob("[0-9]*"):
        with suppress(OSError):
            if folder.stat().st_uid != os.getuid():
                continue
            logs = [match["log"] for word in _words(folder) if (match := _CONSOLE.fullmatch(word))]
            if logs and not _may_be_harness(proc / _parent(folder)):
                found.append(Orphan(int(folder.name), logs[0].replace(",,", ",")))
    return tuple(sorted(found, key=lambda one: one.pid))


def _words(folder: Path) -> list[str]:
    return (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")


def _parent(folder: Path) -> str:
    """The number of a process's parent: proc(5), behind the name, which may have anything in it."""
    return (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]


def _may_be_harness(folder: Path) -> bool:
    try:
        return any(_HARNESS.search(word) for word in _words(folder)[:3])
    except OSError:
        return False
