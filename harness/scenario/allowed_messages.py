# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel messages that a scenario brings about, and that no kernel is blamed for."""

from __future__ import annotations

import re

from harness.scenario.profile import Profile
from harness.scenario.scenario import Scenario


def expected_messages(scenario: Scenario, profile: Profile) -> tuple[re.Pattern[str], ...]:
    """What the scenario states, and what cxl_acpi says about host bridges kept from Linux.

    Source: Linux, drivers/cxl/acpi.c: a host bridge of the ACPI namespace must have a CHBS.
    """
    hidden = (
        re.compile(rf"acpi ACPI0016:\w+: No CHBS found for Host Bridge \(UID {bridge.bus}\)")
        for bridge in profile.host_bridges
        if bridge.hidden
    )
    return (*(re.compile(line.pattern) for line in scenario.expect.dmesg), *hidden)
