# SPDX-License-Identifier: GPL-2.0-or-later
"""What programs leave running: for those of ci/ that look whether a harness leaves anything."""

from __future__ import annotations

from pathlib import Path


def processes_of(token: str) -> list[str]:
    """Numbers and command lines of everything that was started with this word in its environment.

    Args:
        token: nothing else has it there, such as the path of a new folder that TMPDIR names.
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
