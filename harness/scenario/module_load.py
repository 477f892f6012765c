# SPDX-License-Identifier: GPL-2.0-or-later
"""The ways in which a scenario's modules can be loaded, and the single loads that follow."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from harness.core.kernel_modules import module_name

ModuleName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*\Z", max_length=64)]
How = Literal["in_order", "at_once", "by_modalias"]

# All orders of seven modules that do not depend on each other. More would take a night.
MOST_ORDERS = 5040


class TooManyOrdersError(ValueError):
    """The modules can be loaded in more orders than anybody would wait for."""


class LoadPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Loads beyond a single order; exactly one of the three lists is given.

    Attributes:
        all_orders: these modules, in every order that their dependencies allow.
        parallel: these modules, all modprobes at once.
        modalias: every module that a device of the machine asks for, as udev loads them; these
            must then be among them.
        times: how many guests load so, 1 to 100; every order has as many.
    """

    all_orders: tuple[ModuleName, ...] = ()
    parallel: tuple[ModuleName, ...] = ()
    modalias: tuple[ModuleName, ...] = ()
    times: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules, whichever list they are in."""
        return self.all_orders or self.parallel or self.modalias


@dataclass(frozen=True)
class Load:
    """What one guest loads, and how.

    Attributes:
        how: one after the other, all at once, or what its devices ask for.
        modules: names, in order for `in_order`.
    """

    how: How
    modules: tuple[str, ...]

    def __str__(self) -> str:
        names = ", ".join(self.modules) or "nothing"
        if self.how == "at_once":
            return f"all at once: {names}"
        return f"by modalias: {names}" if self.how == "by_modalias" else names

    def option(self) -> str:
        """The value of `--load` that makes a run load so."""
        if self.how == "at_once":
            return "parallel"
        return "modalias" if self.how == "by_modalias" else ",".join(self.modules) or "none"


def loads_of(
    asked: tuple[str, ...] | LoadPlan,
    depends: Mapping[str, Collection[str]],
    repeat: int = 1,
) -> tuple[Load, ...]:
    """Every load that a scenario asks for, one for each guest.

    Args:
        asked: the scenario's `guest.load`.
        depends: for every module that is a file, the modules that it needs, directly.
        repeat: how many times each is loaded, on top of what the plan itself asks for.

    Raises:
        TooManyOrdersError: there are more than MOST_ORDERS.
    """
    if not isinstance(asked, LoadPlan):
        return (Load("in_order", asked),) * repeat
    times = (asked.times or 1) * repeat
    if asked.parallel:
        return (Load("at_once", asked.parallel),) * ((asked.times or 3) * repeat)
    if asked.modalias:
        files = tuple(name for name in asked.modalias if module_name(name) in depends)
        return (Load("by_modalias", files),) * times
    orders = [Load("in_order", order) for order in orders_of(asked.all_orders, depends)]
    return tuple(one for one in orders for _ in range(times))


def orders_of(
    modules: Sequence[str], depends: Mapping[str, Collection[str]]
) -> tuple[tuple[str, ...], ...]:
    """The orders in which modules can be loaded, that of `modules` or the nearest to it first.

    An order in which a module comes before one that it needs would load that one first all the
    same, so only those count that have each module after all that it needs. What is built in, and
    so is no file, stays out: its place means nothing.

    Args:
        modules: names, each once.
        depends: for every module that is a file, the modules that it needs, directly.

    Raises:
        TooManyOrdersError: there are more than MOST_ORDERS.
    """
    names = [name for name in modules if module_name(name) in depends]
    needs = {name: _all_needed(module_name(name), depends) for name in names}
    found: list[tuple[str, ...]] = []
    for order in _extensions((), names, needs):
        found.append(order)
        if len(found) > MOST_ORDERS:
            raise TooManyOrdersError(
                f"{len(names)} modules can be loaded in more than {MOST_ORDERS} orders"
            )
    return tuple(found)


def _extensions(
    done: tuple[str, ...], left: Sequence[str], needs: Mapping[str, Collection[str]]
) -> Iterator[tuple[str, ...]]:
    if not left:
        yield done
    for name in left:
        rest = [other for other in left if other != name]
        if not any(module_name(other) in needs[name] for other in rest):
            yield from _extensions((*done, name), rest, needs)


def _all_needed(name: str, depends: Mapping[str, Collection[str]]) -> frozenset[str]:
    found: set[str] = set()
    queue = [name]
    while queue:
        new = set(depends.get(queue.pop(), ())) - found
        found |= new
        queue.extend(new)
    return frozenset(found)
