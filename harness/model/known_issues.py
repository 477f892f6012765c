# SPDX-License-Identifier: GPL-2.0-or-later
"""Failures that are known: which scenario fails on which kernels, what is seen, and why."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from harness.model.document import Document, read_document
from harness.model.scenario import Policy

_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


class KnownIssue(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One known failure.

    Attributes:
        scenario: the scenario's name.
        since: the first kernel version that fails, such as `7.1`; empty for all before `until`.
        until: the first kernel version that does not fail any more; empty when none is known.
        policies: the policies under which it fails; empty for all.
        rules: the rules that are broken; a failure that breaks others too is not this one.
        seen: what is seen, in the words of the kernel's own messages and /proc/iomem.
        why: why it happens.
    """

    scenario: str
    since: str = ""
    until: str = ""
    policies: tuple[Policy, ...] = ()
    rules: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    seen: Annotated[str, msgspec.Meta(min_length=20)]
    why: Annotated[str, msgspec.Meta(min_length=20)]


class KnownIssues(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file tests/known_issues.yaml."""

    issues: tuple[KnownIssue, ...]

    def about(self, scenario: str, release: str, policy: Policy) -> KnownIssue | None:
        """The known failure of a scenario on a kernel release, or None."""
        version = _version(release)
        for issue in self.issues:
            if (
                issue.scenario == scenario
                and (not issue.policies or policy in issue.policies)
                and (not issue.since or version >= _version(issue.since))
                and (not issue.until or version < _version(issue.until))
            ):
                return issue
        return None


def read_known_issues(text: str, name: str) -> Document[KnownIssues]:
    """Read the file of known issues.

    Raises:
        UsageError: names file, line and field.
    """
    document = read_document(text, name, KnownIssues)
    for index, issue in enumerate(document.value.issues):
        for field in ("since", "until"):
            value = getattr(issue, field)
            if value and _VERSION.fullmatch(value) is None:
                raise document.error(
                    f"issues[{index}].{field}",
                    f"{value!r} is not a kernel version",
                    hint='write it in quotes, such as "7.1"',
                )
    return document


def _version(release: str) -> tuple[int, int, int]:
    match = _VERSION.match(release)
    if match is None:
        return (0, 0, 0)
    return (int(match[1]), int(match[2]), int(match[3] or 0))
