# SPDX-License-Identifier: GPL-2.0-or-later
"""What a user asks of a kernel: where it comes from, and how it is to be built."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Toolchain = Literal["gcc", "clang"]


@dataclass(frozen=True)
class KernelRequest:
    """A kernel SPEC with all that shapes a build.

    Attributes:
        spec: such as `debian:7.2` or `build:~/linux@v7.1`.
        configs: names of fragments on top of the base configuration, in order; see `kconfig`.
        series: a folder or mbox of patches to apply, or None.
        upto: stop after this many patches, counted from 1; None applies all.
        toolchain: what compiles.
        stored: the key of the store's entry that this very request led to elsewhere, with which
            nothing is fetched or built; None to find out.
    """

    spec: str
    configs: tuple[str, ...] = ()
    series: Path | None = None
    upto: int | None = None
    toolchain: Toolchain = "gcc"
    stored: str | None = None

    @property
    def shapes_build(self) -> bool:
        """Whether anything is asked that only a build can give."""
        return self != KernelRequest(self.spec)

    def __str__(self) -> str:
        """The SPEC and the options, as they are typed."""
        words = [shlex.quote(self.spec)]
        if self.configs:
            words += ["--config", ",".join(self.configs)]
        if self.series is not None:
            words += ["--series", shlex.quote(str(self.series))]
        if self.upto is not None:
            words += ["--upto", str(self.upto)]
        if self.toolchain == "clang":
            words.append("--llvm")
        return " ".join(words)


def request_of_options(
    spec: str, configs: str, series: Path | None, *, llvm: bool, upto: int | None = None
) -> KernelRequest:
    """The request that the options of a command make.

    Args:
        spec: what `--kernel` says.
        configs: what `--config` says: names with commas between.
        series: what `--series` says.
        llvm: whether `--llvm` is there.
        upto: what `--upto` says.
    """
    names = tuple(name.strip() for name in configs.split(",") if name.strip())
    return KernelRequest(spec, names, series, upto, "clang" if llvm else "gcc")


def as_request(asked: str | KernelRequest) -> KernelRequest:
    """The request that a bare SPEC stands for, or the request itself."""
    return KernelRequest(asked) if isinstance(asked, str) else asked


def with_configs(asked: KernelRequest, needed: Iterable[str]) -> KernelRequest:
    """What was asked for, with fragments that must be on top.

    No distribution ships a kernel with fragments: a prebuilt version then stands for the same
    version, built from the distribution's source.
    """
    configs = tuple(name for name in needed if name not in asked.configs)
    if not configs or asked.spec.startswith("image:"):
        return asked
    spec = f"build:{asked.spec}" if asked.spec.startswith("debian:") else asked.spec
    return replace(asked, spec=spec, configs=(*asked.configs, *configs))
