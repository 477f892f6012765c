# SPDX-License-Identifier: GPL-2.0-or-later
"""The file series.yaml of a folder of patches, as docs/scenarios.md describes it."""

from __future__ import annotations

import msgspec

from harness.scenario.scenario import Policy

GUIDE = "docs/scenarios.md"


class Mutant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What shows that a series brings a bug back.

    Attributes:
        scenario: that must FAIL.
        rule: that it breaks.
        finding: a regular expression of that finding's text.
        rules: all that are broken, each time.
        ci: whether tests/guest/test_mutants.py boots it; ci/mutants runs all.
    """

    scenario: str
    rule: str
    finding: str
    rules: tuple[str, ...]
    ci: bool = False


class SeriesDescription(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A series of patches.

    Attributes:
        order: the names of the patch files, in order.
        base: what the patches are for, for people; empty when nobody says.
        policy: whose rules it implements, if it says so.
        summary: what it is.
        why: what it is for.
        posted: where it was posted.
        mutant: for one that brings a bug back.
        repair_whitespace: apply patches of which a mailer has changed the context lines.
    """

    order: tuple[str, ...]
    base: str = ""
    policy: Policy | None = None
    summary: str = ""
    why: str = ""
    posted: str = ""
    mutant: Mutant | None = None
    repair_whitespace: bool = False
