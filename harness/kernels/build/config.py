# SPDX-License-Identifier: GPL-2.0-or-later
"""From names of fragments to a `.config` of which every requested option is checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import NotConfigurableError, UnbuildableError, UsageError
from harness.core.paths import PROJECT
from harness.kernels.build.kconfig_expression import Dependency, dependencies, holding_back
from harness.kernels.build.kernel_config import KernelConfig, parse_config
from harness.kernels.build.unmet_options import Option, Unmet, merge, parse_fragment, render, unmet
from harness.kernels.build.untrusted_files import UntrustedFolder

FRAGMENTS = PROJECT / "kernel_configs"
_BASE = "base"
_DISTRO = "distro"
_SUFFIX = ".config"
_CONFIG = ".config"
_SHOWN = 8


@dataclass(frozen=True)
class ConfigPlan:
    """A configuration that is asked for.

    Attributes:
        names: what the user named, in order.
        start: the text of a whole `.config` to start from; None starts with everything off.
        options: what the fragments ask for, merged.
    """

    names: tuple[str, ...]
    start: str | None
    options: tuple[Option, ...]

    @property
    def text(self) -> str:
        """What Kconfig is given; two plans with the same text give the same kernel."""
        head = "" if self.start is None else f"{self.start}\n# asked for on top:\n"
        return head + render(self.options)


def plan_config(names: Sequence[str], folder: Path = FRAGMENTS) -> ConfigPlan:
    """Read and merge fragments.

    Args:
        names: of fragments in `folder`, or paths of files, on top of the base; `distro` or
            `distro:PATH` starts from a whole `.config` instead (that of the running kernel).
        folder: where the fragments are.

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
    fragments = [_read_fragment(name, folder) for name in chosen]
    return ConfigPlan(tuple(names), start, merge(fragments))


def configure(
    plan: ConfigPlan,
    objects: UntrustedFolder,
    asked: Path,
    source: Path,
    make: Callable[[Sequence[str]], None],
) -> None:
    """Write a `.config` and check that it is what was asked for.

    Args:
        plan: what is asked for.
        objects: the folder that make writes to.
        asked: the path at which make sees a file with the plan's text.
        source: the kernel's source.
        make: runs make with these targets and variables, for this folder.

    Raises:
        NotConfigurableError: this source cannot be configured so.
        UnbuildableError: make has left no `.config` that can be read.
    """
    if plan.start is None:
        # As tinyconfig does it: what becomes visible later stays off too.
        make((f"KCONFIG_ALLCONFIG={asked}", "allnoconfig"))
    else:
        objects.write_text(_CONFIG, plan.text)
        make(("olddefconfig",))
    try:
        have = parse_config(objects.read_text(_CONFIG))
    except (FileNotFoundError, ValueError) as error:
        raise UnbuildableError(
            f"configuring has left no .config that can be read: {error}",
            where=str(objects.path),
            hint="is it the source of an x86 kernel?",
        ) from None
    check_config(plan, have, source)


def check_config(plan: ConfigPlan, have: KernelConfig, source: Path) -> None:
    """Compare a finished configuration with what was asked for.

    Raises:
        NotConfigurableError: options did not stick; it names them and what keeps them off.
    """
    missed = unmet(plan.options, have)
    if not missed:
        return
    lines = [line for one in missed[:_SHOWN] for line in _explain(one, have, source)]
    if len(missed) > _SHOWN:
        lines.append(f"and {len(missed) - _SHOWN} more")
    error = NotConfigurableError(
        "this source cannot be configured as asked:\n" + "\n".join(f"  {line}" for line in lines),
        where=f"--config {','.join(plan.names) or _BASE}",
        hint="turn on what the option depends on, drop the fragment, or take another source",
    )
    error.fragments = frozenset(one.option.where.rpartition(":")[0] for one in missed)
    raise error


def _explain(one: Unmet, have: KernelConfig, source: Path) -> list[str]:
    option = one.option
    head = f"{option.name}: asked for {option.value} ({option.where}), got {one.found or 'n'}"
    conditions = _dependencies_of(option.name, source)
    if conditions is None:
        return [f"{option.name}: asked for {option.value} ({option.where}), this source has none"]
    if option.value == "n":
        return [f"{head}; another option selects it, or it cannot be turned off"]
    reasons = [holding_back(condition, have, option.value) for condition in conditions]
    return [head, *(f"  {reason}" for reason in dict.fromkeys(reasons) if reason)]


def _dependencies_of(option: str, source: Path) -> tuple[Dependency, ...] | None:
    found = None
    definition = (f"config {option}\n", f"config {option} ")
    for folder, folders, names in os.walk(source):
        if folder == str(source):
            folders[:] = [one for one in folders if one not in ("Documentation", "tools")]
        for name in names:
            if not name.startswith("Kconfig"):
                continue
            path = Path(folder, name)
            if path.is_symlink():
                continue
            text = path.read_text(errors="replace")
            if any(words in text + "\n" for words in definition):
                more = dependencies(text, str(path.relative_to(source)), option)
                found = found if more is None else (*(found or ()), *more)
    return found


def _read_fragment(name: str, folder: Path) -> tuple[Option, ...]:
    named = Path(name).expanduser()
    path = folder / f"{name}{_SUFFIX}" if named.name == name else named
    if named.name == name and not path.is_file() and named.is_file():
        path = named
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        import difflib

        known = fragment_names(folder)
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"close names: {', '.join(close)}; " if close else ""
        raise UsageError(
            f"there is no fragment {name!r}"
            if isinstance(error, FileNotFoundError)
            else str(error),
            where="--config",
            hint=f"{hint}there are {', '.join(known)}, and paths of files",
        ) from None
    return parse_fragment(text, path.name)


def fragment_names(folder: Path = FRAGMENTS) -> tuple[str, ...]:
    """The names that `--config` takes."""
    return tuple(sorted(path.stem for path in folder.glob(f"*{_SUFFIX}")))


def _read_start(value: str) -> str:
    path = Path(value).expanduser() if value else Path(f"/boot/config-{os.uname().release}")
    try:
        text = path.read_text()
        parse_config(text)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no .config to start from: {error}",
            where="--config distro",
            hint="name one: --config distro:PATH",
        ) from None
    return text
