# SPDX-License-Identifier: GPL-2.0-or-later
"""Parse a SPEC, the name of a kernel."""

from __future__ import annotations

from dataclasses import dataclass

from harness.core.errors import UsageError

_HINT = (
    "write debian:VERSION (such as debian:7.2), image:PATH (a built tree or a bzImage), "
    "build:PATH or build:PATH@REF (a source tree), or build:debian:VERSION"
)
_SOURCES = ("debian", "image", "build", "build:debian")


@dataclass(frozen=True)
class KernelSpec:
    """The origin of a kernel.

    Attributes:
        source: `debian`, `image`, `build` or `build:debian`.
        value: the version, or the path as the user wrote it, which may end in `@REF`.
    """

    source: str
    value: str

    def __str__(self) -> str:
        return f"{self.source}:{self.value}"


def parse_kernel_spec(text: str) -> KernelSpec:
    """Parse a SPEC.

    Raises:
        UsageError: the text is not a SPEC.
    """
    source, _, value = text.strip().partition(":")
    if source == "build" and value.startswith("debian:"):
        source, value = "build:debian", value.removeprefix("debian:")
    if source not in _SOURCES or not value.strip():
        raise UsageError(f"{text!r} does not name a kernel", hint=_HINT)
    return KernelSpec(source, value.strip())
