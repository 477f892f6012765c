# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios with several guests, concurrently: their order, their end, the shortest failure."""

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
from cli_fixtures import FIT_QEMU
from fake_guest import prepared_of
from layouts import state_of

from harness.contract.expected import expectations
from harness.contract.result import Finding, RunResult, Verdict, read_result
from harness.core.errors import MachineLostError, UnbuildableError, UsageError
from harness.core.paths import SCENARIOS
from harness.core.progress import SilentProgress
from harness.runs.boot import RunningMachines, StoppedError
from harness.runs.guest_pool import choose_start
from harness.runs.guest_run import GuestRun, Judging
from harness.runs.minimize import loading, requested_load
from harness.runs.prepare import Host, Prepared
from harness.runs.requirements import NotApplicableError
from harness.runs.session import Session, SessionOptions, Skipped
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.known_issues import KnownIssues
from harness.scenario.module_load import Load, LoadPlan
from harness.scenario.scenario_files import Case, load_case, load_cases

ALL = ("cxl_acpi", "cxl_pci", "cxl_mem", "dax_hmem", "kmem", "dax_cxl")
JUDGING = Judging("per_range", Path("/nowhere"), KnownIssues(issues=()))

KERNEL = KernelRequest("debian:7.2")

Answer = Callable[[Case, Load], Verdict]
Prepare = Callable[[Case], None]


class FakeSession(Session):
    """A session whose guests end as a function returns, without a machine.

    Args:
        folder: of the kernel.
        answer: the verdict for a scenario and a load.
        prepare: raises where a scenario cannot be prepared.
        options: of the session.

    Attributes:
        loads: what the guests loaded, in order.
    """

    def __init__(
        self,
        folder: Path,
        answer: Answer = lambda _case, _load: Verdict.PASS,
        prepare: Prepare = lambda _case: None,
        options: SessionOptions | None = None,
        qemu: str | None = None,
    ) -> None:
        host = Host(FIT_QEMU, cast(Any, None), SilentProgress(), "tcg", qemu)
        super().__init__(host, JUDGING, options or SessionOptions(jobs=2))
        self.loads: list[Load] = []
        self.prepared = prepared_of(folder / "k")
        depends = {**self.prepared.bootable.initramfs.depends, "cxl_pci": ("cxl_mem",)}
        initramfs = replace(self.prepared.bootable.initramfs, depends=depends)
        bootable = replace(self.prepared.bootable, initramfs=initramfs)
        self.prepared = replace(self.prepared, bootable=bootable)
        self._answer, self._prepare = answer, prepare

    def prepare(self, case: Case, request: KernelRequest) -> Prepared:
        self._prepare(case)
        return replace(self.prepared, case=case)

    @contextmanager
    def pool_of(self, prepared: Prepared, count: int) -> Iterator[Any]:
        warm = choose_start(self.options.start, prepared, count)[0] == "warm"

        @contextmanager
        def guest(_evidence: object, _timings: object, start: str) -> Iterator[Any]:
            yield SimpleNamespace(start=start if warm else "cold")

        yield SimpleNamespace(guest=guest)

    def run_guest(self, run: GuestRun, start: Any) -> RunResult:
        self.loads.append(run.load)
        with start(None, None) as guest:
            verdict = self._answer(run.prepared.case, run.load)
        findings = (Finding("2", "wrong"),) if verdict is Verdict.FAIL else ()
        result = replace(run.before, verdict=verdict, load=run.load, findings=findings)
        return replace(result, start=guest.start, accel="tcg", evidence="/nowhere")


def test_results_come_in_the_order_of_the_scenarios(tmp_path: Path) -> None:
    second_is_done = threading.Event()

    def answer(case: Case, _load: Load) -> Verdict:
        if case.name == "exact_cover":
            assert second_is_done.wait(20), "they do not run side by side"
        else:
            second_is_done.set()
        return Verdict.PASS

    cases = load_cases(["exact_cover", "no_region"])
    with FakeSession(tmp_path, answer) as running:
        results = list(running.run_all(cases, KERNEL))
    assert [cast(RunResult, one).scenario for one in results] == ["exact_cover", "no_region"]


