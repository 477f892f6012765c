# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel messages that are QEMU's doing: which, on what, and why they do not count."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from harness.contract.dmesg import ANY_MESSAGE
from harness.scenario.yaml_document import Document, read_document


class Quirk(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A message that QEMU causes, whatever the kernel does.

    Attributes:
        line: a regular expression that the whole first line of the message must match.
        accel: the accelerators with which it is seen.
        reason: what QEMU does, and why that is not the kernel's fault.
    """

    line: Annotated[str, msgspec.Meta(min_length=10)]
    accel: Annotated[tuple[Literal["kvm", "tcg"], ...], msgspec.Meta(min_length=1)]
    reason: Annotated[str, msgspec.Meta(min_length=20)]


class Quirks(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file tests/qemu_quirks.yaml."""

    quirks: tuple[Quirk, ...]

    def patterns(self, accel: str | None) -> tuple[re.Pattern[str], ...]:
        """What need not be looked at in a guest of this accelerator."""
        return tuple(
            re.compile(rf"\A(?:{one.line})$", re.MULTILINE)
            for one in self.quirks
            if accel in one.accel
        )


def read_quirks(text: str, name: str) -> Document[Quirks]:
    """Read the file of quirks.

    Raises:
        UsageError: names file, line and field.
    """
    document = read_document(text, name, Quirks)
    for index, quirk in enumerate(document.value.quirks):
        field = f"quirks[{index}].line"
        try:
            matches_anything = re.fullmatch(quirk.line, ANY_MESSAGE) is not None
        except re.error as error:
            raise document.error(
                field,
                f"not a regular expression: {error}",
                hint="escape brackets and dots that are meant as they stand",
            ) from None
        if matches_anything:
            raise document.error(
                field,
                "matches messages that have nothing to do with QEMU",
                hint="name who says it, and what",
            )
    return document
