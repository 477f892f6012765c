# SPDX-License-Identifier: GPL-2.0-or-later
"""Random layouts on a real kernel, held against the oracle; what is new is shrunk and saved.

Hypothesis draws a round of layouts with a seed, without running any, so that guests can run side by
side. To shrink one, it draws the same round once more, is told that this very layout fails, and
goes on from there, with a guest for each smaller one.
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
"""How many layouts are drawn at once; part of what a seed stands for."""

_PROGRESS_SECONDS = 15.0
_AS_DRAWN = "as it was drawn"

Signature = frozenset[str]


@dataclass
class ForgetfulHost(Host):
    """A host that does not store address maps: a drawn layout is not needed again."""

    _address_maps: dict[str, dict[str, str]] = field(default_factory=dict, init=False, repr=False)

    def remember(self, kind: str) -> Callable[[str, Callable[[], dict[str, str]]], dict[str, str]]:
        """As for any host, but only the last address maps are kept."""
        if kind != "layouts":
            return super().remember(kind)
        last = self._address_maps

        def recall(key: str, ask: Callable[[], dict[str, str]]) -> dict[str, str]:
            if key not in last:
                answer = ask()
                while len(last) > ROUND:
                    last.pop(next(iter(last)), None)
                last[key] = answer
            return last[key]

        return recall


@dataclass(frozen=True)
class NewFailure:
    """A failure that no known issue explains.

    Attributes:
        signature: what it has in common with others like it.
        file: the scenario file of the smallest layout that was found to fail so.
        result: of the first run that failed so.
        how: how it was shrunk, or why it was not.
    """

    signature: Signature
    file: Path
    result: RunResult
    how: str


@dataclass
class Tally:
    """How a campaign stands.

    Attributes:
        layouts: that were run.
        passed: where kernel and oracle agreed.
        known: where they did not, for a known reason, or as in a failure that was new before.
        refused: layouts that could not be run, by reason: defects of the harness.
        inconclusive: scenario files of layouts that could not be judged.
        new: failures that nobody knew.
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
    """What is fuzzed, and how.

    Attributes:
        session: runs guests.
        request: the kernel.
        policy: whose rules are judged.
        folder: where layouts are saved.
        seed: says which layouts are drawn.
        shrink_seconds: how long one failure is shrunk at most.
    """

    session: Session
    request: KernelRequest
    policy: Policy
    folder: Path
    seed: int
    shrink_seconds: float

    def run(self, seconds: float) -> Tally:
        """Draw and run layouts, at least one, for so long; what is under way is finished.

        Raises:
            UsageError: the kernel cannot be had, or nothing can be saved.
            UnbuildableError: the kernel does not build.
        """
        end = time.monotonic() + seconds
        tally = Tally()
        seen: set[str] = set()
        done: set[str] = set()
        number = 0
        while True:
            drawn = [one for one in draw_layouts(self.seed, number) if one.key not in done]
            failed = []
            for case, result in self._run_round(drawn, number, end, tally):
                done.add(case.layout.key)
                signs = self._judge(case, result, tally)
                if signs - seen:
                    seen |= signs
                    # At once: who interrupts the campaign keeps what it has found.
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
        under_way: list[DrawnCase] = []

        def cases() -> Iterator[Case]:
            for index, layout in enumerate(drawn):
                if tally.layouts and time.monotonic() >= end:
                    return
                name = f"fuzz_{self.seed}_{number}_{index}"
                try:
                    under_way.append(case_of(layout, name, self._machine))
                except UsageError as error:
                    tally.refused[error.message] += 1
                else:
                    yield under_way[-1].case

        said = time.monotonic()
        for index, result in enumerate(self.session.run_all(cases(), self.request)):
            if isinstance(result, Skipped):
                raise result.error
            if result.verdict is Verdict.UNBUILDABLE:
                raise UnbuildableError(result.reason, hint=result.hint)
            tally.layouts += 1
            yield under_way[index], result
            if time.monotonic() - said > _PROGRESS_SECONDS:
                said = time.monotonic()
                self.session.host.progress.note(str(tally))

    def _judge(self, case: DrawnCase, result: RunResult, tally: Tally) -> Signature:
        """Count a result, and say what of it nobody can explain."""
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
        """Look for the smallest layout that fails so, and save it."""
        self._note(f"new: {'; '.join(sorted(signs))}\n  in {case.case.name}, {result.evidence}")
        end = time.monotonic() + self.shrink_seconds
        kept: dict[str, DrawnCase] = {}
        tried: dict[str, bool] = {}

        def fails(layout: Layout) -> bool:
            if layout.key not in tried:
                tried[layout.key] = time.monotonic() < end and self._fails(
                    layout, case, signs, kept
                )
            return tried[layout.key]

        how = _AS_DRAWN
        if self.shrink_seconds > 0:
            how = f"{_AS_DRAWN}, since it does not fail every time"
            if fails(case.layout):
                smallest = shrink_layout(self.seed, number, case.layout, fails)
                case, how = kept[smallest.key], f"shrunk with {len(kept)} guests"
        file = self._save(case, signs, how)
        self._note(f"  {how}: {file}")
        return NewFailure(signs, file, result, how)

    def _fails(
        self, layout: Layout, first: DrawnCase, signs: Signature, kept: dict[str, DrawnCase]
    ) -> bool:
        try:
            case = case_of(layout, first.case.name, self._machine)
        except UsageError:
            return False
        kept[layout.key] = case
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
    """What of a failure no known issue covers."""
    if result.verdict is not Verdict.FAIL:
        return frozenset()
    return signature(one for one in result.findings if one.known is None)


def draw_layouts(seed: int, number: int) -> list[Layout]:
    """The different layouts of one round of a seed."""
    found: dict[str, Layout] = {}

    def collect(layout: Layout) -> bool:
        found.setdefault(layout.key, layout)
        return False

    _search(seed, number, collect, (Phase.generate,))
    return list(found.values())


def shrink_layout(
    seed: int, number: int, layout: Layout, fails: Callable[[Layout], bool]
) -> Layout:
    """The smallest layout that still fails, as far as `fails` has patience.

    Args:
        seed: as for `draw_layouts`.
        number: of the round that `layout` is of.
        layout: fails.
        fails: whether a smaller one does; must answer the same for the same layout.
    """
    reached = False

    def interesting(one: Layout) -> bool:
        nonlocal reached
        reached = reached or one.key == layout.key
        return reached and fails(one)

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
