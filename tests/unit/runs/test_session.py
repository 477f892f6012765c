# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios with several guests, side by side: their order, their end, and the shortest failure."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest

from harness.contract.expected import expectations
from harness.contract.result import Difference, Finding, RunResult, Verdict, read_result
from harness.core.errors import MachineLostError, UnbuildableError, UsageError
from harness.core.paths import SCENARIOS
from harness.core.progress import SilentProgress
from harness.runs import session as runs
from harness.runs.guest_run import Judging
from harness.runs.minimize import asked_load, loading
from harness.runs.prepare import Host
from harness.runs.requirements import NotApplicableError
from harness.runs.running_vms import LiveMachines, StoppedError
from harness.runs.session import Session, Skipped
from harness.scenario.known_issues import KnownIssues
from harness.scenario.module_load import Load, LoadPlan
from harness.scenario.scenario_files import Case, load_case, load_cases

ALL = ("cxl_acpi", "cxl_pci", "cxl_mem", "dax_hmem", "kmem", "dax_cxl")
JUDGING = Judging("per_range", Path("/nowhere"), KnownIssues(issues=()))

Answer = Callable[[Case, Load], Verdict]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], list[Load]]]:
    """Guests that end as a function says, with what they loaded."""
    seen: list[Load] = []

    def use(answer: Answer) -> list[Load]:
        def run(
            prepared: Any, load: Load, _judging: Judging, result: RunResult, start: Any, _: Any
        ) -> RunResult:
            seen.append(load)
            with start(None, None) as guest:
                verdict = answer(prepared.case, load)
            rules = (Finding("2", "wrong"),) if verdict is Verdict.FAIL else ()
            found = replace(result, verdict=verdict, load=load, findings=rules)
            return replace(found, start=guest.start, accel="tcg")

        monkeypatch.setattr(runs, "run_guest", run)
        return seen

    def prepare(_host: Host, case: Case, _request: object) -> Any:
        return SimplePrepared(case)

    monkeypatch.setattr(runs, "prepare_case", prepare)
    monkeypatch.setattr(runs, "guest_source", source)
    yield use


@contextmanager
def source(
    _host: object, _prepared: object, _new: object, _seconds: float, asked: str, count: int
) -> Iterator[Any]:
    """Guests that only know how they were to start."""
    warm = asked == "warm" or (asked == "auto" and count > 1)

    @contextmanager
    def guest(_evidence: object, _timings: object, begin: str) -> Iterator[Any]:
        yield SimpleNamespace(start=begin if warm else "cold")

    yield SimpleNamespace(guest=guest)


class SimplePrepared(SimpleNamespace):
    """As much of a prepared case as a session looks at."""

    def __init__(self, case: Case, **_more: Any) -> None:
        depends = {name: () for name in ALL} | {"cxl_pci": ("cxl_mem",)}
        initramfs = SimpleNamespace(depends=depends)
        super().__init__(case=case, bootable=SimpleNamespace(initramfs=initramfs))


@pytest.fixture(autouse=True)
def replaceable(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_case(_prepared: object, case: Case) -> Any:
        return SimplePrepared(case)

    monkeypatch.setattr("harness.runs.minimize.with_case", with_case)


def session(
    jobs: int = 2,
    repeat: int = 1,
    live: LiveMachines | None = None,
    asked_qemu: str | None = None,
) -> Session:
    host = SimpleNamespace(
        live=live or LiveMachines(), progress=SilentProgress(), asked_qemu=asked_qemu
    )
    return Session(cast(Host, host), JUDGING, jobs=jobs, repeat=repeat)


def test_results_come_in_the_order_of_the_scenarios(answering: Any) -> None:
    second_is_done = threading.Event()

    def answer(case: Case, _load: Load) -> Verdict:
        if case.name == "exact_cover":
            assert second_is_done.wait(20), "they do not run side by side"
        else:
            second_is_done.set()
        return Verdict.PASS

    answering(answer)
    cases = load_cases(["exact_cover", "no_region"])
    with session() as running:
        results = list(running.run_all(cases, "debian:7.2"))
    assert [cast(RunResult, one).scenario for one in results] == ["exact_cover", "no_region"]


def test_no_more_guests_at_once_than_jobs(answering: Any) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def answer(_case: Case, _load: Load) -> Verdict:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.01)
        with lock:
            now -= 1
        return Verdict.PASS

    seen = answering(answer)
    with session(jobs=2, repeat=20) as running:
        result = running.run(load_case("exact_cover"), "debian:7.2")
    assert (most, len(seen), len(result.attempts)) == (2, 20, 20)


