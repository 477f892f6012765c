# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel was built with: the `.config` file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_SET = re.compile(r"CONFIG_(\w+)=(.*)", re.ASCII)
_UNSET = re.compile(r"# CONFIG_(\w+) is not set", re.ASCII)


@dataclass(frozen=True)
class KernelConfig:
    """The options of a kernel, named without `CONFIG_`.

    Attributes:
        options: values as the file writes them (`y`, `m`, `n`, numbers, text without its
            quotes); an option that is not set has the value `n`.
    """

    options: Mapping[str, str]

    def value(self, option: str) -> str:
        """The value of an option, with or without `CONFIG_` in front; `n` when absent."""
        return self.options.get(option.removeprefix("CONFIG_"), "n")

    def enabled(self, option: str) -> bool:
        """Whether an option is built in or a module."""
        return self.value(option) in ("y", "m")


def parse_config(text: str) -> KernelConfig:
    """Read a `.config`; of two lines about one option the last counts, as in Kconfig.

    Raises:
        ValueError: a line is neither an option, nor a comment, nor empty.
    """
    options: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.strip()
        if match := _SET.fullmatch(words):
            options[match[1]] = _plain(match[2])
        elif match := _UNSET.fullmatch(words):
            options[match[1]] = "n"
        elif words and not words.startswith("#"):
            raise ValueError(f"line {number} is not a line of a .config: {line!r}")
    return KernelConfig(MappingProxyType(options))


def _plain(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value
