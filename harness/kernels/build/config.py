# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel configurations: read them, make them from fragments, and check the result."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from harness.core.errors import NotConfigurableError, UnbuildableError, UsageError
from harness.core.files import read_text
from harness.core.paths import PROJECT
from harness.kernels.build.untrusted_files import UntrustedFolder

FRAGMENTS = PROJECT / "kernel_configs"
_BASE = "base"
_DISTRO = "distro"
_SUFFIX = ".config"
_CONFIG = ".config"
_SHOWN = 8

_SET = re.compile(r"CONFIG_(\w+)=(.*)", re.ASCII)
_UNSET = re.compile(r"# CONFIG_(\w+) is not set", re.ASCII)
_OPTIONAL = re.compile(r"#\s*optional:\s*\S.*", re.I)
_VALUE = re.compile(r'[ymn]|-?\d+|0x[0-9a-fA-F]+|"(?:[^"\\]|\\.)*"')
_LINE_HINT = "write CONFIG_NAME=value, '# CONFIG_NAME is not set', or a comment that begins with #"
# linux/Documentation/kbuild/kconfig-language.rst; help texts are indented deeper than this.
_STATEMENT = re.compile(
    r"^(?:(?:\t| {,8})(config|menuconfig|depends on)"
    r"|(if|endif|menu|endmenu|choice|endchoice|comment|source))\b((?:.*\\\n)*.*)$",
    re.M,
)


@dataclass(frozen=True)
class KernelConfig:
    """The options of a kernel, named without `CONFIG_`.

    Attributes:
        options: values as the file writes them (`y`, `m`, `n`, numbers, text without its
            quotes); an option that is not set has the value `n`.
    """

    options: Mapping[str, str]

    def value(self, option: str) -> str:
        """Return the value of an option, named with or without `CONFIG_`; `n` when absent."""
        return self.options.get(option.removeprefix("CONFIG_"), "n")

    def enabled(self, option: str) -> bool:
        """Return whether an option is built in or a module."""
        return self.value(option) in ("y", "m")


def parse_config(text: str) -> KernelConfig:
    """Parse a `.config`; of two lines about one option the last counts, as in Kconfig.

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


@dataclass(frozen=True)
class Option:
    """One requested option.

    Attributes:
        name: without `CONFIG_`.
        value: as a `.config` writes it, text with its quotes; `n` for an option that is off.
        where: file and line that request it.
        optional: accept a source that lacks the option, or cannot give it this value.
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


