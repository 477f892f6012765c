# SPDX-License-Identifier: GPL-2.0-or-later
"""One guest of a scenario as a value, and its observation and judgement once it is booted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.contract.dmesg import TIMED, in_phases
from harness.contract.expected import Expected
from harness.contract.judge import Judgement, judge
from harness.contract.observation import Observation, Undecoded
from harness.contract.observed_owners import pieces_of
from harness.contract.result import Piece, RunResult, Verdict
from harness.core.errors import GuestEndedError, MachineLostError
from harness.guest.observe import observe, read_sections, require_whole_log
from harness.guest.settle import Settling, observe_settled, scan_for_leaks
from harness.machine.firmware import check_committed, unanswered
from harness.machine.qemu import Qemu
from harness.runs.boot import BootedGuest
from harness.runs.evidence import Evidence, Timings
from harness.runs.prepare import Prepared
from harness.scenario.issue_conditions import Circumstances
from harness.scenario.known_issues import KnownIssues
from harness.scenario.module_load import Load
from harness.scenario.scenario import Ownership, Policy

_SETTLING = Settling()
# These must answer: drivers use them, or the kernel as its RAM.
_IN_USE = ("dax_cxl", "dax_hmem", "firmware_ram")


@dataclass(frozen=True)
class Judging:
    """The rules that guests are judged by, and the place of their evidence.

    Attributes:
        policy: the policy of the contract.
        evidence_root: folder in which each guest gets its own.
        known_issues: failures with a known reason.
        boot_seconds: how long a guest may take to become ready.
        settling: how long nothing must change before a guest is judged.
    """

    policy: Policy
    evidence_root: Path
    known_issues: KnownIssues
    boot_seconds: float = 120.0
    settling: Settling = _SETTLING


@dataclass(frozen=True)
class GuestRun:
    """One guest to be run.

    Attributes:
        prepared: the scenario.
        load: what the guest loads, and how.
        judging: how it is judged.
        before: the result so far: names of scenario, kernel and policy.
        prepare_seconds: time for its kernel, to be counted as this guest's.
    """

    prepared: Prepared
    load: Load
    judging: Judging
    before: RunResult
    prepare_seconds: float = 0.0

    @property
    def settling(self) -> Settling:
        """The seconds without a change, for a kernel of this speed."""
        return self.judging.settling.slower(self.prepared.bootable.timeout_scale)

    def explained(self, result: RunResult) -> RunResult:
        """The result with the known issues of its scenario and of each finding."""
        issues, release = self.judging.known_issues, result.kernel.release
        if release is None or not issues.issues:
            return result
        prepared = self.prepared
        owners = {one.name: one.expected for one in result.owners} or prepared.expectations(
            result.policy
        )[0].owners
        scenario = prepared.as_run(result.drivers)
        case = Circumstances(scenario, prepared.state, result.policy, owners, result.load)
        about = tuple(issue.name for issue in issues.about(case, release))
        result = replace(result, issues=about, known_issue=None)
        if result.verdict is not Verdict.FAIL:
            return result
        covering = issues.explain(result.findings, case, release)
        findings = tuple(
            replace(finding, known=issue.name if issue else None)
            for finding, issue in zip(result.findings, covering, strict=True)
        )
        why = dict.fromkeys(issue.why.strip() for issue in covering if issue)
        known = None if None in covering else "\n".join(why) or None
        return replace(result, findings=findings, known_issue=known)


@dataclass(frozen=True)
class RunningGuest:
    """A booted guest of a run.

    Attributes:
        run: its scenario, load and judging.
        guest: the guest.
        evidence: where its run is recorded.
        timings: gets its phases.
    """

    run: GuestRun
    guest: BootedGuest
    evidence: Evidence
    timings: Timings

    def observe(
        self, owners: Mapping[str, Ownership], folder: str, *, leaks: bool = True
    ) -> Observation:
        """Observe the guest once its owners have settled.

        Args:
            owners: the expected ones: those that are System RAM are waited for.
            folder: where the observation is recorded, below the evidence.
            leaks: whether kmemleak scans for leaks first, where the kernel has it.

        Raises:
            GuestCrashedError: the guest's kernel crashed.
            GuestLostError: the guest is gone.
            DeadlineExpiredError: its owners never settle.
        """
        shell, prepared = self.guest.shell, self.run.prepared
        online = tuple(
            named.range
            for named in prepared.state.judged_ranges()
            if named.name in owners and owners[named.name].use == "system_ram"
        )

        def settle() -> dict[str, str]:
            return observe_settled(shell, online, self.run.settling, lambda: self._record(folder))

        sections = settle()
        if leaks and prepared.bootable.finds_leaks:
            self.evidence.text(f"{folder}/kmemleak", scan_for_leaks(shell))
            sections = settle()
        self.guest.check()
        return self._with_undecoded(read_sections(sections))

    def judge(self, observation: Observation, expected: Expected) -> Judgement:
        """Compare an observation with the expectation.

        Raises:
            GuestLostError: a line that counts may be missing from the guest's log, or the log
                reports something slow by a clock that runs too fast.
        """
        marks, prepared = self.guest.shell.marks, self.run.prepared
        require_whole_log(observation.dmesg, marks, from_boot=prepared.boot_counts)
        judgement = judge(
            replace(observation, dmesg=in_phases(observation.dmesg, marks)),
            prepared.state,
            expected,
            prepared.expected_lines(),
            boot_counts=prepared.boot_counts,
        )
        if any(finding.kind in TIMED for finding in judgement.findings):
            self.guest.watch.check_clock()
        return judgement

    def judging_inputs(self, observation: Observation) -> dict[str, Any]:
        """For the evidence: inputs of the judgement besides the observation and the scenario."""
        prepared = self.run.prepared
        return {
            "step_marks": self.guest.shell.marks.token,
            "boot_counts": prepared.boot_counts,
            "built_in": list(prepared.built_in_drivers()),
            "driver_options": prepared.bootable.driver_options,
            "expected_messages": [line.pattern for line in prepared.expected_lines()],
            "undecoded": [
                {"range": str(part.range), "text": part.text} for part in observation.undecoded
            ],
        }

    def _record(self, folder: str) -> dict[str, str]:
        sections = observe(self.guest.shell)
        for name, content in sections.items():
            if name != "end":
                self.evidence.text(f"{folder}/{name}", content)
        return sections

    def _with_undecoded(self, observation: Observation) -> Observation:
        """Add the memory in use that does not answer through its window.

        The guest is stopped meanwhile, so that nothing else reads or writes that memory.

        Raises:
            HarnessError: QEMU or the guest has ended.
        """
        owned = [
            (decoder, piece)
            for decoder in self.run.prepared.state.decoders
            for piece in pieces_of(decoder.range, observation)
            if piece.owner in _IN_USE
        ]
        if not owned:
            return observation
        machine = self.guest.machine
        try:
            machine.command("stop")
            try:
                with machine.telling_its_end():
                    parts = [(decoder, piece.range) for decoder, piece in owned]
                    answers = unanswered(machine.qtest, parts)
                    undecoded = tuple(
                        self._undecoded(machine, piece, why)
                        for (_, piece), why in zip(owned, answers, strict=True)
                        if why
                    )
            finally:
                machine.command("cont")
        except (MachineLostError, GuestEndedError):
            self.guest.check()
            raise
        return replace(observation, undecoded=undecoded)

    def _undecoded(self, machine: Qemu, piece: Piece, why: str) -> Undecoded:
        prepared = self.run.prepared
        settings = [one for one in prepared.settings if one.range.overlaps(piece.range)]
        problems = check_committed(machine.qtest, prepared.layout, settings)
        return Undecoded(
            piece.range,
            f"memory of {piece.owner} ({piece.via}) is not decoded: {'; '.join((*problems, why))}",
        )