def test_no_more_guests_run_concurrently_than_jobs(tmp_path: Path) -> None:
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

    with FakeSession(tmp_path, answer, options=SessionOptions(2, repeat=20)) as running:
        result = running.run(load_case("exact_cover"), KERNEL)
    assert (most, len(running.loads), len(result.attempts)) == (2, 20, 20)


def test_a_scenario_of_another_kernel_is_skipped_beside_others(tmp_path: Path) -> None:
    def prepare(case: Case) -> None:
        if case.name == "builtin":
            raise NotApplicableError("not so", hint="another")
        if case.name == "mixed":
            raise UnbuildableError("gcc fell over", hint="look")

    with FakeSession(tmp_path, prepare=prepare) as running:
        cases = load_cases(["builtin", "exact_cover", "mixed"])
        skipped, passed, unbuildable = running.run_all(cases, KERNEL)
    assert isinstance(skipped, Skipped)
    assert isinstance(passed, RunResult) and passed.verdict is Verdict.PASS
    assert isinstance(unbuildable, RunResult) and unbuildable.verdict is Verdict.UNBUILDABLE
    with FakeSession(tmp_path, prepare=prepare) as running, pytest.raises(NotApplicableError):
        running.run(load_case("builtin"), KERNEL)


def test_an_error_ends_every_guest(tmp_path: Path) -> None:
    """A guest whose result is no longer needed must not go on."""
    killed, waiting = threading.Event(), threading.Event()
    machine = cast(Any, Mock(kill=killed.set))

    def answer(case: Case, _load: Load) -> Verdict:
        if case.name == "no_region":
            assert waiting.wait(20)
            raise UsageError("no room for evidence", hint="make some")
        with running._machines.tracked(machine):
            waiting.set()
            assert killed.wait(20), "the other guest goes on"
        return Verdict.INCONCLUSIVE

    running = FakeSession(tmp_path, answer)
    with pytest.raises(UsageError, match="no room"), running:
        list(running.run_all(load_cases(["no_region", "exact_cover"]), KERNEL))


def test_all_orders_and_the_shortest_that_fails(tmp_path: Path) -> None:
    """The failure needs kmem before cxl_acpi, and nothing else."""

    def answer(_case: Case, load: Load) -> Verdict:
        names = list(load.modules)
        both = "kmem" in names and "cxl_acpi" in names
        bad = both and names.index("kmem") < names.index("cxl_acpi")
        return Verdict.FAIL if bad else Verdict.PASS

    case = requested_load(load_case("exact_cover"), "all_orders")
    with FakeSession(tmp_path, answer) as running:
        result = running.run(case, KERNEL)
    assert len(result.attempts) == 360
    assert result.verdict is Verdict.FAIL
    assert str(result.load) == "cxl_mem, cxl_pci, dax_hmem, kmem, cxl_acpi, dax_cxl"
    assert result.reproduce == (
        "harness run exact_cover --kernel debian:7.2 --policy per_range --accel tcg "
        "--load kmem,cxl_acpi"
    )


def failing(_case: Case, _load: Load) -> Verdict:
    return Verdict.FAIL


def test_a_reproducer_names_the_file_and_the_qemu_that_were_given(tmp_path: Path) -> None:
    """The name of a user's scenario does not find its file."""
    file = tmp_path / "my own" / "mine.yaml"
    file.parent.mkdir()
    file.write_text((SCENARIOS / "exact_cover.yaml").read_text())
    options = SessionOptions(2, repeat=2)
    with FakeSession(tmp_path, failing, options=options, qemu="/opt/qemu new/qemu") as running:
        result = running.run(requested_load(load_case(str(file)), "kmem"), KERNEL)
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


