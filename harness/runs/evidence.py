# SPDX-License-Identifier: GPL-2.0-or-later
"""The folder in which a run writes down what it does, before it does it."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.core.errors import UsageError


class Evidence:
    """One run's folder.

    Args:
        folder: an existing, empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Where a file of this name goes."""
        return self.folder / name

    def text(self, name: str, content: str) -> None:
        """Write a text file, whole or not at all."""
        path = self.path(name)
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_text(content, errors="replace")
        part.replace(path)

    def json(self, name: str, content: Any) -> None:
        """Write a JSON file, whole or not at all."""
        self.text(name, json.dumps(content, indent=2, default=str) + "\n")

    def command(self, name: str, argv: Sequence[str]) -> None:
        """Write a command line, an option a line, ready to paste."""
        words = [shlex.quote(word) for word in argv]
        lines: list[str] = []
        for word in words:
            if word.startswith("-") or not lines:
                lines.append(word)
            else:
                lines[-1] += f" {word}"
        self.text(name, " \\\n  ".join(lines) + "\n")


def new_evidence(root: Path, scenario: str, release: str) -> Evidence:
    """Make a new folder below `root`, named by time, scenario and kernel.

    Raises:
        UsageError: it cannot be made.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    folder = root / f"{stamp}-{scenario}-{release}-{secrets.token_hex(3)}"
    try:
        folder.mkdir(parents=True, mode=0o755)
    except OSError as error:
        raise UsageError(
            f"evidence cannot be written: {os.strerror(error.errno or 0)}",
            where=str(root),
            hint="free some space, or name another folder with --evidence or HARNESS_EVIDENCE",
        ) from None
    return Evidence(folder)
