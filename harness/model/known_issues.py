# SPDX-License-Identifier: GPL-2.0-or-later
"""Failures that are known: which scenario fails on which kernels, what is seen, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import msgspec

from harness.model.acpi_tables import MemoryAffinity
from harness.model.document import Document, read_document
from harness.model.kernel_version import VERSION, kernel_version
from harness.model.layout_troubles import Trouble, troubled
from harness.model.memory_range import MemoryRange
from harness.model.placement import FirmwareState
from harness.model.scenario import Policy
from harness.model.verdict import Finding


class KnownIssue(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One known failure.

    Attributes:
        scenario: the scenario's name, or `*` for every one.
        also: further scenarios that fail in the same way.
        since: the first kernel version that fails, such as `7.1`; empty for all before `until`.
        until: the first kernel version that does not fail any more; empty when none is known.
        policies: the policies under which it fails; empty for all.
        rules: the rules that are broken.
        lines: regular expressions of the kernel messages that break rule 6, required with it.
        sometimes: whether a run may pass as well: a race, or not every scenario meets it.
        where: what is special about the layouts that it breaks, for those that `harness fuzz`
            draws: what it covers there lies where that is so.
        seen: what is seen, in the words of the kernel's own messages and /proc/iomem.
        why: why it happens.
    """

    scenario: str
    also: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    policies: tuple[Policy, ...] = ()
    rules: Annotated[
        tuple[
            Literal["1", "2", "3", "4", "5", "6", "7", "node", "use", "consistency", "step"], ...
        ],
        msgspec.Meta(min_length=1),
    ]
    lines: tuple[str, ...] = ()
    sometimes: bool = False
    where: Trouble | None = None
    seen: Annotated[str, msgspec.Meta(min_length=20)]
    why: Annotated[str, msgspec.Meta(min_length=20)]

    @property
    def scenarios(self) -> tuple[str, ...]:
        """The names of all scenarios that it is about, or `*`."""
        return (self.scenario, *self.also)

    def covers(self, finding: Finding) -> bool:
        """Whether a finding is what this issue says is seen."""
        if finding.rule not in self.rules:
            return False
        # A trace is one message of many lines, and others' get into it: its first says what it is.
        message = finding.dmesg[0].partition("\n")[0] if len(finding.dmesg) == 1 else ""
        text = f"{finding.text}\n{message}"
        return finding.rule != "6" or any(re.search(line, text) for line in self.lines)

    def concerns(self, release: str, policy: Policy) -> bool:
        """Whether it is there on a kernel release, under a policy."""
        version = kernel_version(release)
        return (
            (not self.policies or policy in self.policies)
            and (not self.since or version >= kernel_version(self.since))
            and (not self.until or version < kernel_version(self.until))
        )


class KnownIssues(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file tests/known_issues.yaml."""

    issues: tuple[KnownIssue, ...]

    def about(self, scenario: str, release: str, policy: Policy) -> tuple[KnownIssue, ...]:
        """The known failures of a scenario on a kernel release."""
        return tuple(
            issue
            for issue in self.issues
            if {scenario, "*"} & set(issue.scenarios) and issue.concerns(release, policy)
        )

    def explain(
        self, scenario: str, release: str, policy: Policy, findings: Iterable[Finding]
    ) -> tuple[KnownIssue, ...]:
        """The known issues that together cover every finding; none when one finding is new."""
        issues = self.about(scenario, release, policy)
        used: dict[KnownIssue, None] = {}
        for finding in findings:
            covering = [issue for issue in issues if issue.covers(finding)]
            if not covering:
                return ()
            used[covering[0]] = None
        return tuple(used)

    def unexplained(
        self,
        findings: Iterable[Finding],
        release: str,
        policy: Policy,
        state: FirmwareState,
        described: Sequence[MemoryAffinity],
    ) -> tuple[Finding, ...]:
        """The findings in a layout that nobody wrote which no known issue covers.

        An issue covers there what lies where its `where` says, and, where that is anywhere at all,
        the kernel messages of its lines; an issue of every scenario covers what it always does.

        Args:
            findings: of a run with the layout.
            release: of the kernel.
            policy: whose rules were judged.
            state: what the firmware left.
            described: as for `troubled`.
        """
        spans: dict[KnownIssue, tuple[MemoryRange, ...]] = {
            issue: troubled(issue.where, state, described) if issue.where else ()
            for issue in self.issues
            if (issue.where or "*" in issue.scenarios) and issue.concerns(release, policy)
        }

        def explains(issue: KnownIssue, finding: Finding) -> bool:
            if not issue.covers(finding):
                return False
            if "*" in issue.scenarios:
                return True
            if finding.range is None:
                return finding.rule == "6" and bool(spans[issue])
            return any(span.contains(finding.range) for span in spans[issue])

        return tuple(one for one in findings if not any(explains(issue, one) for issue in spans))


def read_known_issues(text: str, name: str) -> Document[KnownIssues]:
    """Read the file of known issues.

    Raises:
        UsageError: names file, line and field.
    """
    document = read_document(text, name, KnownIssues)
    for index, issue in enumerate(document.value.issues):
        for field in ("since", "until"):
            value = getattr(issue, field)
            if value and VERSION.fullmatch(value) is None:
                raise document.error(
                    f"issues[{index}].{field}",
                    f"{value!r} is not a kernel version",
                    hint='write it in quotes, such as "7.1"',
                )
        if ("6" in issue.rules) != bool(issue.lines):
            raise document.error(
                f"issues[{index}].lines",
                "rule 6 and lines go together",
                hint="name the kernel messages that are seen, as regular expressions",
            )
        for number, line in enumerate(issue.lines):
            try:
                re.compile(line)
            except re.error as error:
                raise document.error(
                    f"issues[{index}].lines[{number}]",
                    f"not a regular expression: {error}",
                    hint="escape brackets and dots that are meant as they stand",
                ) from None
    return document
