# SPDX-License-Identifier: GPL-2.0-or-later
"""The version of the harness, with a digest of its files."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from harness.core.paths import PROJECT


@cache
def harness_version() -> str:
    """Return the version of this package, with a digest of all files that affect a run."""
    digest = hashlib.sha256()
    for folder, pattern in (
        ("harness", "*.py"),
        ("harness", "*.sh"),
        ("kernel_configs", "*.config"),
        ("qemu_profiles", "*"),
        ("tests/scenarios", "*.yaml"),
        ("tests", "*.yaml"),
    ):
        paths = (PROJECT / folder).rglob(pattern) if folder == "harness" else None
        for path in sorted(paths or (PROJECT / folder).glob(pattern)):
            digest.update(f"{path.relative_to(PROJECT)}\0".encode() + path.read_bytes())
    try:
        number = version("cxl-ownership-harness")
    except PackageNotFoundError:
        number = "unknown"
    return f"{number}+{digest.hexdigest()[:12]}"
