# SPDX-License-Identifier: GPL-2.0-or-later
"""Find leftover processes of a harness, for the programs of ci/."""

from __future__ import annotations

from pathlib import Path


def processes_of(token: str) -> list[str]:
    """Return number and command line of every process with this token in its environment.

    Args:
        token: unique, such as the path of a new folder in TMPDIR.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if token.encode() in (folder / "environ").read_bytes():
                words = (folder / "cmdline").read_bytes().split(b"\0")
                found.append(f"{folder.name} {b' '.join(words)[:120].decode(errors='replace')}")
        except OSError:
            continue
    return found
