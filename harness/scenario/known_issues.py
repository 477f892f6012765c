# SPDX-License-Identifier: GPL-2.0-or-later
"""Known issues of kernels: versions, conditions, and the findings that each covers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from harness.contract.expected import expectations
from harness.contract.result import Finding
from harness.core.errors import UsageError
from harness.core.files import read_text
from harness.core.kernel_version import VERSION, kernel_version
from harness.core.paths import KNOWN_ISSUES
from harness.platform.address_map import MachineLayout
from harness.platform.firmware_state import place_firmware
from harness.platform.memory_range import MemoryRange
from harness.scenario.issue_conditions import Circumstances, Conditions
from harness.scenario.scenario import Policy
from harness.scenario.scenario_files import Case, shown_path
from harness.scenario.yaml_document import FieldError, Regex, read_document

IssueName = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]*\Z", max_length=64)]
Rule = Literal["1", "2", "3", "4", "5", "6", "7", "node", "use", "decode", "consistency", "step"]

_SPEC = re.compile(r"(?:(?:build:)?debian:)?(?P<version>\d+\.\d+(?:\.\d+)?)")
# A range of physical addresses in a kernel message, as %pr and its users print it.
_PRINTED_RANGE = re.compile(r"0x(?P<start>[0-9a-f]{1,16})-0x(?P<end>[0-9a-f]{1,16})")


class KnownIssue(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One known failure.

    Attributes:
        name: unique; results use it.
        where: the conditions under which it occurs; without them in every scenario.
        since: the first kernel version that fails, such as `7.1`; empty for all before `until`.
        until: the first kernel version that no longer fails; empty if it still fails.
        policies: the policies under which it fails; empty for all.
        rules: the rules that are broken.
        lines: the kernel messages that break rule 6, required with it.
        sometimes: a run may also pass: a race, or not every scenario is affected.
        seen: the evidence: kernel messages and /proc/iomem.
        why: the cause.
    """

    name: IssueName
    where: Conditions = Conditions()
    since: str = ""
    until: str = ""
    policies: tuple[Policy, ...] = ()
    rules: Annotated[tuple[Rule, ...], msgspec.Meta(min_length=1)]
    lines: tuple[Regex, ...] = ()
    sometimes: bool = False
    seen: Annotated[str, msgspec.Meta(min_length=20)]
    why: Annotated[str, msgspec.Meta(min_length=20)]

    def __post_init__(self) -> None:
        for field in ("since", "until"):
            value = getattr(self, field)
            if value and VERSION.fullmatch(value) is None:
                raise FieldError(
                    f"{value!r} is not a kernel version",
                    field=field,
                    hint='write it in quotes, such as "7.1"',
                )
        if ("6" in self.rules) != bool(self.lines):
            raise FieldError(
                "rule 6 and lines go together",
                field="lines",
                hint="list the kernel messages that break rule 6, as regular expressions",
            )

    def covers(self, finding: Finding, addresses: Iterable[MemoryRange]) -> bool:
        """True if this issue explains a finding.

        Args:
            finding: one with a range must lie at the addresses; one without a range can be a
                kernel message, a step, or rule 7 for the guest as a whole. A message that prints
                ranges must print one that overlaps the addresses.
            addresses: where the conditions of the issue hold.
        """
        if finding.rule not in self.rules:
            return False
        if finding.range is not None and not any(a.contains(finding.range) for a in addresses):
            return False
        if finding.range is None and finding.rule not in ("6", "7", "step"):
            return False
        if finding.rule != "6":
            return True
        message = f"{finding.kind}: {finding.subject}"
        printed = list(_printed_ranges(message))
        return any(line.search(message) for line in self.lines) and (
            not printed or any(a.overlaps(span) for a in addresses for span in printed)
        )

    def concerns(self, release: str, policy: Policy) -> bool:
        """True if it occurs on a kernel release, under a policy."""
        version = kernel_version(release)
        return (
            (not self.policies or policy in self.policies)
            and (not self.since or version >= kernel_version(self.since))
            and (not self.until or version < kernel_version(self.until))
        )


class KnownIssues(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file tests/known_issues.yaml."""

    issues: tuple[KnownIssue, ...]

    def __post_init__(self) -> None:
        names: set[str] = set()
        for index, issue in enumerate(self.issues):
            if issue.name in names:
                raise FieldError(
                    f"duplicate issue {issue.name!r}",
                    field=f"issues[{index}].name",
                    hint="give each issue its own name",
                )
            names.add(issue.name)

    def about(self, case: Circumstances, release: str) -> tuple[KnownIssue, ...]:
        """The issues that occur in a scenario on a kernel release."""
        return tuple(issue for issue, _ in self._where(case, release))

    def explain(
        self, findings: Iterable[Finding], case: Circumstances, release: str
    ) -> tuple[KnownIssue | None, ...]:
        """For each finding, the first known issue that covers it, or None for a new finding."""
        places = self._where(case, release)
        return tuple(
            next((issue for issue, spans in places if issue.covers(finding, spans)), None)
            for finding in findings
        )

    def _where(
        self, case: Circumstances, release: str
    ) -> tuple[tuple[KnownIssue, tuple[MemoryRange, ...]], ...]:
        """The issues that occur, each with its addresses."""
        places = (
            (issue, issue.where.where(case))
            for issue in self.issues
            if issue.concerns(release, case.policy)
        )
        return tuple((issue, spans) for issue, spans in places if spans)


def _printed_ranges(text: str) -> Iterator[MemoryRange]:
    for match in _PRINTED_RANGE.finditer(text):
        start, end = int(match["start"], 16), int(match["end"], 16)
        if start <= end:
            yield MemoryRange(start, end)


def load_known_issues(path: Path = KNOWN_ISSUES) -> KnownIssues:
    """Read the known issues; none if there is no such file.

    Raises:
        UsageError: the file is wrong.
    """
    if not path.exists():
        return KnownIssues(issues=())
    return read_document(read_text(path), shown_path(path), KnownIssues).value


def version_of(kernel: str) -> str:
    """Return the version in a kernel SPEC, or a version itself.

    Raises:
        UsageError: the SPEC does not contain one.
    """
    match = _SPEC.fullmatch(kernel)
    if match is None:
        raise UsageError(
            f"{kernel!r} does not name a kernel version",
            hint="give a version such as 7.2, debian:7.2 or build:debian:7.2",
        )
    return match["version"]


def known_failures(
    case: Case, layout: MachineLayout, release: str, policy: Policy
) -> tuple[KnownIssue, ...]:
    """The known issues of a scenario on a kernel release; none on a kernel that it skips.

    Raises:
        UsageError: the scenario does not fit its machine, or the file of known issues is wrong.
    """
    since = case.scenario.kernel.since
    if since and kernel_version(release) < kernel_version(since):
        return ()
    return load_known_issues().about(circumstances(case, layout, policy), release)


def circumstances(case: Case, layout: MachineLayout, policy: Policy) -> Circumstances:
    """Place a scenario in an address map, for the conditions of known issues."""
    scenario = case.scenario
    state = place_firmware(case.document, case.profile, layout)
    owners = expectations(scenario, state, policy)[0].owners
    return Circumstances(scenario, state, policy, owners)
