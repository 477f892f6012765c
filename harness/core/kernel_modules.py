# SPDX-License-Identifier: GPL-2.0-or-later
"""Parse the description of kernel modules, and order them for loading."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

# With its path: for the bare name busybox's shell runs its own modprobe, without softdeps.
MODPROBE = "/sbin/modprobe"


@dataclass(frozen=True)
class KernelModule:
    """A loadable module, as its `.modinfo` section describes it. Names have no hyphens.

    Attributes:
        name: as `lsmod` prints it.
        path: the module file, compressed or not.
        depends: modules whose symbols it uses.
        pre: modules to load before it where they exist (softdep).
        post: modules to load after it where they exist (softdep).
        vermagic: release and options of its kernel.
    """

    name: str
    path: Path
    depends: tuple[str, ...] = ()
    pre: tuple[str, ...] = ()
    post: tuple[str, ...] = ()
    vermagic: str = ""

    @property
    def release(self) -> str:
        """The release of its kernel, empty if unknown."""
        return self.vermagic.partition(" ")[0]


@dataclass(frozen=True)
class MissingModule:
    """A name that is neither a module of the kernel nor built in.

    Attributes:
        name: as it was requested.
        close: similar names that the kernel has, the closest first.
        needed_by: the module that depends on it, or None when it was requested itself.
    """

    name: str
    close: tuple[str, ...] = ()
    needed_by: str | None = None

    def __str__(self) -> str:
        text = f"{self.name} is neither a module of this kernel nor built in"
        if self.needed_by:
            text += f", and {self.needed_by} depends on it"
        return text + (f"; close names: {', '.join(self.close)}" if self.close else "")


@dataclass(frozen=True)
class ModulePlan:
    """The modules for a list of requested names.

    Attributes:
        order: all needed modules, each after its dependencies.
        built_in: requested names and dependencies that need no file.
        missing: names that the kernel lacks.
    """

    order: tuple[KernelModule, ...]
    built_in: tuple[str, ...]
    missing: tuple[MissingModule, ...]

    def loaded_before(self) -> dict[str, tuple[str, ...]]:
        """Return the modules that modprobe loads before each module: dependencies and softdeps."""
        found: dict[str, tuple[str, ...]] = {}
        for module in self.order:
            soft = (name for name in module.pre if name in found)
            found[module.name] = tuple(dict.fromkeys((*module.depends, *soft)))
        return found


def module_name(name: str) -> str:
    """Return a module's name with `_` for `-`; the kernel treats them alike."""
    return name.replace("-", "_")


def parse_modinfo(section: bytes, path: Path) -> KernelModule:
    """Parse the content of a `.modinfo` section: `key=value` strings, each ended by a NUL byte.

    A module without a `name` (before Linux 4.13) is named by its file.
    """
    fields: dict[str, list[str]] = {}
    for entry in section.split(b"\0"):
        key, equals, value = entry.decode(errors="replace").partition("=")
        if equals:
            fields.setdefault(key, []).append(value)
    pre, post = _softdeps(fields.get("softdep", ()))
    stem = path.name.partition(".ko")[0]
    return KernelModule(
        name=module_name(fields.get("name", [stem])[0]),
        path=path,
        depends=_names(",".join(fields.get("depends", ())).split(",")),
        pre=pre,
        post=post,
        vermagic=fields.get("vermagic", [""])[0],
    )


def plan_modules(
    requested: Iterable[str],
    *,
    read: Callable[[str], KernelModule | None],
    available: Collection[str],
    built_in: Collection[str],
) -> ModulePlan:
    """Order modules and their dependencies, so that each can be loaded after the one before.

    Softdeps count where the kernel has them. Independent modules stay in the requested order.

    Args:
        requested: names, with `-` or `_`.
        read: returns a module by its name, None when it is not a module.
        available: the names of all modules, for suggestions.
        built_in: the names of built-in modules.
    """
    order: dict[str, KernelModule] = {}
    inside: dict[str, None] = {}
    missing: dict[str, MissingModule] = {}
    begun: set[str] = set()

    def visit(request: str, needed_by: str | None) -> None:
        name = module_name(request)
        if name in begun:
            return
        begun.add(name)
        module = read(name)
        if module is None:
            if name in built_in:
                inside[name] = None
            else:
                close = tuple(
                    difflib.get_close_matches(name, {*available, *built_in}, n=3, cutoff=0.7)
                )
                missing[name] = MissingModule(request, close, needed_by)
            return
        for soft in module.pre:
            visit_soft(soft)
        for dependency in module.depends:
            visit(dependency, module.name)
        order[name] = module
        for soft in module.post:
            visit_soft(soft)

    def visit_soft(name: str) -> None:
        if name in available or name in built_in:
            visit(name, None)

    for name in requested:
        visit(name, None)
    return ModulePlan(tuple(order.values()), tuple(inside), tuple(missing.values()))


def _names(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(module_name(word.strip()) for word in words if word.strip()))


def _softdeps(lines: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the `pre:` and the `post:` names of all `softdep` lines."""
    found: dict[str, list[str]] = {"pre:": [], "post:": []}
    for line in lines:
        into: list[str] | None = None
        for word in line.split():
            if word in found:
                into = found[word]
            elif into is not None:
                into.append(word)
    return _names(found["pre:"]), _names(found["post:"])
