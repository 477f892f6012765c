# SPDX-License-Identifier: GPL-2.0-or-later
"""Fragments of kernel configuration: reading, merging, and what became of what they ask."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.core.errors import UsageError
from harness.kernels.build.kernel_config import KernelConfig

_SET = re.compile(r"CONFIG_(\w+)=(\S.*)", re.ASCII)
_UNSET = re.compile(r"# CONFIG_(\w+) is not set", re.ASCII)
_OPTIONAL = re.compile(r"#\s*optional:\s*\S.*", re.I)
_VALUE = re.compile(r'[ymn]|-?\d+|0x[0-9a-fA-F]+|"(?:[^"\\]|\\.)*"')
_HINT = "write CONFIG_NAME=value, '# CONFIG_NAME is not set', or a comment that begins with #"


@dataclass(frozen=True)
class Option:
    """One requested option.

    Attributes:
        name: without `CONFIG_`.
        value: as a `.config` writes it, text with its quotes; `n` for an option that is off.
        where: file and line that ask for it.
        optional: whether a tree that lacks the option, or cannot give it, will do.
    """

    name: str
    value: str
    where: str
    optional: bool = False

    @property
    def line(self) -> str:
        """The line of a `.config`."""
        if self.value == "n":
            return f"# CONFIG_{self.name} is not set"
        return f"CONFIG_{self.name}={self.value}"


@dataclass(frozen=True)
class Unmet:
    """A requested option that the configuration does not have.

    Attributes:
        option: what was asked.
        found: the value that it has instead, None where the tree has no such option.
    """

    option: Option
    found: str | None


def parse_fragment(text: str, name: str) -> tuple[Option, ...]:
    """Read a fragment. Options up to the next blank line after `# optional: WHY` are optional.

    Args:
        text: the file's content.
        name: of the file, for messages.

    Raises:
        UsageError: a line is neither an option nor a comment.
    """
    options = []
    optional = False
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        where = f"{name}:{number}"
        if match := _UNSET.fullmatch(line):
            options.append(Option(match[1], "n", where, optional))
        elif match := _SET.fullmatch(line):
            if _VALUE.fullmatch(match[2]) is None:
                raise UsageError(f"not a value of an option: {match[2]}", where=where, hint=_HINT)
            options.append(Option(match[1], match[2], where, optional))
        elif not line:
            optional = False
        elif not line.startswith("#"):
            raise UsageError(f"not a line of a configuration: {raw!r}", where=where, hint=_HINT)
        elif _OPTIONAL.fullmatch(line):
            optional = True
    return tuple(options)


def merge(fragments: Iterable[Sequence[Option]]) -> tuple[Option, ...]:
    """The options of all fragments; of two about one option the later one counts."""
    merged: dict[str, Option] = {}
    for fragment in fragments:
        for option in fragment:
            merged.pop(option.name, None)
            merged[option.name] = option
    return tuple(merged.values())


def render(options: Iterable[Option]) -> str:
    """The text of a `.config` with these options."""
    return "".join(f"{option.line}\n" for option in options)


def unmet(options: Iterable[Option], have: KernelConfig) -> tuple[Unmet, ...]:
    """Which requested options a finished configuration does not have, optional ones aside."""
    return tuple(
        Unmet(option, have.options.get(option.name))
        for option in options
        if not option.optional and have.value(option.name) != _plain(option.value)
    )


def _plain(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
