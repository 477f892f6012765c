# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of Debian's packages make up a kernel, and which kernel a version stands for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from harness.core.errors import UsageError
from harness.debian.apt import Package

PACKAGES = r"linux-(image|binary|binary-unsigned|modules|base)-\d\S*-cloud-amd64"

_PACKAGE = re.compile(r"linux-(image|binary-unsigned|binary|modules|base)-(\d\S*-cloud-amd64)")
_SPLIT = ("binary", "modules", "base")
_STUB_SIZE = 1_000_000
_MOST_TRIES = 5
_BUILD_HINT = "a kernel built from its source package can be used with image:PATH"
_Listed = TypeVar("_Listed")


@dataclass(frozen=True)
class DebianKernel:
    """A kernel in Debian's archive.

    Attributes:
        release: what `uname -r` prints.
        version: of the packages, such as `7.2.13-1`.
        packages: all that it takes, by name; empty when the archive lacks some.
        lacks: what the archive lacks of it, as package names.
    """

    release: str
    version: str
    packages: tuple[Package, ...]
    lacks: tuple[str, ...] = ()

    @property
    def upstream(self) -> str:
        """The kernel's own version, such as `7.2.13` or `7.3-rc7`."""
        return self.version.rpartition("-")[0].replace("~rc", "-rc")

    @property
    def minor(self) -> str:
        """The first two numbers of the version, such as `7.2`."""
        return ".".join(re.split(r"[.-]", self.upstream)[:2])

    def is_of(self, version: str) -> bool:
        """Whether the version begins with the one asked for, up to a dot, or is it exactly.

        The release and the full version of the packages are understood too.
        """
        asked = version.replace("~rc", "-rc")
        return version in (self.release, self.version) or (
            self.upstream == asked or self.upstream.startswith((f"{asked}.", f"{asked}-rc"))
        )


def list_kernels(packages: Iterable[Package]) -> tuple[DebianKernel, ...]:
    """The kernels that a listing of packages has, complete or not, oldest first."""
    by_kernel: dict[tuple[str, str], dict[str, Package]] = {}
    for package in sorted(packages):
        if match := _PACKAGE.fullmatch(package.name):
            parts = by_kernel.setdefault((match[2], package.version), {})
            parts.setdefault(match[1], package)
    kernels = [_kernel(*key, parts) for key, parts in by_kernel.items()]
    return tuple(sorted(kernels, key=lambda one: (version_key(one.version), one.release)))


def newest_of_each(
    listed: Sequence[_Listed], series: Callable[[_Listed], str], is_there: Callable[[_Listed], bool]
) -> tuple[_Listed, ...]:
    """The newest of each series that the mirror really has.

    Args:
        listed: oldest first.
        series: the series of one, such as `7.2`.
        is_there: asks the mirror.
    """
    found: list[_Listed] = []
    for name in dict.fromkeys(map(series, listed)):
        newest = [one for one in reversed(listed) if series(one) == name][:_MOST_TRIES]
        found += islice(filter(is_there, newest), 1)
    return tuple(found)


def choose_kernel(
    kernels: Sequence[DebianKernel],
    version: str,
    is_there: Callable[[DebianKernel], bool] = lambda one: True,
) -> DebianKernel:
    """The newest complete kernel of a version.

    Args:
        kernels: oldest first.
        version: such as `7.2`, `7.2.12` or `7.3-rc7`.
        is_there: asks the mirror whether it has one, for a hint.

    Raises:
        UsageError: there is none.
    """
    matching = [one for one in kernels if one.is_of(version)]
    complete = [one for one in matching if not one.lacks]
    if complete:
        return complete[-1]
    offered = [one for one in kernels if not one.lacks]
    had = newest_of_each(offered, lambda one: one.minor, is_there)
    newest = ", ".join(one.upstream for one in had) or "none"
    if matching:
        last = matching[-1]
        raise UsageError(
            f"Debian's archive lacks a part of Linux {last.upstream}: {', '.join(last.lacks)}",
            where=f"debian:{version}",
            hint=f"complete are {newest}; {_BUILD_HINT}",
        )
    near = _nearby(offered, version, is_there)
    raise UsageError(
        f"Debian's archive has no cloud-amd64 kernel of version {version}",
        where=f"debian:{version}",
        hint=f"the newest of each series are {newest}" + (f"; near it: {near}" if near else ""),
    )


def version_key(version: str) -> tuple[object, ...]:
    """A sort key that orders Debian package versions as dpkg does.

    The rules are those of Debian Policy, section 5.6.12.
    """
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, dash, revision = rest.rpartition("-")
    if not dash:
        upstream, revision = rest, "0"
    return int(epoch), _ordering(upstream), _ordering(revision)


def _kernel(release: str, version: str, parts: dict[str, Package]) -> DebianKernel:
    # A signed image appears a day after the unsigned one; nothing here checks its signature.
    binary = parts.get("binary") or parts.get("binary-unsigned")
    image = parts.get("image")
    if binary is None and image is not None and image.size >= _STUB_SIZE:
        return DebianKernel(release, version, (image,))
    found = {"binary": binary, "modules": parts.get("modules"), "base": parts.get("base")}
    lacks = tuple(f"linux-{part}-{release}" for part in _SPLIT if found[part] is None)
    complete = tuple(one for one in found.values() if one is not None)
    return DebianKernel(release, version, () if lacks else complete, lacks)


def _nearby(
    kernels: Sequence[DebianKernel], version: str, is_there: Callable[[DebianKernel], bool]
) -> str:
    """Kernels of the same series as a version that does not exist."""
    series = ".".join(re.split(r"[.~-]", version)[:2])
    found = (one for one in kernels if one.minor == series and is_there(one))
    return ", ".join(dict.fromkeys(one.upstream for one in found))


def _ordering(text: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Words and numbers in turn; in a word a tilde sorts before its end, letters before others."""
    pairs = re.findall(r"(\D*)(\d*)", text)
    return tuple(((*map(_rank, word), 0), int(number or 0)) for word, number in pairs)


def _rank(sign: str) -> int:
    if sign == "~":
        return -1
    return ord(sign) if sign.isalpha() else ord(sign) + 256
