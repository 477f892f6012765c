# SPDX-License-Identifier: GPL-2.0-or-later
"""Verdicts, findings and the result of a run, in the form that JSON has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from harness.platform.memory_range import MemoryRange
from harness.scenario.module_load import Load
from harness.scenario.scenario import OwnerName, Ownership, Policy, Use

Start = Literal["cold", "warm"]
"""Whether a guest was booted for its run, or restored from one that was saved after its boot."""


class Verdict(Enum):
    """What a scenario run ended with, and the exit code of `harness run`."""

    PASS = 0
    FAIL = 1
    INCONCLUSIVE = 3
    UNBUILDABLE = 4


RULES = {
    "1": "every byte of a Soft Reserved range has exactly one owner",
    "2": "a Soft Reserved range that one committed region fully contains belongs to dax_cxl",
    "3": "what CXL cannot own is dax_hmem's, whole; all_or_nothing then leaves no region",
    "4": "a range that is not Soft Reserved never gets a dax device",
    "5": "a region without any Soft Reserved range under it belongs to dax_cxl, unless it is RAM",
    "6": "nothing of cxl, dax, hmem or kmem warns or errors",
    "7": "the outcome is the same for every order and after every reload",
    "expect": "a range has the owner that the scenario states in place of the contract's",
    "node": "memory is in the NUMA node that the firmware describes",
    "use": "a range is used as the loaded drivers can use it",
    "decode": "memory that a driver owns inside a CXL window stays decoded",
    "consistency": "/proc/iomem and sysfs say the same",
    "step": "every guest step succeeds",
}


@dataclass(frozen=True)
class Finding:
    """One way in which a run broke the contract.

    Attributes:
        rule: key of RULES.
        text: what is wrong, one line.
        range: where, or None.
        iomem: the lines of /proc/iomem that show it.
        dmesg: the kernel messages that belong to it.
        phase: during which step, or phase of the boot, the kernel said them; None where nobody can
            say.
        decoded: those of them with addresses in the kernel's code, as the kernel's own
            decode_stacktrace.sh prints them; empty where that is not possible.
        known: name of the known issue that covers it, None for a new finding.
    """

    rule: str
    text: str
    range: MemoryRange | None = None
    iomem: tuple[str, ...] = ()
    dmesg: tuple[str, ...] = ()
    phase: str | None = None
    decoded: tuple[str, ...] = ()
    known: str | None = None


@dataclass(frozen=True)
class Piece:
    """A part of a range with one observed owner.

    Attributes:
        range: which part.
        owner: who owns it.
        use: what for.
        via: what shows it, such as `region0 > dax0.0 > kmem`.
        node: the NUMA node of the dax device that covers it; None where nobody owns it, or where
            the device has none.
    """

    range: MemoryRange
    owner: OwnerName
    use: Use
    via: str
    node: int | None = None


@dataclass(frozen=True)
class OwnedRange:
    """A named range with its expected owner and what was observed."""

    name: str
    range: MemoryRange
    expected: Ownership
    observed: tuple[Piece, ...]


@dataclass(frozen=True)
class Attempt:
    """One guest of a scenario that was run with several.

    Attributes:
        load: what it loaded, and how.
        verdict: how it ended.
        outcome: who owned what in it.
        reason: why it did not end with PASS.
        start: how it came to be, None where it never became ready.
        seconds: from the start to the end of its run.
        evidence: the folder with everything that was written down.
    """

    load: str
    verdict: Verdict
    outcome: str
    reason: str
    start: Start | None
    seconds: float
    evidence: str

    def as_json(self) -> dict[str, Any]:
        """The object that the result file has for this guest."""
        return {
            "load": self.load,
            "verdict": self.verdict.name,
            "outcome": self.outcome,
            "reason": self.reason,
            "start": self.start,
            "seconds": round(self.seconds, 3),
            "evidence": self.evidence,
        }


@dataclass(frozen=True)
class Difference:
    """In what one guest differs from others that were asked for the same.

    Attributes:
        guest: its place among the scenario's guests, from 1.
        evidence: its folder.
        part: a file of the evidence, or what of the result it is, such as `owners`.
        others: how many guests have what it has not.
        only_here: lines that only it has.
        only_there: lines that only those have.
    """

    guest: int
    evidence: str
    part: str
    others: int
    only_here: tuple[str, ...]
    only_there: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The object that the result file has for this difference."""
        return {
            "guest": self.guest,
            "evidence": self.evidence,
            "part": self.part,
            "others": self.others,
            "only_here": list(self.only_here),
            "only_there": list(self.only_there),
        }


