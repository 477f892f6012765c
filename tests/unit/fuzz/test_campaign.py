# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign with fake guests: counts, shrinking, saved files, output and exit codes."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner
from layouts import layout_of, state_of

from harness.cli.main import main
from harness.contract.result import Finding, RunKernel, RunResult, Verdict
from harness.core.errors import UnbuildableError
from harness.core.progress import SilentProgress
from harness.fuzz import campaign as fuzz
from harness.fuzz.campaign import Campaign, ForgetfulHost, NewFailure, Tally
from harness.runs.prepare import Host
from harness.runs.requirements import NotApplicableError
from harness.runs.session import Session, Skipped
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario_files import Case, load_case

Judge = Callable[[Case], tuple[Verdict, tuple[Finding, ...]]]
SPLAT = Finding("6", "a WARN", kind="warn", subject="cxl fell over at 0x123")


class Guests:
    """Guests with the verdict of a function, and a record of the cases that ran."""

    def __init__(self, root: Path, judge: Judge) -> None:
        self.root = root
        self.judge = judge
        self.ran: list[Case] = []
        self.notes: list[str] = []
        progress = SimpleNamespace(note=self.notes.append)
        self.host = SimpleNamespace(qemu=None, remember=lambda _kind: None, progress=progress)

    def run(self, case: Case, _kernel: object) -> RunResult:
        self.ran.append(case)
        verdict, findings = self.judge(case)
        evidence = self.root / f"run{len(self.ran)}"
        evidence.mkdir()
        return RunResult(
            scenario=case.name,
            request=KernelRequest("debian:7.2"),
            policy="per_range",
            kernel=RunKernel("7.2.0"),
            verdict=verdict,
            findings=findings,
            reason="guest lost" if verdict is Verdict.INCONCLUSIVE else "",
            evidence=str(evidence),
        )

    def run_all(self, cases: Iterable[Case], kernel: object) -> Iterator[RunResult | Skipped]:
        for case in cases:
            yield self.run(case, kernel)


@pytest.fixture(autouse=True)
def without_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        fuzz, "machine_layout", lambda _qemu, profile, _remember: layout_of(profile)
    )


def run_campaign(guests: Guests, *, shrink: float = 600.0, seed: int = 5) -> Tally:
    request = KernelRequest("debian:7.2")
    session = cast(Session, guests)
    folder = guests.root / "found"
    return Campaign(session, request, "per_range", folder, seed, shrink).run(0.0)


def has_hidden_window(case: Case) -> bool:
    return any(window.hidden for window in case.profile.windows)


def passing(_case: Case) -> tuple[Verdict, tuple[Finding, ...]]:
    return Verdict.PASS, ()


