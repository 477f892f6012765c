# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as they are read back from JSON: what `RunResult.as_json` wrote, now or some time ago.

A field that this version does not know is passed over, and one that was not there yet has its
default, so that a report can hold last year's nights beside today's.
"""

from __future__ import annotations

import shlex
from typing import Any, Literal

import msgspec

from harness.contract.result import RULES, Verdict
from harness.platform.memory_range import MemoryRange

VerdictName = Literal["PASS", "FAIL", "INCONCLUSIVE", "UNBUILDABLE"]


class NotAResultError(ValueError):
    """The object is not the result of a run."""


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a result; fields that it does not know are passed over."""


class OwnershipRecord(_Record, frozen=True, kw_only=True):
    """An owner and its use."""

    owner: str = "nobody"
    use: str = "none"
    node: int | None = None

    def __str__(self) -> str:
        return self.owner if self.use == "none" else f"{self.owner}/{self.use}"


class PieceRecord(_Record, frozen=True, kw_only=True):
    """A part of a range with one observed owner."""

    range: str
    owner: str = "nobody"
    use: str = "none"
    via: str = ""
    node: int | None = None

    @property
    def ownership(self) -> OwnershipRecord:
        """Its owner and use."""
        return OwnershipRecord(owner=self.owner, use=self.use)


class OwnedRecord(_Record, frozen=True, kw_only=True):
    """A named range with its expected owner and what was observed."""

    name: str
    range: str
    expected: OwnershipRecord = OwnershipRecord()
    observed: tuple[PieceRecord, ...] = ()

    def is_wrong(self, piece: PieceRecord) -> bool:
        """Whether a piece has another owner, use or stated NUMA node than the expected one."""
        expected = self.expected
        if (piece.owner, piece.use) != (expected.owner, expected.use):
            return True
        return piece.owner != "nobody" and expected.node not in (None, piece.node)

    def wrong_pieces(self) -> tuple[PieceRecord, ...]:
        """The pieces that are not as expected."""
        return tuple(one for one in self.observed if self.is_wrong(one))


class FindingRecord(_Record, frozen=True, kw_only=True):
    """One way in which a run broke the contract."""

    rule: str
    text: str
    range: str | None = None
    iomem: tuple[str, ...] = ()
    dmesg: tuple[str, ...] = ()
    phase: str | None = None
    known: str | None = None

    @property
    def title(self) -> str:
        """The rule in words."""
        title = RULES.get(self.rule, "")
        name = f"rule {self.rule}" if self.rule.isdigit() else self.rule
        return f"{name}: {title}" if title else name


class StepRecord(_Record, frozen=True, kw_only=True):
    """A step after the boot, and what came of it."""

    step: str
    outcome: str = ""
    owners: tuple[OwnedRecord, ...] = ()
    findings: tuple[FindingRecord, ...] = ()
    evidence: str | None = ""


class AttemptRecord(_Record, frozen=True, kw_only=True):
    """One guest of a scenario that was run with several."""

    load: str = ""
    verdict: VerdictName
    outcome: str = ""
    reason: str = ""
    start: str | None = None
    seconds: float = 0.0
    evidence: str = ""


class DifferenceRecord(_Record, frozen=True, kw_only=True):
    """In what one guest differs from others that were asked for the same."""

    guest: int
    evidence: str = ""
    part: str = ""
    others: int = 0
    only_here: tuple[str, ...] = ()
    only_there: tuple[str, ...] = ()


class KernelRecord(_Record, frozen=True, kw_only=True):
    """The kernel of a run."""

    spec: str
    release: str | None = None
    config_sha256: str | None = None


class RunRecord(_Record, frozen=True, kw_only=True):
    """The result of one run; the fields are those of `RunResult`."""

    scenario: str
    kernel: KernelRecord
    verdict: VerdictName
    policy: str = "per_range"
    accel: str | None = None
    start: str | None = None
    load: Any = None
    reason: str = ""
    hint: str = ""
    owners: tuple[OwnedRecord, ...] = ()
    findings: tuple[FindingRecord, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    known_issue: str | None = None
    issues: Any = None
    timings: dict[str, float] = {}
    evidence: str = ""
    attempts: tuple[AttemptRecord, ...] = ()
    compared: int = 0
    differences: tuple[DifferenceRecord, ...] = ()
    reproduce: str | None = ""
    file: str | None = ""
    notes: Any = None

    @property
    def passed(self) -> bool:
        """Whether the contract held."""
        return self.verdict == Verdict.PASS.name

    @property
    def load_text(self) -> str:
        """What was loaded, and how; empty when the result does not say."""
        if isinstance(self.load, list):
            return ", ".join(map(str, self.load))
        return str(self.load) if self.load else ""

    @property
    def note_lines(self) -> tuple[str, ...]:
        """What the run wants to have said beside its verdict."""
        if isinstance(self.notes, list):
            return tuple(map(str, self.notes))
        return (str(self.notes),) if self.notes else ()

    @property
    def seconds(self) -> float | None:
        """From the start to the end, None when the result does not say."""
        return self.timings.get("total")

    @property
    def command(self) -> str:
        """The command line that runs this again."""
        if self.reproduce:
            return self.reproduce
        scenario = shlex.quote(self.file or self.scenario)
        words = f"harness run {scenario} --kernel {self.kernel.spec} --policy {self.policy}"
        return f"{words} --accel {self.accel}" if self.accel else words


def read_record(raw: Any) -> RunRecord:
    """Read one object of a result file.

    Raises:
        NotAResultError: it is none; says what is wrong, and where in the object.
    """
    try:
        record = msgspec.convert(raw, RunRecord)
        for owned in (*record.owners, *(one for step in record.steps for one in step.owners)):
            for text in (owned.range, *(piece.range for piece in owned.observed)):
                MemoryRange.parse(text)
        for finding in record.findings:
            if finding.range:
                MemoryRange.parse(finding.range)
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at `$.")
        raise NotAResultError(f"{at.rstrip('`')}: {message}" if at else message) from None
    except ValueError as error:
        raise NotAResultError(str(error)) from None
    return record
