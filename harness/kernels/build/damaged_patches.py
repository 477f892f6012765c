# SPDX-License-Identifier: GPL-2.0-or-later
"""Damage that mail programs do to the context lines of patches."""

from __future__ import annotations

import re
from collections.abc import Iterator

_HUNK = re.compile(rb"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
# Text that a kernel source has at the start of a line, or an empty line, after two spaces.
_SURE = re.compile(rb"  (?:[\t}].*)?", re.S)


def unstuffed(diff: bytes) -> bytes:
    """A diff without the space that format=flowed (RFC 3676) puts in front of context lines.

    Returns the diff itself unless each context line begins with two spaces. That is also true of
    a few intact patches, for files that are indented by spaces.
    """
    lines = diff.split(b"\n")
    context = [number for number in _context(lines) if lines[number].strip()]
    if not context or not all(lines[number].startswith(b"  ") for number in context):
        return diff
    for number in _context(lines):
        lines[number] = re.sub(rb"^  ", b" ", lines[number])
    return b"\n".join(lines)


def is_stuffed(diff: bytes) -> bool:
    """Whether format=flowed has changed a diff, which no intact patch for a C file looks like."""
    lines = diff.split(b"\n")
    return unstuffed(diff) != diff and any(_SURE.fullmatch(lines[one]) for one in _context(lines))


def _context(lines: list[bytes]) -> Iterator[int]:
    """The places of the context lines of all hunks."""
    old = new = 0
    for number, line in enumerate(lines):
        if old <= 0 and new <= 0:
            if match := _HUNK.match(line):
                old, new = (int(count or 1) for count in match.groups())
        elif line.startswith(b"-"):
            old -= 1
        elif line.startswith(b"+"):
            new -= 1
        elif not line.startswith(b"\\"):
            old, new = old - 1, new - 1
            yield number
