# SPDX-License-Identifier: GPL-2.0-or-later
"""What a scenario may ask to be loaded, checked before anything starts."""

from __future__ import annotations

from harness.core.kernel_modules import module_name
from harness.platform.module_denials import denied_modules
from harness.scenario.module_load import LoadPlan
from harness.scenario.scenario import Scenario
from harness.scenario.yaml_document import Document


def check_load(document: Document[Scenario]) -> None:
    """Check `guest.load` with all that forbids modules.

    Raises:
        UsageError: names file, line and field.
    """
    guest = document.value.guest
    at = "guest.load"
    if isinstance(guest.load, LoadPlan):
        given = [
            name for name in ("all_orders", "parallel", "modalias") if getattr(guest.load, name)
        ]
        if len(given) != 1:
            raise document.error(
                at,
                f"asks for {' and '.join(given) or 'no module'}",
                hint="a list of modules, or one of all_orders, parallel and modalias with one",
            )
        at = f"{at}.{given[0]}"
    missing = {module_name(one) for one in guest.missing}
    denied = denied_modules(document.value.kernel.cmdline)
    seen: set[str] = set()
    for index, asked in enumerate(guest.modules):
        name = module_name(asked)
        if name in missing:
            raise document.error(
                f"{at}[{index}]",
                f"loads {asked}, which guest.missing takes away",
                hint="remove it from one of the two",
            )
        if name in denied:
            raise document.error(
                f"{at}[{index}]",
                f"loads {asked}, which module_blacklist in kernel.cmdline denies",
                hint="remove it from one of the two",
            )
        if isinstance(guest.load, LoadPlan) and name in seen:
            raise document.error(
                f"{at}[{index}]", f"names {asked} twice", hint="name each module once"
            )
        seen.add(name)
