# SPDX-License-Identifier: GPL-2.0-or-later
"""Which loaded modules hold which others, and the orders in which they can be unloaded."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

from harness.core.kernel_modules import module_name

Holders = Mapping[str, tuple[str, ...]]

# Holders are such as "dax_cxl,", "-", or "[permanent],".
_LINE = re.compile(r"(?P<name>\w+) \d+ (?:\d+|-) (?P<holders>\S+)")


class HeldError(ValueError):
    """A module cannot be unloaded as it is now."""


def parse_holders(text: str) -> dict[str, tuple[str, ...]]:
    """The loaded modules, each with the modules that use it, from /proc/modules.

    Raises:
        ValueError: a line is not one of /proc/modules.
    """
    holders = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            raise ValueError(f"not a line of /proc/modules: {line[:80]!r}")
        names = match["holders"].split(",")
        holders[match["name"]] = tuple(name for name in names if name and name != "-")
    return holders


def check_unloadable(names: Iterable[str], holders: Holders) -> None:
    """Check that modules are loaded, and are held only by each other.

    Raises:
        HeldError: names the first that cannot be unloaded, and the reason.
    """
    wanted = {module_name(name) for name in names}
    for name in sorted(wanted):
        if name not in holders:
            raise HeldError(f"{name} is not loaded as a module")
        others = [holder for holder in holders[name] if holder not in wanted]
        if others:
            raise HeldError(f"{name} is held by {', '.join(others)}")


def workable_orders(names: Sequence[str], holders: Holders) -> tuple[tuple[str, ...], ...]:
    """Every order in which these modules can be unloaded: what holds a module goes before it.

    Raises:
        HeldError: no order works: another module holds one of them, or they hold each other.
    """
    check_unloadable(names, holders)
    orders = tuple(
        order
        for order in itertools.permutations(names)
        if not any(
            module_name(later) in holders[module_name(earlier)]
            for earlier, later in itertools.combinations(order, 2)
        )
    )
    if not orders:
        raise HeldError(f"{', '.join(names)} hold each other, so none of them can be unloaded")
    return orders