def test_a_failure_of_a_restored_guest_is_confirmed_by_a_booted_one(tmp_path: Path) -> None:
    with FakeSession(tmp_path, failing, options=SessionOptions(2, repeat=2)) as running:
        result = running.run(load_case("exact_cover"), KERNEL)
    assert [one.start for one in result.attempts] == ["cold", "cold"]
    assert [one.verdict for one in result.attempts] == [Verdict.FAIL] * 2
    assert running.loads[:2] == running.loads[2:4]


def test_a_failure_that_only_a_restored_guest_shows_does_not_count(tmp_path: Path) -> None:
    left = [Verdict.PASS, Verdict.FAIL, Verdict.PASS]
    options = SessionOptions(1, repeat=2)
    with FakeSession(tmp_path, lambda *_: left.pop(0), options=options) as running:
        result = running.run(load_case("exact_cover"), KERNEL)
    assert result.verdict is Verdict.PASS
    assert [one.start for one in result.attempts] == ["warm", "cold"]
    assert left == []


def test_what_passes_in_a_restored_guest_is_not_repeated_nor_minimized(tmp_path: Path) -> None:
    with FakeSession(tmp_path, options=SessionOptions(2, repeat=3)) as running:
        result = running.run(load_case("exact_cover"), KERNEL)
    assert [one.start for one in result.attempts] == ["warm"] * 3
    assert (len(running.loads), result.compared, result.reproduce) == (3, 3, "")


def test_too_many_orders_are_refused_with_the_line(tmp_path: Path) -> None:
    case = loading(load_case("exact_cover"), LoadPlan(all_orders=tuple("abcdefgh")))
    with (
        pytest.raises(UsageError, match="more than 5040 orders") as refused,
        FakeSession(tmp_path) as running,
    ):
        depends: dict[str, tuple[str, ...]] = {name: () for name in "abcdefgh"}
        bootable = running.prepared.bootable
        initramfs = replace(bootable.initramfs, depends=depends)
        bootable = replace(bootable, initramfs=initramfs)
        running.prepared = replace(running.prepared, bootable=bootable)
        running.run(case, KERNEL)
    assert "guest.load" in str(refused.value.where)


def test_what_the_harness_ends_itself_is_no_lost_machine() -> None:
    machines = RunningMachines()
    machine = cast(Any, Mock())
    with pytest.raises(MachineLostError), machines.tracked(machine):
        raise MachineLostError("QEMU ended", hint="look")
    with pytest.raises(StoppedError), machines.tracked(machine):
        machines.stop()
        raise MachineLostError("QEMU ended", hint="look")
    with pytest.raises(StoppedError), machines.tracked(machine):
        pytest.fail("a machine was started after the end")


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
    assert requested_load(load_case("exact_cover"), text).scenario.guest.load == load


@pytest.mark.parametrize("text", ["", "kmem,", "kmem dax_hmem", "../x", "$(reboot)"])
def test_another_load_on_the_command_line_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--load"):
        requested_load(load_case("exact_cover"), text)


def test_another_load_cannot_name_a_module_that_the_scenario_takes_away() -> None:
    with pytest.raises(UsageError, match=r"loads cxl_pci, which guest\.missing removes"):
        requested_load(load_case("no_region"), "cxl_acpi,cxl_pci,dax_hmem,kmem")


def test_with_other_modules_the_oracle_says_who_owns_what() -> None:
    case = load_case("exact_cover")
    assert requested_load(case, "kmem,dax_hmem,cxl_acpi,cxl_mem,cxl_pci,dax_cxl").as_stated
    fewer = requested_load(case, "kmem,dax_hmem")
    assert not fewer.as_stated

    def owner(case: Case) -> str:
        (first,) = expectations(case.scenario, state_of(case), "per_range")
        return str(first.owners["sr0"])

    assert owner(fewer) == "dax_hmem/system_ram"
    assert owner(case) == "dax_cxl/system_ram"