@pytest.fixture(autouse=True)
def one_whole_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a campaign run exactly one round: time passes only between rounds."""
    begin = time.monotonic()
    real = fuzz.draw_layouts
    now = begin

    def draw(seed: int, number: int) -> list[Any]:
        nonlocal now
        now = begin + 1 if number else begin - 1
        return real(seed, number)

    monkeypatch.setattr(fuzz, "draw_layouts", draw)
    monkeypatch.setattr("harness.fuzz.campaign.time.monotonic", lambda: now)


def test_layouts_that_pass_leave_no_files(tmp_path: Path) -> None:
    guests = Guests(tmp_path, passing)
    tally = run_campaign(guests)
    assert tally.layouts == tally.passed == len(guests.ran) >= 1
    assert (tally.known, tally.new, tally.inconclusive, tally.refused) == (0, [], [], {})
    assert list(tmp_path.iterdir()) == []


def test_a_new_failure_is_shrunk_saved_and_reported_once(tmp_path: Path) -> None:
    def judge(case: Case) -> tuple[Verdict, tuple[Finding, ...]]:
        return (Verdict.FAIL, (SPLAT,)) if has_hidden_window(case) else (Verdict.PASS, ())

    guests = Guests(tmp_path, judge)
    tally = run_campaign(guests)
    (failure,) = tally.new
    assert failure.signature == {"rule 6: warn: cxl fell over at N"}
    assert tally.layouts == tally.passed + tally.known + 1
    assert tally.known > 0, "layouts that fail in the same way"
    smallest = load_case(str(failure.file))
    assert has_hidden_window(smallest)
    assert len(smallest.profile.windows) == 1
    assert len(smallest.scenario.firmware.decoders) <= 1
    text = failure.file.read_text()
    assert "# harness fuzz --kernel debian:7.2 --seed 5\n" in text
    assert "# rule 6: warn: cxl fell over at N\n" in text
    assert re.search(r"# shrunk with \d+ guests\n", text)
    assert [path.name for path in tmp_path.glob("run*")] == [Path(failure.result.evidence).name]


def test_without_time_a_failure_is_saved_as_it_was_drawn(tmp_path: Path) -> None:
    guests = Guests(tmp_path, lambda _case: (Verdict.FAIL, (SPLAT,)))
    (failure,) = run_campaign(guests, shrink=0.0).new
    assert failure.how == "as it was drawn"
    first = guests.ran[0]
    saved = load_case(str(failure.file))
    assert (saved.scenario, saved.profile) == (first.scenario, first.profile)


def test_a_failure_that_comes_only_once_is_not_shrunk(tmp_path: Path) -> None:
    ends = iter([(Verdict.FAIL, (SPLAT,))])
    guests = Guests(tmp_path, lambda _case: next(ends, (Verdict.PASS, ())))
    (failure,) = run_campaign(guests).new
    assert "not fail every time" in failure.how
    assert load_case(str(failure.file)).scenario == guests.ran[0].scenario


def test_a_known_issue_is_not_new(tmp_path: Path) -> None:
    def stranded(known: str | None) -> Judge:
        return lambda case: (
            Verdict.FAIL,
            tuple(replace(finding, known=known) for finding in first_range(case)),
        )

    explained = run_campaign(Guests(tmp_path, stranded("somewhere")))
    assert (explained.known > 0, explained.new) == (True, [])
    assert run_campaign(Guests(tmp_path, stranded(None)), shrink=0.0).new


def first_range(case: Case) -> tuple[Finding, ...]:
    """A finding that the first Soft Reserved range, if any, is stranded."""
    spans = [one.range for one in state_of(case).soft_reserved]
    return (Finding("1", "sr: expected x, found nobody", spans[0] if spans else None),)


def test_a_layout_that_cannot_be_judged_is_saved(tmp_path: Path) -> None:
    guests = Guests(tmp_path, lambda _case: (Verdict.INCONCLUSIVE, ()))
    tally = run_campaign(guests)
    assert len(tally.inconclusive) == tally.layouts == len(guests.ran)
    assert "# INCONCLUSIVE: guest lost\n" in tally.inconclusive[0].read_text()
    assert any("guest lost" in line for line in guests.notes)


def test_a_kernel_that_does_not_build_ends_the_campaign(tmp_path: Path) -> None:
    with pytest.raises(UnbuildableError):
        run_campaign(Guests(tmp_path, lambda _case: (Verdict.UNBUILDABLE, ())))


def test_refused_layouts_are_counted_by_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.scenario.checks._DECODERS_PER_COMPONENT", 0)
    guests = Guests(tmp_path, passing)
    tally = run_campaign(guests)
    assert tally.refused.total() > 0
    assert all("HDM decoders" in reason for reason in tally.refused)
    assert "refused" in str(tally)


def test_a_forgetful_host_keeps_address_maps_for_a_round() -> None:
    host = ForgetfulHost(cast(Any, None), cast(Any, None), SilentProgress(), cast(Any, "tcg"))
    computed: list[str] = []

    def recall(key: str) -> None:
        def compute() -> dict[str, str]:
            computed.append(key)
            return {"key": key}

        assert host.remember("layouts")(key, compute) == {"key": key}

    recall("a")
    recall("a")
    assert computed == ["a"]
    for number in range(100):
        recall(str(number))
    recall("a")
    assert computed.count("a") == 2


@pytest.mark.parametrize(
    ("tally", "code", "words"),
    [
        (Tally(layouts=2, passed=1, known=1), 0, "2 layouts: 1 PASS, 1 known, 0 new"),
        (Tally(layouts=1, inconclusive=[Path("a.yaml")]), 3, "INCONCLUSIVE a.yaml"),
        (Tally(refused=Counter(["no window"])), 3, "REFUSED 1 times: no window"),
        (
            Tally(
                layouts=1,
                new=[
                    NewFailure(
                        frozenset(["rule 1: stranded"]),
                        Path("new.yaml"),
                        RunResult(scenario="x", request=KernelRequest("k"), policy="per_range"),
                        "shrunk with 9 guests",
                    )
                ],
                inconclusive=[Path("a.yaml")],
            ),
            1,
            "NEW new.yaml, shrunk with 9 guests\n  rule 1: stranded",
        ),
    ],
)
def test_the_output_and_the_exit_code_of_the_command(
    tally: Tally, code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaigns: list[Campaign] = []

    def run(self: Campaign, seconds: float) -> Tally:
        assert seconds == 30.0
        campaigns.append(self)
        return tally

    monkeypatch.setattr(Campaign, "run", run)
    host = Host(cast(Any, None), cast(Any, None), SilentProgress(), "tcg")
    monkeypatch.setattr("harness.cli.options.GuestOptions.host", lambda _self: host)
    argv = ["fuzz", "--minutes", "0.5", "--seed", "9", "--save", "there"]
    ended = CliRunner().invoke(main, argv)
    assert (ended.exit_code, "seed 9" in ended.output, words in ended.output) == (code, True, True)
    (campaign,) = campaigns
    assert (campaign.seed, campaign.folder, campaign.shrink_seconds) == (9, Path("there"), 240.0)
    assert isinstance(campaign.session.host, ForgetfulHost)


def test_a_kernel_to_which_layouts_do_not_apply_ends_the_campaign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guests = Guests(tmp_path, passing)
    error = NotApplicableError("not so", hint="another")

    def run_all(cases: Iterable[Case], _kernel: object) -> Iterator[RunResult | Skipped]:
        return (Skipped(case, error) for case in cases)

    monkeypatch.setattr(guests, "run_all", run_all)
    with pytest.raises(NotApplicableError):
        run_campaign(guests)
