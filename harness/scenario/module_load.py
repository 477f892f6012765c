# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans for loading a scenario's modules, and the single loads that they expand to."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from harness.core.kernel_modules import module_name

ModuleName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*\Z", max_length=64)]
How = Literal["in_order", "at_once", "by_modalias"]

# All orders of seven independent modules. More would take a night.
MOST_ORDERS = 5040


class TooManyOrdersError(ValueError):
    """The number of possible load orders exceeds MOST_ORDERS."""


class LoadPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Loads beyond a single order; exactly one of the three lists is given.

    Attributes:
        all_orders: these modules, in every order that their dependencies allow.
        parallel: these modules, with all modprobes running concurrently.
        modalias: every module that matches a device of the machine, as udev loads them; these
            must be among them.
        times: number of guests for each load.
    """

    all_orders: tuple[ModuleName, ...] = ()
    parallel: tuple[ModuleName, ...] = ()
    modalias: tuple[ModuleName, ...] = ()
    times: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None

    def __post_init__(self) -> None:
        normalise_modules(self, "all_orders", "parallel", "modalias")

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules of the list that is given."""
        return self.all_orders or self.parallel or self.modalias


@dataclass(frozen=True)
class Load:
    """The modules that one guest loads; their order matters for `in_order`."""

    how: How
    modules: tuple[str, ...]

    def __str__(self) -> str:
        names = ", ".join(self.modules) or "nothing"
        if self.how == "at_once":
            return f"concurrently: {names}"
        return f"by modalias: {names}" if self.how == "by_modalias" else names

    def option(self) -> str:
        """The value of `--load` for the same load."""
        if self.how == "at_once":
            return "parallel"
        return "modalias" if self.how == "by_modalias" else ",".join(self.modules) or "none"


def normalise_modules(value: msgspec.Struct, *fields: str) -> None:
    """Spell the module names in these fields of a struct as the kernel does."""
    for field in fields:
        names = getattr(value, field)
        if isinstance(names, str):
            msgspec.structs.force_setattr(value, field, module_name(names))
        elif isinstance(names, tuple):
            msgspec.structs.force_setattr(value, field, tuple(map(module_name, names)))


def loads_of(
    requested: tuple[str, ...] | LoadPlan,
    depends: Mapping[str, Collection[str]],
    repeat: int = 1,
) -> tuple[Load, ...]:
    """List the loads of a scenario, one for each guest.

    Args:
        requested: the scenario's `guest.load`.
        depends: the direct dependencies of every module that is not built in.
        repeat: number of times to repeat each load, on top of the plan's `times`.

    Raises:
        TooManyOrdersError: there are more than MOST_ORDERS.
    """
    if not isinstance(requested, LoadPlan):
        return (Load("in_order", requested),) * repeat
    times = (requested.times or 1) * repeat
    if requested.parallel:
        return (Load("at_once", requested.parallel),) * ((requested.times or 3) * repeat)
    if requested.modalias:
        files = tuple(name for name in requested.modalias if name in depends)
        return (Load("by_modalias", files),) * times
    orders = [Load("in_order", order) for order in orders_of(requested.all_orders, depends)]
    return tuple(load for load in orders for _ in range(times))


def orders_of(
    modules: Sequence[str], depends: Mapping[str, Collection[str]]
) -> tuple[tuple[str, ...], ...]:
    """List the orders in which modules can be loaded, first that of `modules` or the nearest to it.

    Loading a module also loads its dependencies, so only orders in which each module follows all
    of its dependencies are different loads. Built-in modules are left out: they have no position
    in the order.

    Args:
        modules: names, each once, with underscores.
        depends: the direct dependencies of every module that is not built in.

    Raises:
        TooManyOrdersError: there are more than MOST_ORDERS.
    """
    names = [name for name in modules if name in depends]
    needs = {name: _all_needed(name, depends) for name in names}
    orders: list[tuple[str, ...]] = []
    for order in _extensions((), names, needs):
        orders.append(order)
        if len(orders) > MOST_ORDERS:
            raise TooManyOrdersError(
                f"{len(names)} modules can be loaded in more than {MOST_ORDERS} orders"
            )
    return tuple(orders)


def _extensions(
    done: tuple[str, ...], left: Sequence[str], needs: Mapping[str, frozenset[str]]
) -> Iterator[tuple[str, ...]]:
    if not left:
        yield done
    for name in left:
        rest = [other for other in left if other != name]
        if needs[name].isdisjoint(rest):
            yield from _extensions((*done, name), rest, needs)


def _all_needed(name: str, depends: Mapping[str, Collection[str]]) -> frozenset[str]:
    needed: set[str] = set()
    queue = [name]
    while queue:
        new = set(depends.get(queue.pop(), ())) - needed
        needed |= new
        queue.extend(new)
    return frozenset(needed)
