# SPDX-License-Identifier: GPL-2.0-or-later
"""Verdicts, findings and the result of a run: what result.json contains, written and read here."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from harness.platform.json_values import FormatError, from_json, to_json
from harness.platform.memory_range import MemoryRange
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.module_load import Load
from harness.scenario.scenario import OwnerName, Ownership, Policy, Use

FORMAT = 1
"""Number of the format of result.json. A change that breaks readers takes the next number."""

Start = Literal["cold", "warm"]
"""A guest that was booted for its run, or restored from one that was saved after its boot."""


class Verdict(Enum):
    """The outcome of a scenario run."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    UNBUILDABLE = "UNBUILDABLE"

    @property
    def exit_code(self) -> int:
        """The exit code of `harness run`."""
        return {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3, "UNBUILDABLE": 4}[self.value]


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
    """One violation of the contract.

    Only `text` is for people. Whether two findings are the same failure follows from the others,
    see `failure_signature`.

    Attributes:
        rule: key of RULES.
        text: what is wrong, one line.
        range: where, or None.
        iomem: the lines of /proc/iomem that show it.
        dmesg: the kernel messages that belong to it.
        phase: the step, or phase of the boot, in which it was seen or the kernel printed it; None
            if unknown.
        decoded: those of them with addresses in the kernel's code, as the kernel's own
            decode_stacktrace.sh prints them; empty where that is not possible.
        known: name of the known issue that covers it, None for a new finding.
        kind: what happened; one of those in `failure_signature`, or a kind of kernel message in
            `dmesg`.
        subject: the name of the range, region, device, module or command; of a kernel message its
            first line.
        expected: the owner that the contract expects.
        observed: the owner that was found.
    """

    rule: str
    text: str
    range: MemoryRange | None = None
    iomem: tuple[str, ...] = ()
    dmesg: tuple[str, ...] = ()
    phase: str | None = None
    decoded: tuple[str, ...] = ()
    known: str | None = None
    kind: str = ""
    subject: str = ""
    expected: Ownership | None = None
    observed: Ownership | None = None

    @property
    def rule_name(self) -> str:
        """The rule as it is cited, such as `rule 1` or `use`."""
        return f"rule {self.rule}" if self.rule.isdigit() else self.rule

    @property
    def title(self) -> str:
        """The rule with its sentence."""
        return f"{self.rule_name}: {RULES[self.rule]}" if self.rule in RULES else self.rule_name


@dataclass(frozen=True)
class Piece:
    """A part of a range with one observed owner.

    Attributes:
        range: which part.
        owner: its owner.
        use: what for.
        via: what shows it, such as `region0 > dax0.0 > kmem`.
        node: the NUMA node of the dax device that covers it; None without a dax device, or where
            the device has no node.
    """

    range: MemoryRange
    owner: OwnerName
    use: Use = "none"
    via: str = ""
    node: int | None = None

    @property
    def ownership(self) -> Ownership:
        """Its owner and use, without the node."""
        return Ownership(owner=self.owner, use=self.use)

    def wrong_node(self, expected: int | None) -> bool:
        """Return whether its memory is in another node than expected; None expects nothing."""
        return self.owner != "nobody" and expected not in (None, self.node)


@dataclass(frozen=True)
class OwnedRange:
    """A named range with its expected owner and what was observed."""

    name: str
    range: MemoryRange
    expected: Ownership
    observed: tuple[Piece, ...] = ()

    def is_wrong(self, piece: Piece) -> bool:
        """Return whether a piece has another owner, use or stated NUMA node than expected."""
        expected = self.expected
        fits = (piece.owner, piece.use) == (expected.owner, expected.use)
        return not fits or piece.wrong_node(expected.node)

    def wrong_pieces(self) -> tuple[Piece, ...]:
        """The pieces that are not as expected."""
        return tuple(piece for piece in self.observed if self.is_wrong(piece))


@dataclass(frozen=True)
class Attempt:
    """One guest of a scenario that was run with several.

    Attributes:
        load: the modules that it loaded, and how.
        outcome: the owner of each range.
        reason: for other verdicts than PASS.
        start: None for a guest that never became ready.
        seconds: from the start to the end of its run.
        evidence: its folder.
    """

    load: Load | None
    verdict: Verdict
    outcome: str = ""
    reason: str = ""
    start: Start | None = None
    seconds: float = 0.0
    evidence: str = ""


