# SPDX-License-Identifier: GPL-2.0-or-later
"""The SPEC with which a user names a kernel."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import UsageError

_HINT = "write debian:VERSION (such as debian:7.2) or image:PATH (a built tree or a bzImage)"


@dataclass(frozen=True)
class KernelSpec:
    """Where a kernel comes from.

    Attributes:
        source: `debian` or `image`.
        value: the version, or the path as the user wrote it.
    """

    source: str
    value: str

    def __str__(self) -> str:
        return f"{self.source}:{self.value}"


def parse_kernel_spec(text: str) -> KernelSpec:
    """Read a SPEC.

    Raises:
        UsageError: it is not one, or of a kind that is not supported yet.
    """
    source, colon, value = text.strip().partition(":")
    if source == "build" and colon:
        raise UsageError(
            f"kernels cannot be built from source yet: {text!r}",
            hint=f"build it yourself and name the tree with image:PATH; or {_HINT}",
        )
    if source not in ("debian", "image") or not value.strip():
        raise UsageError(f"{text!r} does not name a kernel", hint=_HINT)
    return KernelSpec(source, value.strip())
