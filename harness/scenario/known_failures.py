# SPDX-License-Identifier: GPL-2.0-or-later
"""Known issues of a scenario on a kernel, without a run."""

from __future__ import annotations

import re

from harness.contract.expected import expectations
from harness.core.errors import UsageError
from harness.core.kernel_version import kernel_version
from harness.platform.address_map import MachineLayout
from harness.platform.firmware_state import place_firmware
from harness.scenario.issue_conditions import Circumstances
from harness.scenario.known_issues import KnownIssue
from harness.scenario.scenario import Policy
from harness.scenario.scenario_files import Case, load_known_issues

_VERSION = re.compile(r"(?:(?:build:)?debian:)?(?P<version>\d+\.\d+(?:\.\d+)?)")


def version_of(kernel: str) -> str:
    """The version in a kernel SPEC, or a version itself.

    Raises:
        UsageError: the SPEC does not contain one.
    """
    match = _VERSION.fullmatch(kernel)
    if match is None:
        raise UsageError(
            f"{kernel!r} does not name a kernel version",
            hint="give a version such as 7.2, debian:7.2 or build:debian:7.2",
        )
    return match["version"]


def known_failures(
    case: Case, layout: MachineLayout, release: str, policy: Policy
) -> tuple[KnownIssue, ...]:
    """The known issues that a scenario meets on a kernel release; none where it is not for it.

    Raises:
        UsageError: the scenario does not fit its machine, or the file of known issues is wrong.
    """
    since = case.scenario.kernel.since
    if since and kernel_version(release) < kernel_version(since):
        return ()
    return load_known_issues().about(circumstances(case, layout, policy), release)


def circumstances(case: Case, layout: MachineLayout, policy: Policy) -> Circumstances:
    """What the conditions of known issues are evaluated on, as the scenario states it."""
    scenario = case.scenario
    state = place_firmware(case.document, case.profile, layout)
    owners = expectations(scenario, state, policy)[0].owners
    return Circumstances(scenario, state, policy, owners)
