# SPDX-License-Identifier: GPL-2.0-or-later
"""Known failures: on which kernels, under which conditions, what is seen, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

from harness.contract.result import Finding
from harness.core.kernel_version import VERSION, kernel_version
from harness.platform.memory_range import MemoryRange
from harness.scenario.issue_conditions import Circumstances, Conditions
from harness.scenario.post_boot_steps import VERBS
from harness.scenario.scenario import Policy
from harness.scenario.yaml_document import Document, read_document

IssueName = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]*\Z", max_length=64)]


class KnownIssue(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One known failure.

    Attributes:
        name: by which results name it.
        where: the conditions under which it occurs; without them in every scenario.
        since: the first kernel version that fails, such as `7.1`; empty for all before `until`.
        until: the first kernel version that no longer fails; empty when none is known.
        policies: the policies under which it fails; empty for all.
        rules: the rules that are broken.
        lines: regular expressions of the kernel messages that break rule 6, required with it.
        sometimes: whether a run may pass as well: a race, or not every scenario meets it.
        seen: what is seen, in the words of the kernel's own messages and /proc/iomem.
        why: why it happens.
    """

    name: IssueName
    where: Conditions = Conditions()
    since: str = ""
    until: str = ""
    policies: tuple[Policy, ...] = ()
    rules: Annotated[
        tuple[
            Literal[
                "1", "2", "3", "4", "5", "6", "7", "node", "use", "decode", "consistency", "step"
            ],
            ...,
        ],
        msgspec.Meta(min_length=1),
    ]
    lines: tuple[str, ...] = ()
    sometimes: bool = False
    seen: Annotated[str, msgspec.Meta(min_length=20)]
    why: Annotated[str, msgspec.Meta(min_length=20)]

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

    def about(self, case: Circumstances, release: str) -> tuple[KnownIssue, ...]:
        """The known failures of a scenario on a kernel release."""
        return tuple(issue for issue, _ in self._where(case, release))

    def explain(
        self, findings: Iterable[Finding], case: Circumstances, release: str
    ) -> tuple[KnownIssue | None, ...]:
        """The first known issue that covers each finding, None for a finding that is new.

        A finding with a range must lie where the issue's layout condition holds. A finding without
        one can only be a kernel message, a step, or rule 7 for the guest as a whole.
        """
        places = self._where(case, release)

        def covers(issue: KnownIssue, spans: tuple[MemoryRange, ...], finding: Finding) -> bool:
            if not issue.covers(finding):
                return False
            if finding.range is None:
                return finding.rule in ("6", "7", "step")
            return any(span.contains(finding.range) for span in spans)

        return tuple(
            next((issue for issue, spans in places if covers(issue, spans, finding)), None)
            for finding in findings
        )

    def _where(
        self, case: Circumstances, release: str
    ) -> tuple[tuple[KnownIssue, tuple[MemoryRange, ...]], ...]:
        """The issues that occur, each with the addresses at which it does."""
        found = (
            (issue, issue.where.where(case))
            for issue in self.issues
            if issue.concerns(release, case.policy)
        )
        return tuple((issue, spans) for issue, spans in found if spans)


def read_known_issues(text: str, name: str) -> Document[KnownIssues]:
    """Read the file of known issues.

    Raises:
        UsageError: names file, line and field.
    """
    document = read_document(text, name, KnownIssues)
    names: set[str] = set()
    for index, issue in enumerate(document.value.issues):
        if issue.name in names:
            raise document.error(
                f"issues[{index}].name",
                f"a second issue is called {issue.name!r}",
                hint="results tell issues apart by their names",
            )
        names.add(issue.name)
        step = issue.where.unknown_step()
        if step is not None:
            raise document.error(
                f"issues[{index}].where.steps",
                f"{step} is not a step",
                hint=f"write one verb and what it is done to, or '*': {', '.join(VERBS)}",
            )
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
