# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that the store has: how their folder reads. Light to import: every run starts here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UsageError
from harness.model.kernel import Kernel

if TYPE_CHECKING:
    from harness.apt import Package

# To be changed when the content of an entry changes: old entries are then not found any more.
KIND = "kernels"
_MANIFEST = "manifest.json"


def write_manifest(folder: Path, *, spec: str, release: str, packages: Iterable[Package]) -> None:
    """Say in an entry what it was made from."""
    listed = [
        {"name": one.name, "version": one.version, "suite": one.suite, "sha256": one.sha256}
        for one in packages
    ]
    content = {"spec": spec, "release": release, "packages": listed}
    (folder / _MANIFEST).write_text(json.dumps(content, indent=1) + "\n")


def read_stored(spec: str, entry: Path) -> Kernel:
    """The kernel in a store entry, as a user named it.

    Raises:
        UsageError: something has damaged the entry.
    """
    try:
        release = json.loads((entry / _MANIFEST).read_text())["release"]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"the stored kernel is damaged: {error}",
            where=str(entry),
            hint="delete this folder, and the kernel is fetched again",
        ) from error
    return Kernel(
        spec=spec,
        release=release,
        image=entry / "vmlinuz",
        modules=entry / "modules",
        config=entry / "config",
        identity=entry.name,
    )