def test_a_scenario_of_another_kernel_is_skipped_beside_others(
    answering: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(lambda _case, _load: Verdict.PASS)

    def picky(_host: Host, case: Case, _request: Any) -> Any:
        if case.name == "builtin":
            raise NotApplicableError("not so", hint="another")
        if case.name == "mixed":
            raise UnbuildableError("gcc fell over", hint="look")
        return SimplePrepared(case)

    monkeypatch.setattr(runs, "prepare_case", picky)
    with session() as running:
        cases = load_cases(["builtin", "exact_cover", "mixed"])
        skipped, passed, unbuildable = running.run_all(cases, "debian:7.2")
    assert isinstance(skipped, Skipped)
    assert isinstance(passed, RunResult) and passed.verdict is Verdict.PASS
    assert isinstance(unbuildable, RunResult) and unbuildable.verdict is Verdict.UNBUILDABLE
    with session() as running, pytest.raises(NotApplicableError):
        running.run(load_case("builtin"), "debian:7.2")


def test_an_error_ends_every_guest(answering: Any) -> None:
    """A guest that nobody waits for any more must not go on."""
    live = LiveMachines()
    killed = threading.Event()
    waiting = threading.Event()

    class Machine:
        def kill(self) -> None:
            killed.set()

    def answer(case: Case, _load: Load) -> Verdict:
        if case.name == "no_region":
            assert waiting.wait(20)
            raise UsageError("no room for evidence", hint="make some")
        with live.tracked(cast(Any, Machine())):
            waiting.set()
            assert killed.wait(20), "the other guest goes on"
        return Verdict.INCONCLUSIVE

    answering(answer)
    with pytest.raises(UsageError, match="no room"), session(live=live) as running:
        list(running.run_all(load_cases(["no_region", "exact_cover"]), "debian:7.2"))
    with live.tracked(cast(Any, Machine())):
        pass  # the next session can have guests again


def test_all_orders_and_the_shortest_that_fails(answering: Any) -> None:
    """The failure needs kmem before cxl_acpi, and nothing else."""

    def answer(_case: Case, load: Load) -> Verdict:
        names = list(load.modules)
        both = "kmem" in names and "cxl_acpi" in names
        bad = both and names.index("kmem") < names.index("cxl_acpi")
        return Verdict.FAIL if bad else Verdict.PASS

    answering(answer)
    case = asked_load(load_case("exact_cover"), "all_orders")
    with session() as running:
        result = running.run(case, "debian:7.2")
    assert len(result.attempts) == 360
    assert result.verdict is Verdict.FAIL
    assert str(result.load) == "cxl_mem, cxl_pci, dax_hmem, kmem, cxl_acpi, dax_cxl"
    assert result.reproduce == (
        "harness run exact_cover --kernel debian:7.2 --policy per_range --accel tcg "
        "--load kmem,cxl_acpi"
    )


def test_a_reproducer_names_the_file_and_the_qemu_that_were_given(
    answering: Any, tmp_path: Path
) -> None:
    """A scenario of one's own has a name that only its file knows."""
    answering(lambda _case, _load: Verdict.FAIL)
    file = tmp_path / "my own" / "mine.yaml"
    file.parent.mkdir()
    file.write_text((SCENARIOS / "exact_cover.yaml").read_text())
    with session(repeat=2, asked_qemu="/opt/qemu new/qemu") as running:
        result = running.run(asked_load(load_case(str(file)), "kmem"), "debian:7.2")
    assert result.scenario == "mine"
    assert result.reproduce == (
        f"harness run '{file}' --kernel debian:7.2 --policy per_range --accel tcg "
        "--qemu '/opt/qemu new/qemu' --load none"
    )
    # A result without a shorter one says how it was run.
    plain = read_result(replace(result, reproduce="").as_json())
    assert plain.command.startswith(f"harness run '{file}' --kernel debian:7.2 ")
    words = shlex.split(result.reproduce)
    assert load_case(words[2]).document.text == file.read_text()


def test_a_failure_of_a_restored_guest_is_confirmed_by_a_booted_one(answering: Any) -> None:
    seen = answering(lambda _case, _load: Verdict.FAIL)
    with session(repeat=2) as running:
        result = running.run(load_case("exact_cover"), "debian:7.2")
    assert [one.start for one in result.attempts] == ["cold", "cold"]
    assert [one.verdict for one in result.attempts] == [Verdict.FAIL] * 2
    again = seen[2:4]
    assert seen[:2] == again


def test_a_failure_that_only_a_restored_guest_shows_is_none(answering: Any) -> None:
    left = [Verdict.PASS, Verdict.FAIL, Verdict.PASS]
    answering(lambda _case, _load: left.pop(0))
    with session(jobs=1, repeat=2) as running:
        result = running.run(load_case("exact_cover"), "debian:7.2")
    assert result.verdict is Verdict.PASS
    assert [one.start for one in result.attempts] == ["warm", "cold"]
    assert left == []


def test_what_passes_in_a_restored_guest_is_not_done_again(answering: Any) -> None:
    seen = answering(lambda _case, _load: Verdict.PASS)
    with session(repeat=3) as running:
        result = running.run(load_case("exact_cover"), "debian:7.2")
    assert [one.start for one in result.attempts] == ["warm"] * 3
    assert len(seen) == 3


def test_guests_are_held_against_each_other(
    answering: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differ(combined: RunResult, results: list[RunResult]) -> RunResult:
        found = Difference(2, "/e", "observation/iomem", 2, ("here",), ())
        return replace(combined, compared=len(results), differences=(found,))

    monkeypatch.setattr(runs, "compared", differ)
    answering(lambda _case, _load: Verdict.PASS)
    with session(repeat=3) as running:
        result = running.run(load_case("exact_cover"), "debian:7.2")
    assert (result.verdict, result.compared, len(result.differences)) == (Verdict.PASS, 3, 1)


def test_a_known_failure_is_not_made_shorter(answering: Any) -> None:
    seen = answering(lambda _case, _load: Verdict.PASS)
    with session(repeat=2) as running:
        assert running.run(load_case("exact_cover"), "debian:7.2").reproduce == ""
    assert len(seen) == 2


def test_too_many_orders_are_refused_with_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    case = loading(load_case("exact_cover"), LoadPlan(all_orders=tuple("abcdefgh")))
    monkeypatch.setattr(runs, "prepare_case", lambda *_: Eight(case))
    with pytest.raises(UsageError, match="more than 5040 orders") as refused, session() as running:
        running.run(case, "debian:7.2")
    assert "guest.load" in str(refused.value.where)


class Eight(SimplePrepared):
    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.bootable.initramfs.depends = {name: () for name in "abcdefgh"}


def test_what_the_harness_ends_itself_is_no_lost_machine() -> None:
    live = LiveMachines()
    machine = cast(Any, Mock())
    with pytest.raises(MachineLostError), live.tracked(machine):
        raise MachineLostError("QEMU ended", hint="look")
    with pytest.raises(StoppedError), live.tracked(machine):
        live.stop()
        raise MachineLostError("QEMU ended", hint="look")
    with pytest.raises(StoppedError), live.tracked(machine):
        pytest.fail("a machine was started after the end")
    live.go_on()
    with live.tracked(machine):
        pass


@pytest.mark.parametrize(
    ("text", "load"),
    [
        ("all_orders", LoadPlan(all_orders=ALL)),
        ("parallel", LoadPlan(parallel=ALL)),
        ("modalias", LoadPlan(modalias=ALL)),
        ("kmem,dax-hmem", ("kmem", "dax_hmem")),
        ("none", ()),
    ],
)
def test_load_on_the_command_line(text: str, load: object) -> None:
    assert asked_load(load_case("exact_cover"), text).scenario.guest.load == load


@pytest.mark.parametrize("text", ["", "kmem,", "kmem dax_hmem", "../x", "$(reboot)"])
def test_another_load_on_the_command_line_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--load"):
        asked_load(load_case("exact_cover"), text)


def test_another_load_cannot_name_a_module_that_the_scenario_takes_away() -> None:
    with pytest.raises(UsageError, match=r"loads cxl_pci, which guest\.missing removes"):
        asked_load(load_case("no_region"), "cxl_acpi,cxl_pci,dax_hmem,kmem")


def test_with_other_modules_the_oracle_says_who_owns_what() -> None:
    case = load_case("exact_cover")
    assert asked_load(case, "kmem,dax_hmem,cxl_acpi,cxl_mem,cxl_pci,dax_cxl").as_stated
    fewer = asked_load(case, "kmem,dax_hmem")
    assert not fewer.as_stated
    from layouts import state_of

    def owner(case: Case) -> str:
        (first,) = expectations(case.scenario, state_of(case), "per_range")
        return str(first.owners["sr0"])

    assert owner(fewer) == "dax_hmem/system_ram"
    assert owner(case) == "dax_cxl/system_ram"
