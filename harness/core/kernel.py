# SPDX-License-Identifier: GPL-2.0-or-later
"""A bootable kernel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kernel:
    """An image, its modules and its configuration.

    Attributes:
        spec: the SPEC that the user gave, such as `debian:7.2`.
        release: the output of `uname -r` in the guest.
        image: the bzImage.
        modules: the folder that holds `kernel/` and `modules.order`, or None for a kernel
            whose drivers are all built in.
        config: its `.config`, or None where the packager ships none.
        identity: hexadecimal digest; two kernels with the same identity boot the same bytes.
        symbols: its vmlinux, or None where the packager ships none.
        scripts: the folder with its decode_stacktrace.sh, or None.
    """

    spec: str
    release: str
    image: Path
    modules: Path | None
    config: Path | None
    identity: str
    symbols: Path | None = None
    scripts: Path | None = None
