# SPDX-License-Identifier: GPL-2.0-or-later
"""A request for a kernel: its SPEC, and the options of a build."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Toolchain = Literal["gcc", "clang"]


@dataclass(frozen=True)
class KernelRequest:
    """A kernel SPEC with the options of a build.

    Attributes:
        spec: such as `debian:7.2` or `build:~/linux@v7.1`.
        configs: names of fragments on top of the base configuration, in order; see
            `kernels.build.config`.
        series: a folder or mbox of patches to apply, or None.
        upto: stop after this many patches, counted from 1; None applies all.
        toolchain: the compiler.
        stored: the key of the store's entry that another host has resolved this request to; it is
            neither fetched nor built. None to resolve it here.
    """

    spec: str
    configs: tuple[str, ...] = ()
    series: Path | None = None
    upto: int | None = None
    toolchain: Toolchain = "gcc"
    stored: str | None = None

    @property
    def shapes_build(self) -> bool:
        """True if it has an option that only a build can satisfy."""
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
    """Return the request for the values of --kernel, --config, --series, --llvm and --upto."""
    names = tuple(name.strip() for name in configs.split(",") if name.strip())
    return KernelRequest(spec, names, series, upto, "clang" if llvm else "gcc")


def as_request(spec: str | KernelRequest) -> KernelRequest:
    """Return the request for a bare SPEC, or the request itself."""
    return KernelRequest(spec) if isinstance(spec, str) else spec


def with_configs(request: KernelRequest, needed: Iterable[str]) -> KernelRequest:
    """Return the request with more fragments on top.

    No distribution ships a kernel with fragments: a prebuilt version then means the same version,
    built from the distribution's source.
    """
    configs = tuple(name for name in needed if name not in request.configs)
    if not configs or request.spec.startswith("image:"):
        return request
    spec = f"build:{request.spec}" if request.spec.startswith("debian:") else request.spec
    return replace(request, spec=spec, configs=(*request.configs, *configs))
