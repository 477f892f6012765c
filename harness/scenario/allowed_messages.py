# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel messages that are not failures: those of a scenario, and those that QEMU causes."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from harness.scenario.profile import Profile
from harness.scenario.scenario import Scenario
from harness.scenario.yaml_document import Regex


def allowed_messages(scenario: Scenario, profile: Profile) -> tuple[Regex, ...]:
    """Return `expect.dmesg` of a scenario, and the message of cxl_acpi about hidden host bridges.

    Source: Linux, drivers/cxl/acpi.c: a host bridge of the ACPI namespace must have a CHBS.
    """
    hidden = (
        re.compile(rf"acpi ACPI0016:\w+: No CHBS found for Host Bridge \(UID {bridge.bus}\)")
        for bridge in profile.host_bridges
        if bridge.hidden
    )
    return (*(line.pattern for line in scenario.expect.dmesg), *hidden)


class Quirk(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A message that QEMU causes with any kernel.

    Attributes:
        line: matches the whole first line of the message.
        accel: the accelerators with which it occurs.
        reason: the behaviour of QEMU that causes it.
    """

    line: Regex
    accel: Annotated[tuple[Literal["kvm", "tcg"], ...], msgspec.Meta(min_length=1)]
    reason: Annotated[str, msgspec.Meta(min_length=20)]


class Quirks(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file tests/qemu_quirks.yaml."""

    quirks: tuple[Quirk, ...]

    def patterns(self, accel: str | None) -> tuple[Regex, ...]:
        """The messages to ignore in a guest with this accelerator."""
        return tuple(
            re.compile(rf"\A(?:{quirk.line.pattern})$", re.MULTILINE)
            for quirk in self.quirks
            if accel in quirk.accel
        )
