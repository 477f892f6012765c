# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare a kernel with the oracle on random layouts; new failures are shrunk and saved.

Hypothesis draws the layouts of a round from a seed before any of them runs, so that guests can run
concurrently. To shrink a failing layout, it draws the same round again, marks this layout as
failing, and continues from there with a guest for each smaller layout.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from hypothesis import Phase, find, settings
from hypothesis.errors import NoSuchExample

from harness.contract.failure_signature import signature
from harness.contract.result import RunResult, Verdict
from harness.core.errors import UnbuildableError, UsageError
from harness.fuzz.draw import Layout, layouts
from harness.fuzz.files import DrawnCase, case_of
from harness.machine.address_probe import machine_layout
from harness.platform.address_map import MachineLayout
from harness.runs.prepare import Host
from harness.runs.session import Session, Skipped
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.profile import Profile
from harness.scenario.scenario import Policy
from harness.scenario.scenario_files import Case

ROUND = 20
"""The number of layouts that are drawn together. A seed draws other layouts with another number."""

_PROGRESS_SECONDS = 15.0
_AS_DRAWN = "as it was drawn"

Answer = dict[str, str]
Signature = frozenset[str]


class RecentAnswers:
    """The latest answers by key.

    Args:
        most: the number of answers that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._answers: dict[str, Answer] = {}

    def recall(self, key: str, compute: Callable[[], Answer]) -> Answer:
        """The answer for a key, computed if it is not kept."""
        if key not in self._answers:
            answer = compute()
            while len(self._answers) >= self._most:
                self._answers.pop(next(iter(self._answers)), None)
            self._answers[key] = answer
        return self._answers[key]


@dataclass
class ForgetfulHost(Host):
    """A host that does not store the address maps of drawn layouts, which are used only once."""

    _recent: RecentAnswers = field(
        default_factory=lambda: RecentAnswers(ROUND), init=False, repr=False
    )

    def remember(self, kind: str) -> Callable[[str, Callable[[], Answer]], Answer]:
        """Keep address maps for a round, and other answers in the store."""
        return self._recent.recall if kind == "layouts" else super().remember(kind)


@dataclass(frozen=True)
class NewFailure:
    """A failure that no known issue explains.

    Attributes:
        file: the scenario file of the smallest layout that is known to fail in this way.
        result: of the first run that failed in this way.
        how: how the layout was shrunk, or why it was not.
    """

    signature: Signature
    file: Path
    result: RunResult
    how: str


@dataclass
class Tally:
    """The counts of a campaign so far.

    Attributes:
        layouts: the layouts that were run.
        passed: those on which kernel and oracle agree.
        known: those with a known issue, or with a failure that was new before.
        refused: layouts that could not be run, by reason: defects of the harness.
        inconclusive: scenario files of layouts that could not be judged.
        new: the failures that no known issue explains.
    """

    layouts: int = 0
    passed: int = 0
    known: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    inconclusive: list[Path] = field(default_factory=list)
    new: list[NewFailure] = field(default_factory=list)

    def __str__(self) -> str:
        refused = f", {self.refused.total()} refused" if self.refused else ""
        return (
            f"{self.layouts} layouts: {self.passed} PASS, {self.known} known, "
            f"{len(self.new)} new, {len(self.inconclusive)} INCONCLUSIVE{refused}"
        )


@dataclass(frozen=True)
class Campaign:
    """A comparison of one kernel with the oracle.

    Attributes:
        folder: for the files of saved layouts.
        shrink_seconds: the time limit for shrinking one failure.
    """

    session: Session
    request: KernelRequest
    policy: Policy
    folder: Path
    seed: int
    shrink_seconds: float

    def run(self, seconds: float) -> Tally:
        """Draw and run layouts, at least one, until the time is over; running guests finish.

        Raises:
            UsageError: the kernel cannot be found or fetched, or a file cannot be saved.
            UnbuildableError: the kernel does not build.
        """
        end = time.monotonic() + seconds
        tally = Tally()
        signs_seen: set[str] = set()
        layouts_seen: set[str] = set()
        number = 0
        while True:
            drawn = [
                layout
                for layout in draw_layouts(self.seed, number)
                if layout.key not in layouts_seen
            ]
            failed = []
            for case, result in self._run_round(drawn, number, end, tally):
                layouts_seen.add(case.layout.key)
                signs = self._judge(case, result, tally)
                if signs - signs_seen:
                    signs_seen |= signs
                    # Save immediately: the user may interrupt the campaign.
                    self._save(case, signs, _AS_DRAWN)
                    failed.append((case, result, signs))
                    continue
                tally.known += bool(signs)
                if result.verdict is not Verdict.INCONCLUSIVE:
                    shutil.rmtree(result.evidence, ignore_errors=True)
            for case, result, signs in failed:
                tally.new.append(self._shrunk(number, case, result, signs))
            if time.monotonic() >= end:
                return tally
            number += 1

    def _run_round(
        self, drawn: list[Layout], number: int, end: float, tally: Tally
    ) -> Iterator[tuple[DrawnCase, RunResult]]:
        started: list[DrawnCase] = []

        def cases() -> Iterator[Case]:
            for index, layout in enumerate(drawn):
                if tally.layouts and time.monotonic() >= end:
                    return
                name = f"fuzz_{self.seed}_{number}_{index}"
                try:
                    started.append(case_of(layout, name, self._machine))
                except UsageError as error:
                    tally.refused[error.message] += 1
                else:
                    yield started[-1].case

        last_note = time.monotonic()
        for index, result in enumerate(self.session.run_all(cases(), self.request)):
            if isinstance(result, Skipped):
                raise result.error
            if result.verdict is Verdict.UNBUILDABLE:
                raise UnbuildableError(result.reason, hint=result.hint)
            tally.layouts += 1
            yield started[index], result
            if time.monotonic() - last_note > _PROGRESS_SECONDS:
                last_note = time.monotonic()
                self._note(str(tally))

    def _judge(self, case: DrawnCase, result: RunResult, tally: Tally) -> Signature:
        """Count a result, and return the failures that no known issue explains."""
        if result.verdict is Verdict.PASS:
            tally.passed += 1
            return frozenset()
        if result.verdict is Verdict.INCONCLUSIVE:
            file = case.save(self.folder, self._comment(f"INCONCLUSIVE: {result.reason}"))
            tally.inconclusive.append(file)
            self._note(f"INCONCLUSIVE {file}: {result.reason}\n  evidence: {result.evidence}")
            return frozenset()
        signs = _signs(result)
        if not signs:
            tally.known += 1
        return signs

    def _shrunk(
        self, number: int, case: DrawnCase, result: RunResult, signs: Signature
    ) -> NewFailure:
        """Find the smallest layout that fails in this way, and save it."""
        self._note(f"new: {'; '.join(sorted(signs))}\n  in {case.case.name}, {result.evidence}")
        end = time.monotonic() + self.shrink_seconds
        cases: dict[str, DrawnCase] = {}
        failures: dict[str, bool] = {}

        def fails(layout: Layout) -> bool:
            if layout.key not in failures:
                failures[layout.key] = time.monotonic() < end and self._fails(
                    layout, case, signs, cases
                )
            return failures[layout.key]

        how = _AS_DRAWN
        if self.shrink_seconds > 0:
            how = f"{_AS_DRAWN}, since it does not fail every time"
            if fails(case.layout):
                smallest = shrink_layout(self.seed, number, case.layout, fails)
                case, how = cases[smallest.key], f"shrunk with {len(cases)} guests"
        file = self._save(case, signs, how)
        self._note(f"  {how}: {file}")
        return NewFailure(signs, file, result, how)

    def _fails(
        self, layout: Layout, first: DrawnCase, signs: Signature, cases: dict[str, DrawnCase]
    ) -> bool:
        """Run a layout, add its case to `cases`, and return whether it fails in the same way."""
        try:
            case = case_of(layout, first.case.name, self._machine)
        except UsageError:
            return False
        cases[layout.key] = case
        result = self.session.run(case.case, self.request)
        shutil.rmtree(result.evidence, ignore_errors=True)
        return signs <= _signs(result)

    def _save(self, case: DrawnCase, signs: Signature, how: str) -> Path:
        return case.save(self.folder, self._comment(*sorted(signs), how))

    def _machine(self, profile: Profile) -> MachineLayout:
        host = self.session.host
        return machine_layout(host.qemu, profile, host.remember("layouts"))

    def _comment(self, *lines: str) -> list[str]:
        return [f"harness fuzz --kernel {self.request} --seed {self.seed}", *lines]

    def _note(self, text: str) -> None:
        self.session.host.progress.note(text)


def _signs(result: RunResult) -> Signature:
    """The failures of a result that no known issue explains."""
    if result.verdict is not Verdict.FAIL:
        return frozenset()
    return signature(finding for finding in result.findings if finding.known is None)


def draw_layouts(seed: int, number: int) -> list[Layout]:
    """The different layouts of one round of a seed."""
    drawn: dict[str, Layout] = {}

    def collect(layout: Layout) -> bool:
        drawn.setdefault(layout.key, layout)
        return False

    _search(seed, number, collect, (Phase.generate,))
    return list(drawn.values())


def shrink_layout(
    seed: int, number: int, layout: Layout, fails: Callable[[Layout], bool]
) -> Layout:
    """The smallest layout that Hypothesis finds to fail.

    Args:
        seed: as for `draw_layouts`.
        number: the round in which `layout` was drawn.
        layout: a layout that fails.
        fails: whether a layout fails; its answer for a layout must not change.
    """
    reached = False

    def interesting(smaller: Layout) -> bool:
        nonlocal reached
        reached = reached or smaller.key == layout.key
        return reached and fails(smaller)

    return _search(seed, number, interesting, (Phase.generate, Phase.shrink)) or layout


def _search(
    seed: int, number: int, condition: Callable[[Layout], bool], phases: tuple[Phase, ...]
) -> Layout | None:
    draws = settings(max_examples=ROUND, phases=phases, database=None, deadline=None)
    start = Random(json.dumps([seed, number]))
    try:
        return find(layouts(), condition, settings=draws, random=start)
    except NoSuchExample:
        return None
