# SPDX-License-Identifier: GPL-2.0-or-later
"""Paths of the project's data, the store and the evidence."""

from __future__ import annotations

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PROFILES = PROJECT / "qemu_profiles"
SCENARIOS = PROJECT / "tests" / "scenarios"
KNOWN_ISSUES = PROJECT / "tests" / "known_issues.yaml"
QEMU_QUIRKS = PROJECT / "tests" / "qemu_quirks.yaml"

_NAME = "cxl-ownership-harness"


def store_root() -> Path:
    """Return the folder of kernels, initramfs and other cached files.

    HARNESS_STORE, or the user's XDG cache folder.
    """
    override = os.environ.get("HARNESS_STORE")
    if override:
        return Path(override).absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / _NAME


def evidence_root() -> Path:
    """Return the default folder for the evidence of runs.

    HARNESS_EVIDENCE, or the user's XDG state folder.
    """
    override = os.environ.get("HARNESS_EVIDENCE")
    if override:
        return Path(override).absolute()
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / _NAME / "runs"
