# SPDX-License-Identifier: GPL-2.0-or-later
"""What a scenario does to a guest whose owners have settled: one step after the other."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from harness.scenario.owner import Ownership, RangeName
from harness.scenario.profile import Name

# A word that stands for itself in sysfs and in the guest's shell.
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
    """A driver bound to a device or unbound, exactly one of the two.

    Attributes:
        bind: bind it.
        unbind: unbind it.
        fails: name of the error that the kernel must answer with, such as `EBUSY`.
    """

    bind: Binding | None = None
    unbind: Binding | None = None
    fails: str | None = None

    def verbs(self) -> tuple[str, ...]:
        """The keys that say what is done: one, in a step that is right."""
        return tuple(name for name in ("bind", "unbind") if getattr(self, name) is not None)

    def __str__(self) -> str:
        (verb,) = self.verbs()
        return f"{verb} {getattr(self, verb)}{_must_fail(self.fails)}"


class GuestStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One step, after which the contract is judged. Exactly one of the verbs is there.

    Attributes:
        load: load a module, and what it depends on.
        load_unbound: load a module whose platform drivers get no device by themselves.
        unload: unload a module.
        reload: take what kmem holds offline, unload modules in this order, load them in reverse.
        reload_every_order: the same in every order that the guest's own holders of modules
            allow, judged after each.
        bind: bind a driver to a device.
        unbind: unbind it.
        while_pending: bindings in one go, while the kernel's deferred work is held up.
        offline: take the memory of a range's dax device offline.
        online: take it online.
        reconfigure: give a range's dax device another mode, with `mode`.
        destroy_region: disable and destroy the region of a decoder.
        create_region: create it again, with the same devices in the same order.
        decommit: reset the decoders of a region, by its `commit` in sysfs.
        commit: commit them again, and bind the region's driver.
        mode: for `reconfigure`.
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

    def verbs(self) -> tuple[str, ...]:
        """The keys that say what is done: one, in a step that is right."""
        return tuple(name for name in VERBS if getattr(self, name) is not None)

    @property
    def verb(self) -> str:
        """What is done, in a step that is right."""
        (verb,) = self.verbs()
        return verb

    def modules(self) -> tuple[str, ...]:
        """The modules that it names, as the scenario writes them."""
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


def _must_fail(error: str | None) -> str:
    return f", which must fail with {error}" if error else ""