@dataclass(frozen=True)
class StepOutcome:
    """What came of one step after the owners had settled.

    Attributes:
        step: what was done.
        outcome: whether the contract held after it; `not_done` after an earlier break.
        owners: every range that somebody should own then.
        findings: what broke the contract.
        evidence: the folder of this step, below the run's.
    """

    step: str
    outcome: Literal["held", "broke", "not_done"]
    owners: tuple[OwnedRange, ...] = ()
    findings: tuple[Finding, ...] = ()
    evidence: str = ""


@dataclass(frozen=True)
class RunResult:
    """What one run ended with; `as_json` is the result file's form.

    Attributes:
        scenario: its name.
        kernel_spec: the SPEC that was asked for.
        kernel_release: what the kernel calls itself, None before it is known.
        config_sha256: of the kernel's configuration, None where its packager ships none.
        policy: whose rules were judged.
        accel: `kvm` or `tcg`.
        start: how the guest came to be, None where none became ready.
        verdict: how it ended.
        reason: for other verdicts than PASS and FAIL, why.
        hint: what to do about the reason.
        owners: every range that somebody should own.
        findings: what broke the contract, after boot or after a step.
        steps: what came of the steps after that.
        notes: what did not count, and is worth knowing.
        known_issue: why this failure is known, None when a finding is new.
        issues: names of the known issues of this scenario on this kernel, seen or not.
        timings: seconds by phase.
        evidence: the folder with everything that was written down.
        load: what the guest loaded, and how; None when it did not come so far.
        drivers: the modules of the contract's drivers that were loaded when ownership had settled.
        attempts: every guest, where the scenario was run with several.
        compared: how many guests had others that were asked for the same, and were compared.
        differences: in what these differed.
        reproduce: the shortest command line that shows the failure, when one was looked for.
        file: the path by which the scenario was named, empty where its name finds it.
    """

    scenario: str
    kernel_spec: str
    policy: Policy
    kernel_release: str | None = None
    config_sha256: str | None = None
    accel: str | None = None
    start: Start | None = None
    verdict: Verdict = Verdict.INCONCLUSIVE
    reason: str = ""
    hint: str = ""
    owners: tuple[OwnedRange, ...] = ()
    findings: tuple[Finding, ...] = ()
    steps: tuple[StepOutcome, ...] = ()
    notes: tuple[str, ...] = ()
    known_issue: str | None = None
    issues: tuple[str, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    evidence: str = ""
    load: Load | None = None
    drivers: tuple[str, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    compared: int = 0
    differences: tuple[Difference, ...] = ()
    reproduce: str = ""
    file: str = ""

    def as_json(self) -> dict[str, Any]:
        """The object that the result file has for this run."""
        return {
            "scenario": self.scenario,
            "file": self.file,
            "kernel": {
                "spec": self.kernel_spec,
                "release": self.kernel_release,
                "config_sha256": self.config_sha256,
            },
            "policy": self.policy,
            "accel": self.accel,
            "start": self.start,
            "load": str(self.load) if self.load else None,
            "drivers": list(self.drivers),
            "verdict": self.verdict.name,
            "reason": self.reason,
            "hint": self.hint,
            "owners": _owners_json(self.owners),
            "findings": _findings_json(self.findings),
            "steps": [
                {
                    "step": one.step,
                    "outcome": one.outcome,
                    "owners": _owners_json(one.owners),
                    "findings": _findings_json(one.findings),
                    "evidence": one.evidence,
                }
                for one in self.steps
            ],
            "notes": list(self.notes),
            "known_issue": self.known_issue,
            "issues": list(self.issues),
            "timings": {name: round(value, 3) for name, value in self.timings.items()},
            "evidence": self.evidence,
            "attempts": [one.as_json() for one in self.attempts],
            "compared": self.compared,
            "differences": [one.as_json() for one in self.differences],
            "reproduce": self.reproduce,
        }


def _owners_json(owners: Iterable[OwnedRange]) -> list[dict[str, Any]]:
    return [
        {
            "name": one.name,
            "range": str(one.range),
            "expected": {
                "owner": one.expected.owner,
                "use": one.expected.use,
                "node": one.expected.node,
            },
            "observed": [
                {
                    "range": str(piece.range),
                    "owner": piece.owner,
                    "use": piece.use,
                    "via": piece.via,
                    "node": piece.node,
                }
                for piece in one.observed
            ],
        }
        for one in owners
    ]


def _findings_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    return [
        {
            "rule": one.rule,
            "range": str(one.range) if one.range else None,
            "text": one.text,
            "iomem": list(one.iomem),
            "phase": one.phase,
            "dmesg": list(one.dmesg),
            "decoded": list(one.decoded),
            "known": one.known,
        }
        for one in findings
    ]
