# SPDX-License-Identifier: GPL-2.0-or-later
"""Find the kernels in a list of Debian packages, and choose one by its version."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from debian.debian_support import NativeVersion

from harness.core.errors import UsageError
from harness.debian.apt import AnyPackage, Package

PACKAGES = r"linux-(image|binary|binary-unsigned|modules|base)-\d\S*-cloud-amd64"

_PACKAGE = re.compile(r"linux-(image|binary-unsigned|binary|modules|base)-(\d\S*-cloud-amd64)")
_SPLIT = ("binary", "modules", "base")
_STUB_SIZE = 1_000_000
MOST_TRIES = 5
_BUILD_HINT = "a kernel built from its source package can be used with image:PATH"
_Listed = TypeVar("_Listed")


@dataclass(frozen=True)
class DebianKernel:
    """A kernel in Debian's archive.

    Attributes:
        release: what `uname -r` prints.
        version: of the packages, such as `7.2.13-1`.
        packages: all packages of the kernel, by name; empty when the archive lacks one.
        lacks: names of the packages that the archive lacks.
    """

    release: str
    version: str
    packages: tuple[Package, ...]
    lacks: tuple[str, ...] = ()

    @property
    def upstream(self) -> str:
        """The kernel's own version, such as `7.2.13` or `7.3-rc7`."""
        return upstream_version(self.version)

    @property
    def series(self) -> str:
        """The first two numbers of the version, such as `7.2`."""
        return series_of(self.version)

    def matches(self, version: str) -> bool:
        """Return whether a user's version, such as `7.2`, means this kernel.

        The release and the full version of the packages are accepted too.
        """
        return version == self.release or matches_version(self.version, version)


def upstream_version(version: str) -> str:
    """Return the kernel version in a package version, such as `7.2.13` or `7.3-rc7`."""
    return version.rpartition("-")[0].replace("~rc", "-rc")


def series_of(version: str) -> str:
    """Return the first two numbers of a package version, such as `7.2`."""
    return ".".join(re.split(r"[.-]", upstream_version(version))[:2])


def matches_version(version: str, requested: str) -> bool:
    """Return whether a package version is the requested one, or begins with it up to a dot."""
    prefix, upstream = requested.replace("~rc", "-rc"), upstream_version(version)
    return requested == version or f"{upstream}.".startswith((f"{prefix}.", f"{prefix}-rc"))


def by_version(listed: Iterable[AnyPackage]) -> list[AnyPackage]:
    """Return packages sorted by version, the oldest first."""
    return sorted(listed, key=lambda package: NativeVersion(package.version))


def list_kernels(packages: Iterable[Package]) -> tuple[DebianKernel, ...]:
    """Return the kernels in a list of packages, complete or not, the oldest first."""
    by_kernel: dict[tuple[str, str], dict[str, Package]] = {}
    for package in sorted(packages):
        if match := _PACKAGE.fullmatch(package.name):
            parts = by_kernel.setdefault((match[2], package.version), {})
            parts.setdefault(match[1], package)
    kernels = [_kernel(*key, parts) for key, parts in by_kernel.items()]
    return tuple(
        sorted(kernels, key=lambda kernel: (NativeVersion(kernel.version), kernel.release))
    )


def newest_of_each(
    listed: Sequence[_Listed],
    series: Callable[[_Listed], str],
    available: Callable[[_Listed], bool],
) -> tuple[_Listed, ...]:
    """Return the newest of each series that the mirror really has.

    Args:
        listed: the oldest first.
        series: returns the series of one, such as `7.2`.
        available: queries the mirror.
    """
    found: list[_Listed] = []
    for name in dict.fromkeys(map(series, listed)):
        newest = [kernel for kernel in reversed(listed) if series(kernel) == name][:MOST_TRIES]
        found += islice(filter(available, newest), 1)
    return tuple(found)


def choose_kernel(
    kernels: Sequence[DebianKernel],
    version: str,
    available: Callable[[DebianKernel], bool] = lambda kernel: True,
) -> DebianKernel:
    """Return the newest complete kernel of a version.

    Args:
        kernels: the oldest first.
        version: such as `7.2`, `7.2.12` or `7.3-rc7`.
        available: queries the mirror for a kernel, for the hint of the error.

    Raises:
        UsageError: the archive lacks the version, or a package of it.
    """
    matching = [kernel for kernel in kernels if kernel.matches(version)]
    complete = [kernel for kernel in matching if not kernel.lacks]
    if complete:
        return complete[-1]
    offered = [kernel for kernel in kernels if not kernel.lacks]
    newest_ones = newest_of_each(offered, lambda kernel: kernel.series, available)
    newest = ", ".join(kernel.upstream for kernel in newest_ones) or "none"
    if matching:
        last = matching[-1]
        raise UsageError(
            f"Debian's archive lacks a part of Linux {last.upstream}: {', '.join(last.lacks)}",
            where=f"debian:{version}",
            hint=f"complete are {newest}; {_BUILD_HINT}",
        )
    series = ".".join(re.split(r"[.~-]", version)[:2])
    close = (kernel for kernel in offered if kernel.series == series and available(kernel))
    near = ", ".join(dict.fromkeys(kernel.upstream for kernel in close))
    raise UsageError(
        f"Debian's archive has no cloud-amd64 kernel of version {version}",
        where=f"debian:{version}",
        hint=f"the newest of each series are {newest}" + (f"; near it: {near}" if near else ""),
    )


def _kernel(release: str, version: str, parts: dict[str, Package]) -> DebianKernel:
    # A signed image appears a day after the unsigned one; the harness does not use its signature.
    binary = parts.get("binary") or parts.get("binary-unsigned")
    image = parts.get("image")
    if binary is None and image is not None and image.size >= _STUB_SIZE:
        return DebianKernel(release, version, (image,))
    found = {"binary": binary, "modules": parts.get("modules"), "base": parts.get("base")}
    lacks = tuple(f"linux-{part}-{release}" for part in _SPLIT if found[part] is None)
    complete = tuple(package for package in found.values() if package is not None)
    return DebianKernel(release, version, () if lacks else complete, lacks)
