# SPDX-License-Identifier: GPL-2.0-or-later
"""Parse kernel versions, for comparisons."""

from __future__ import annotations

import re

VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?", re.ASCII)


def kernel_version(release: str) -> tuple[int, int, int]:
    """Parse the version at the start of a release of `uname -r`; zeros without a version.

    A release candidate counts as the final version.
    """
    match = VERSION.match(release)
    if match is None:
        return (0, 0, 0)
    return (int(match[1]), int(match[2]), int(match[3] or 0))
