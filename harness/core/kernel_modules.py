# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel modules: what one says about itself, and which ones must be loaded in which order."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

# By its path: busybox's shell runs its own modprobe, which has no softdeps, for the bare name.
MODPROBE = "/sbin/modprobe"


@dataclass(frozen=True)
class KernelModule:
    """A loadable module, as its `.modinfo` section describes it. Names have no hyphens.

    Attributes:
        name: what `lsmod` prints.
        path: the module file, compressed or not.
        depends: modules whose symbols it uses.
        pre: modules that should be loaded before it where they exist (softdep).
        post: modules that should be loaded after it where they exist (softdep).
        vermagic: the release and options of the kernel that it was built for.
    """

    name: str
    path: Path
    depends: tuple[str, ...] = ()
    pre: tuple[str, ...] = ()
    post: tuple[str, ...] = ()
    vermagic: str = ""

    @property
    def release(self) -> str:
        """The kernel release that it was built for, empty when it does not say."""
        return self.vermagic.partition(" ")[0]


@dataclass(frozen=True)
class MissingModule:
    """A name that is neither a module of the kernel nor built in.

    Attributes:
        name: as it was asked for.
        close: names that the kernel has and that look like it, the closest first.
        needed_by: the module that depends on it, or None when it was asked for itself.
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
    """What becomes of a list of wanted names.

    Attributes:
        order: every module that is needed, each after all that it depends on.
        built_in: wanted names, or names that they depend on, that need no file.
        missing: what cannot be had.
    """

    order: tuple[KernelModule, ...]
    built_in: tuple[str, ...]
    missing: tuple[MissingModule, ...]

    def loaded_before(self) -> dict[str, tuple[str, ...]]:
        """For each module those that modprobe loads first: dependencies, and softdeps it has."""
        found: dict[str, tuple[str, ...]] = {}
        for module in self.order:
            soft = (name for name in module.pre if name in found)
            found[module.name] = tuple(dict.fromkeys((*module.depends, *soft)))
        return found


def module_name(name: str) -> str:
    """The one spelling of a module's name: the kernel takes `-` and `_` for the same."""
    return name.replace("-", "_")


def parse_modinfo(section: bytes, path: Path) -> KernelModule:
    """Read the content of a `.modinfo` section: `key=value` strings that NUL bytes end.

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
    wanted: Iterable[str],
    *,
    read: Callable[[str], KernelModule | None],
    available: Collection[str],
    built_in: Collection[str],
) -> ModulePlan:
    """Order wanted modules and all that they need, so that each can be loaded in turn.

    Softdeps count where the kernel has them. The order among independent modules is that of
    `wanted`.

    Args:
        wanted: names, with `-` or `_`.
        read: gives a module by its name, None when it is not a module.
        available: the names of all modules, for suggestions.
        built_in: the names of what is built in.
    """
    order: dict[str, KernelModule] = {}
    inside: dict[str, None] = {}
    missing: dict[str, MissingModule] = {}
    begun: set[str] = set()

    def visit(asked: str, needed_by: str | None) -> None:
        name = module_name(asked)
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
                missing[name] = MissingModule(asked, close, needed_by)
            return
        for other in module.pre:
            visit_soft(other)
        for other in module.depends:
            visit(other, module.name)
        order[name] = module
        for other in module.post:
            visit_soft(other)

    def visit_soft(name: str) -> None:
        if name in available or name in built_in:
            visit(name, None)

    for name in wanted:
        visit(name, None)
    return ModulePlan(tuple(order.values()), tuple(inside), tuple(missing.values()))


def _names(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(module_name(word.strip()) for word in words if word.strip()))


def _softdeps(lines: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The `pre:` and the `post:` names of all `softdep` lines."""
    found: dict[str, list[str]] = {"pre:": [], "post:": []}
    for line in lines:
        into: list[str] | None = None
        for word in line.split():
            if word in found:
                into = found[word]
            elif into is not None:
                into.append(word)
    return _names(found["pre:"]), _names(found["post:"])
