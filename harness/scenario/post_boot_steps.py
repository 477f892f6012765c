# SPDX-License-Identifier: GPL-2.0-or-later
"""Steps that a scenario runs after the owners have settled, and their checks."""

from __future__ import annotations

import errno
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal

import msgspec

from harness.scenario.module_load import normalise_modules
from harness.scenario.owner import Ownership, RangeName
from harness.scenario.profile import Name
from harness.scenario.yaml_document import Document, FieldError

# A word without special characters for sysfs and the guest's shell.
_Word = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]*\Z", max_length=64)]
_Modules = Annotated[tuple[_Word, ...], msgspec.Meta(min_length=1)]
Mode = Literal["devdax", "system-ram"]


class Binding(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A device and a driver of its bus, by their names in sysfs."""

    bus: _Word
    driver: _Word
    device: _Word

    def __str__(self) -> str:
        return f"{self.device} of {self.driver}"


class BindingStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bind or unbind a driver and a device; exactly one of the two.

    Attributes:
        fails: name of the error that the kernel must return, such as `EBUSY`.
    """

    bind: Binding | None = None
    unbind: Binding | None = None
    fails: str | None = None

    def __post_init__(self) -> None:
        _check_verb(self.verbs(), self.fails)

    def verbs(self) -> tuple[str, ...]:
        """The verbs that are given: one, after the checks."""
        return tuple(name for name in ("bind", "unbind") if getattr(self, name) is not None)

    def __str__(self) -> str:
        (verb,) = self.verbs()
        return f"{verb} {getattr(self, verb)}{_must_fail(self.fails)}"


class GuestStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One step, after which the contract is judged. It has exactly one verb.

    Attributes:
        load: load a module and its dependencies.
        load_unbound: load a module, but do not let its platform drivers bind devices.
        unload: unload a module.
        reload: take memory of kmem offline, unload modules in this order, load them in reverse.
        reload_every_order: the same in every order that the holders in the guest's /proc/modules
            allow, judged after each.
        while_pending: bindings in one command, while the kernel's deferred work is blocked.
        offline: take the memory of a range's dax device offline.
        online: take it online.
        reconfigure: change the mode of a range's dax device, to `mode`.
        destroy_region: disable and destroy the region of a decoder.
        create_region: create it again, with the same devices in the same order.
        decommit: reset the decoders of a region, by its `commit` in sysfs.
        commit: commit them again, and bind the region's driver.
        fails: name of the error that the step must end with, such as `EBUSY`.
        expect: owners from this step on, by name, until a later step states others.
    """

    load: _Word | None = None
    load_unbound: _Word | None = None
    unload: _Word | None = None
    reload: _Modules | None = None
    reload_every_order: _Modules | None = None
    bind: Binding | None = None
    unbind: Binding | None = None
    while_pending: Annotated[tuple[BindingStep, ...], msgspec.Meta(min_length=1)] | None = None
    offline: Name | None = None
    online: Name | None = None
    reconfigure: Name | None = None
    destroy_region: Name | None = None
    create_region: Name | None = None
    decommit: Name | None = None
    commit: Name | None = None
    mode: Mode | None = None
    fails: str | None = None
    expect: dict[RangeName, Ownership] = {}

    def __post_init__(self) -> None:
        _check_verb(self.verbs(), self.fails)
        if (self.mode is None) == (self.verb == "reconfigure"):
            raise FieldError(
                "reconfigure and mode go together", hint="mode: devdax, or mode: system-ram"
            )
        normalise_modules(self, "load", "load_unbound", "unload", "reload", "reload_every_order")

    def verbs(self) -> tuple[str, ...]:
        """The verbs that are given: one, after the checks."""
        return tuple(name for name in VERBS if getattr(self, name) is not None)

    @property
    def verb(self) -> str:
        """The verb of the step."""
        (verb,) = self.verbs()
        return verb

    def modules(self) -> tuple[str, ...]:
        """The modules that it loads or unloads."""
        one = (self.load, self.load_unbound, self.unload)
        several = (*(self.reload or ()), *(self.reload_every_order or ()))
        return (*(name for name in one if name is not None), *several)

    def __str__(self) -> str:
        value = getattr(self, self.verb)
        if isinstance(value, tuple):
            value = ", ".join(map(str, value))
        verb = self.verb.replace("_", " ")
        mode = f" as {self.mode}" if self.mode else ""
        return f"{verb} {value}{mode}{_must_fail(self.fails)}"


REGION_VERBS = ("destroy_region", "create_region", "decommit", "commit")
MEMORY_VERBS = ("offline", "online", "reconfigure")
VERBS = (
    *("load", "load_unbound", "unload", "reload", "reload_every_order"),
    *("bind", "unbind", "while_pending"),
    *MEMORY_VERBS,
    *REGION_VERBS,
)


# Verbs that need another one for the same decoder right before them.
_AFTER = {"create_region": "destroy_region", "commit": "decommit"}
_FEWEST_CPUS = 2


def check_steps(
    document: Document[Any],
    steps: Sequence[GuestStep],
    ranges: Collection[str],
    decoders: Collection[str],
    cpus: int,
) -> None:
    """Check the steps of `guest.then` against each other, the scenario's names and the CPUs."""
    last: dict[str, str] = {}
    for index, step in enumerate(steps):
        at = f"guest.then[{index}]"
        target = getattr(step, step.verb)
        if step.verb in MEMORY_VERBS:
            _check_name(document, f"{at}.{step.verb}", target, [*ranges, *decoders])
        if step.verb in REGION_VERBS:
            _check_name(document, f"{at}.{step.verb}", target, decoders)
            before = _AFTER.get(step.verb)
            if before is not None and last.get(target) != before:
                raise document.error(
                    f"{at}.{step.verb}",
                    f"needs a step {before} of {target} before it",
                    hint="a region or decoder that exists is not created or committed again",
                )
            last[target] = step.verb
        for name in step.expect:
            _check_name(
                document, f"{at}.expect.{name}", name.partition("[")[0], [*ranges, *decoders]
            )
        if step.while_pending is not None and cpus < _FEWEST_CPUS:
            raise document.error(
                f"{at}.while_pending",
                "needs two CPUs: one for the steps, one for the blocked work",
                hint="use a profile with two CPUs",
            )


def _check_verb(verbs: Sequence[str], fails: str | None) -> None:
    if len(verbs) != 1:
        given = " and ".join(verbs) or "none"
        raise FieldError(f"a step has exactly one verb, not {given}", hint="split or complete it")
    if fails is None:
        return
    if fails not in errno.errorcode.values():
        raise FieldError(
            f"there is no error {fails!r}", field="fails", hint="a name of errno(3), such as EBUSY"
        )
    if verbs[0] in ("reload", "reload_every_order", "while_pending"):
        raise FieldError(
            f"{verbs[0]} is several steps, and fails does not tell which must fail",
            field="fails",
            hint="write them as separate steps, with fails at the one that must fail",
        )


def _check_name(document: Document[Any], at: str, name: str, names: Collection[str]) -> None:
    if name not in names:
        raise document.error(
            at,
            f"there is no range or decoder {name!r}",
            hint=f"one of: {', '.join(names) or 'none'}",
        )


def _must_fail(error: str | None) -> str:
    return f", which must fail with {error}" if error else ""