@dataclass(frozen=True)
class Difference:
    """A difference of one guest from other guests with the same load.

    Attributes:
        guest: its number among the scenario's guests, from 1.
        evidence: its folder.
        part: the compared part of the result, such as `owners`.
        others: how many guests have what this one has not.
        only_here: lines that only this guest has.
        only_there: lines that only those have.
    """

    guest: int
    evidence: str
    part: str
    others: int
    only_here: tuple[str, ...] = ()
    only_there: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepOutcome:
    """The outcome of one step after boot.

    Attributes:
        step: the step, as text.
        outcome: whether the contract held after it; `not_done` after an earlier break.
        owners: every range that has an expected owner then.
        findings: violations of the contract.
        evidence: the folder of this step, below the run's.
    """

    step: str
    outcome: Literal["held", "broke", "not_done"]
    owners: tuple[OwnedRange, ...] = ()
    findings: tuple[Finding, ...] = ()
    evidence: str = ""


@dataclass(frozen=True)
class RunKernel:
    """The kernel of a run.

    Attributes:
        release: `uname -r`, None before it is known.
        config_sha256: of the kernel's configuration, None where its packager ships none.
    """

    release: str | None = None
    config_sha256: str | None = None


@dataclass(frozen=True)
class RunResult:
    """The result of one run.

    Attributes:
        scenario: its name.
        request: the kernel as it was requested.
        policy: whose rules were judged.
        kernel: the kernel that was booted.
        accel: `kvm` or `tcg`.
        start: None if no guest became ready.
        reason: for other verdicts than PASS and FAIL.
        hint: what to do about the reason.
        owners: every range that has an expected owner.
        findings: violations of the contract, after boot or after a step.
        steps: outcomes of the steps after boot.
        notes: remarks that do not affect the verdict.
        known_issue: why this failure is known, None when a finding is new.
        issues: names of the known issues of this scenario on this kernel, seen or not.
        retried: how many guests were run again because they missed a transient state.
        timings: seconds by phase.
        evidence: the folder with everything that was recorded.
        load: the modules that the guest loaded, and how; None if it did not come so far.
        drivers: the modules of the contract's drivers that were loaded when ownership had settled.
        attempts: every guest, where the scenario was run with several.
        compared: how many guests were compared with others of the same request.
        differences: how these differed.
        reproduce: the shortest command line that shows the failure, when it was searched for.
        file: the path by which the scenario was named, empty where its name finds it.
    """

    scenario: str
    request: KernelRequest
    policy: Policy
    verdict: Verdict = Verdict.INCONCLUSIVE
    kernel: RunKernel = RunKernel()
    accel: str | None = None
    start: Start | None = None
    reason: str = ""
    hint: str = ""
    owners: tuple[OwnedRange, ...] = ()
    findings: tuple[Finding, ...] = ()
    steps: tuple[StepOutcome, ...] = ()
    notes: tuple[str, ...] = ()
    known_issue: str | None = None
    issues: tuple[str, ...] = ()
    retried: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    evidence: str = ""
    load: Load | None = None
    drivers: tuple[str, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    compared: int = 0
    differences: tuple[Difference, ...] = ()
    reproduce: str = ""
    file: str = ""
    format: int = FORMAT

    @property
    def spec(self) -> str:
        """The requested kernel as text."""
        return str(self.request)

    @property
    def load_text(self) -> str:
        """The load as text, empty without one."""
        return str(self.load) if self.load else ""

    @property
    def passed(self) -> bool:
        """True if the contract held."""
        return self.verdict is Verdict.PASS

    @property
    def seconds(self) -> float | None:
        """Duration of the run, None if it is unknown."""
        return self.timings.get("total")

    @property
    def command(self) -> str:
        """The command line that runs this again."""
        if self.reproduce:
            return self.reproduce
        scenario = shlex.quote(self.file or self.scenario)
        words = f"harness run {scenario} --kernel {self.spec} --policy {self.policy}"
        return f"{words} --accel {self.accel}" if self.accel else words

    def as_json(self) -> dict[str, Any]:
        """The object in result.json. `kernel.spec` is for people and other programs."""
        raw: dict[str, Any] = to_json(self)
        raw["kernel"]["spec"] = self.spec
        del raw["request"]["stored"]
        raw["timings"] = {name: round(seconds, 3) for name, seconds in self.timings.items()}
        return raw


class NotAResultError(ValueError):
    """The object is not the result of a run."""


def read_result(raw: Any) -> RunResult:
    """Read what `RunResult.as_json` wrote.

    Raises:
        NotAResultError: a field is missing or invalid, or the format is of another version.
    """
    written = raw.get("format", FORMAT) if isinstance(raw, dict) else FORMAT
    if written != FORMAT:
        raise NotAResultError(f"format {written!r}, and this version reads format {FORMAT}")
    try:
        return from_json(raw, RunResult)
    except FormatError as error:
        raise NotAResultError(str(error)) from None
