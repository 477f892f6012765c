# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel versions, to be compared."""

from __future__ import annotations

import re

VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?", re.ASCII)


def kernel_version(release: str) -> tuple[int, int, int]:
    """The version that a release, as `uname -r` prints it, begins with; zeros when with none.

    A release candidate counts as what it is a candidate for.
    """
    match = VERSION.match(release)
    if match is None:
        return (0, 0, 0)
    return (int(match[1]), int(match[2]), int(match[3] or 0))
