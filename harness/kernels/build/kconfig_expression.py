# SPDX-License-Identifier: GPL-2.0-or-later
"""What an option depends on, as Kconfig files say it.

The grammar is that of linux/Documentation/kbuild/kconfig-language.rst. This is no Kconfig: it
reads enough of the files to say why an option is off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from harness.kernels.build.kernel_config import KernelConfig

_TOKEN = re.compile(r'\s*(\|\||&&|!=|<=|>=|[!()<>=]|"[^"]*"|\$\([^)]*\)|[\w./-]+)')
_LEVELS = {"n": 0, "m": 1, "y": 2}


@dataclass(frozen=True)
class Dependency:
    """A condition on an option.

    Attributes:
        text: the expression, as the file writes it.
        where: file and line, relative to the source tree.
    """

    text: str
    where: str


def dependencies(text: str, path: str, option: str) -> tuple[Dependency, ...] | None:
    """What an option depends on, by itself and by what encloses it in the file.

    Args:
        text: of a Kconfig file.
        path: of the file, for `where`.
        option: without `CONFIG_`.

    Returns:
        None when the file does not define the option.
    """
    found: list[Dependency] | None = None
    enclosing: list[list[Dependency]] = []
    entry: list[Dependency] = []
    for where, words in _statements(text, path):
        first, _, rest = words.partition(" ")
        rest = rest.strip()
        if first in ("if", "menu", "choice"):
            enclosing.append([Dependency(rest, where)] if first == "if" else [])
            entry = enclosing[-1]
        elif first in ("endif", "endmenu", "endchoice"):
            if enclosing:
                enclosing.pop()
            entry = []
        elif first in ("config", "menuconfig"):
            entry = []
            if rest == option:
                found = found if found is not None else []
                found += [one for outer in enclosing for one in outer]
                entry = found
        elif words.startswith("depends on "):
            condition = words.removeprefix("depends on ").strip()
            entry.append(Dependency(condition, where))
        elif first in ("comment", "source"):
            entry = []
    return None if found is None else tuple(found)


def _statements(text: str, path: str) -> Iterator[tuple[str, str]]:
    """Place and text of each statement; help texts, comments and blank lines are left out."""
    help_indent: int | None = None
    pending = ""
    begin = 0
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.expandtabs(8)
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        if help_indent is not None:
            if help_indent < 0:
                help_indent = indent
            if indent >= help_indent > 0:
                continue
            help_indent = None
        words = re.sub(r"\s+#\s.*$", "", line.strip())
        if words.startswith("#"):
            continue
        if words in ("help", "---help---"):
            help_indent = -1
            continue
        begin = begin if pending else number
        pending += words.removesuffix("\\").strip() + " "
        if not words.endswith("\\"):
            yield f"{path}:{begin}", pending.strip()
            pending = ""


def holding_back(dependency: Dependency, have: KernelConfig, wanted: str) -> str | None:
    """What a condition says when it keeps an option below the wanted value, None when it does not.

    Args:
        dependency: the condition.
        have: the finished configuration.
        wanted: `y`, `m`, or anything else, which needs `y`.
    """
    level = _Expression(dependency.text, have).level()
    if level is None or level >= _LEVELS.get(wanted, 2):
        return None
    names = dict.fromkeys(re.findall(r"\b[A-Z][A-Z0-9_]*\b", dependency.text))
    values = ", ".join(f"{name}={have.value(name)}" for name in names)
    return f"{dependency.where}: depends on {dependency.text} (here {values})"


class _Expression:
    """A tristate expression: `!` > comparison > `&&` > `||`, by recursive descent."""

    def __init__(self, text: str, have: KernelConfig) -> None:
        self._tokens = _TOKEN.findall(text)
        self._have = have

    def level(self) -> int | None:
        """0, 1 or 2 for n, m or y; None for what cannot be told, such as a macro."""
        try:
            value = self._either()
        except (IndexError, ValueError):
            return None
        return value if not self._tokens else None

    def _either(self) -> int:
        value = self._both()
        while self._tokens[:1] == ["||"]:
            self._tokens.pop(0)
            value = max(value, self._both())
        return value

    def _both(self) -> int:
        value = self._one()
        while self._tokens[:1] == ["&&"]:
            self._tokens.pop(0)
            value = min(value, self._one())
        return value

    def _one(self) -> int:
        token = self._tokens.pop(0)
        if token == "!":
            return 2 - self._one()
        if token == "(":
            value = self._either()
            if self._tokens.pop(0) != ")":
                raise ValueError(token)
            return value
        if token.startswith("$") or token in (")", "&&", "||"):
            raise ValueError(token)
        if self._tokens[:1] and self._tokens[0] in ("=", "!=", "<", ">", "<=", ">="):
            return self._compared(token, self._tokens.pop(0), self._tokens.pop(0))
        return _LEVELS.get(self._value(token), 0)

    def _compared(self, left: str, sign: str, right: str) -> int:
        one, other = self._value(left), self._value(right)
        if sign in ("=", "!="):
            return 2 if (one == other) == (sign == "=") else 0
        a, b = (_LEVELS[x] if x in _LEVELS else int(x, 0) for x in (one, other))
        true = {"<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b}[sign]
        return 2 if true else 0

    def _value(self, token: str) -> str:
        if token.startswith('"'):
            return token[1:-1]
        if token in _LEVELS or re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+", token):
            return token
        return self._have.value(token)