def parse_fragment(text: str, name: str) -> tuple[Option, ...]:
    """Parse a fragment. Options up to the next blank line after `# optional: WHY` are optional.

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
        elif (match := _SET.fullmatch(line)) and match[2]:
            if _VALUE.fullmatch(match[2]) is None:
                text = f"not a value of an option: {match[2]}"
                raise UsageError(text, where=where, hint=_LINE_HINT)
            options.append(Option(match[1], match[2], where, optional))
        elif not line:
            optional = False
        elif not line.startswith("#"):
            text = f"not a line of a configuration: {raw!r}"
            raise UsageError(text, where=where, hint=_LINE_HINT)
        elif _OPTIONAL.fullmatch(line):
            optional = True
    return tuple(options)


@dataclass(frozen=True)
class ConfigPlan:
    """A requested configuration.

    Attributes:
        names: the names that the user gave, in order.
        start: the text of a whole `.config` to start from; None starts with everything off.
        options: the requests of all fragments, the later one where two are about one option.
    """

    names: tuple[str, ...]
    start: str | None
    options: tuple[Option, ...]

    @property
    def text(self) -> str:
        """The input of Kconfig; two plans with the same text give the same kernel."""
        # Part of the store's key of each kernel: another text builds all kernels again.
        head = "" if self.start is None else f"{self.start}\n# asked for on top:\n"
        return head + "".join(f"{option.line}\n" for option in self.options)


def plan_config(names: Sequence[str], folder: Path = FRAGMENTS) -> ConfigPlan:
    """Read and merge fragments.

    Args:
        names: of fragments in `folder`, or paths of files, on top of the base; `distro` or
            `distro:PATH` starts from a whole `.config` instead (that of the running kernel).
        folder: the fragments.

    Raises:
        UsageError: a name or a file is wrong.
    """
    start = None
    chosen = [_BASE]
    for name in dict.fromkeys(names):
        if name == _DISTRO or name.startswith(f"{_DISTRO}:"):
            start = _read_start(name.removeprefix(_DISTRO).removeprefix(":"))
            chosen[0] = _DISTRO
        elif name != _BASE:
            chosen.append(name)
    merged: dict[str, Option] = {}
    for name in chosen:
        for option in _read_fragment(name, folder):
            merged.pop(option.name, None)
            merged[option.name] = option
    return ConfigPlan(tuple(names), start, tuple(merged.values()))


def fragment_names(folder: Path = FRAGMENTS) -> tuple[str, ...]:
    """Return the names of fragments that `--config` accepts."""
    return tuple(sorted(path.stem for path in folder.glob(f"*{_SUFFIX}")))


def configure(
    plan: ConfigPlan,
    objects: UntrustedFolder,
    request: Path,
    source: Path,
    make: Callable[[Sequence[str]], None],
) -> None:
    """Write a `.config` and check that it has the requested options.

    Args:
        objects: the folder that make writes to.
        request: the path at which make sees a file with the plan's text.
        source: the kernel's source.
        make: runs make with these targets and variables, for this folder.

    Raises:
        NotConfigurableError: the source cannot give these options.
        UnbuildableError: make has left no readable `.config`.
    """
    if plan.start is None:
        # As in tinyconfig: options that become visible later stay off too.
        make((f"KCONFIG_ALLCONFIG={request}", "allnoconfig"))
    else:
        objects.write_text(_CONFIG, plan.text)
        make(("olddefconfig",))
    try:
        have = parse_config(objects.read_text(_CONFIG))
    except (FileNotFoundError, ValueError) as error:
        raise UnbuildableError(
            f"make has left no readable .config: {error}",
            where=str(objects.path),
            hint="is it the source of an x86 kernel?",
        ) from None
    check_config(plan, have, source)


def check_config(plan: ConfigPlan, have: KernelConfig, source: Path) -> None:
    """Compare a finished configuration with the request.

    Raises:
        NotConfigurableError: options are missing; it lists them with their dependencies.
    """
    missed = [
        option
        for option in plan.options
        if not option.optional and have.value(option.name) != _plain(option.value)
    ]
    if not missed:
        return
    lines = [line for option in missed[:_SHOWN] for line in _explain(option, have, source)]
    if len(missed) > _SHOWN:
        lines.append(f"and {len(missed) - _SHOWN} more")
    error = NotConfigurableError(
        "this source cannot be configured as requested:\n"
        + "\n".join(f"  {line}" for line in lines),
        where=f"--config {','.join(plan.names) or _BASE}",
        hint="turn on the options that it depends on, drop the fragment, or take another source",
    )
    error.fragments = frozenset(option.where.rpartition(":")[0] for option in missed)
    raise error


def _explain(option: Option, have: KernelConfig, source: Path) -> list[str]:
    request = f"{option.name}: requested {option.value} ({option.where})"
    conditions = _dependencies_in(source, option.name)
    if conditions is None:
        return [f"{request}, this source has no such option"]
    head = f"{request}, got {have.value(option.name)}"
    if option.value == "n":
        return [f"{head}; another option selects it, or it cannot be turned off"]
    return [head, *(f"  {line}" for where in conditions if (line := _unmet(where, have)))]


def _unmet(condition: str, have: KernelConfig) -> str | None:
    """Return a `depends on` line with the values that it has; None where all are y."""
    expression = condition.partition(": ")[2]
    names = dict.fromkeys(re.findall(r"\b[A-Z][A-Z0-9_]*\b", expression))
    if not re.search(r"[!=<>$]", expression) and all(have.value(name) == "y" for name in names):
        return None
    values = ", ".join(f"{name}={have.value(name)}" for name in names)
    return f"{condition} (here {values})"


def _dependencies_in(source: Path, option: str) -> tuple[str, ...] | None:
    """Return the dependencies of an option, None where no Kconfig file defines it."""
    found = None
    for path in _kconfig_files(source):
        text = path.read_text(errors="replace")
        if re.search(rf"^\s*(?:menu)?config {option}\s*$", text, re.M):
            name = str(path.relative_to(source))
            found = (*(found or ()), *dependencies(text, name, option))
    return None if found is None else tuple(dict.fromkeys(found))


def dependencies(text: str, path: str, option: str) -> tuple[str, ...]:
    """Return the lines of a Kconfig file that an option depends on, each with its place.

    These are its own `depends on` lines and the conditions of the blocks around it.
    """
    found: list[str] = []
    blocks: list[list[str]] = []
    entry: list[str] = []
    for match in _STATEMENT.finditer(text):
        keyword = match[1] or match[2]
        rest = re.sub(r"\s#\s.*", "", " ".join(match[3].replace("\\\n", " ").split()))
        line = f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {keyword} {rest}"
        if keyword == "depends on":
            entry.append(line)
        elif keyword in ("if", "menu", "choice"):
            entry = [line] if keyword == "if" else []
            blocks.append(entry)
        else:
            entry = []
            if keyword.startswith("end"):
                del blocks[-1:]
            elif keyword.endswith("config") and rest == option:
                entry = found
                found += [condition for block in blocks for condition in block]
    return tuple(found)


def _kconfig_files(source: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(source):
        if folder == str(source):
            folders[:] = [name for name in folders if name not in ("Documentation", "tools")]
        paths = (Path(folder, name) for name in names if name.startswith("Kconfig"))
        yield from (path for path in paths if not path.is_symlink())


def _read_fragment(name: str, folder: Path) -> tuple[Option, ...]:
    path = Path(name).expanduser()
    if path.name == name and ((folder / f"{name}{_SUFFIX}").is_file() or not path.is_file()):
        path = folder / f"{name}{_SUFFIX}"
    if path.exists():
        return parse_fragment(read_text(path, what="the fragment"), path.name)
    import difflib

    known = fragment_names(folder)
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"close names: {', '.join(close)}; " if close else ""
    raise UsageError(
        f"there is no fragment {name!r}",
        where="--config",
        hint=f"{hint}there are {', '.join(known)}, and paths of files",
    )


def _read_start(value: str) -> str:
    path = Path(value).expanduser() if value else Path(f"/boot/config-{os.uname().release}")
    hint = "name a .config to start from: --config distro:PATH"
    text = read_text(path, what="the .config to start from", hint=hint)
    try:
        parse_config(text)
    except ValueError as error:
        raise UsageError(str(error), where=str(path), hint=hint) from None
    return text


def _plain(value: str) -> str:
    """Return a value without the quotes of a text."""
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value
