# SPDX-License-Identifier: GPL-2.0-or-later
"""The pool of guests of one machine, with machines that are only names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from cli_fixtures import FIT_QEMU
from fake_guest import FakeShell, booted, prepared_of

from harness.contract.result import RunResult, Start, Verdict
from harness.core.errors import (
    GuestCrashedError,
    GuestLostError,
    HarnessError,
    MachineLostError,
    UsageError,
)
from harness.guest.initramfs import SCENARIO_MODULES
from harness.machine.snapshot import RestoreError
from harness.runs.boot import BootedGuest, BootSetup, RunningMachines
from harness.runs.evidence import Evidence, Timings
from harness.runs.guest_pool import (
    GuestPool,
    Restorable,
    StartOption,
    choose_start,
    confirmed,
    guest_pool,
    warm_obstacle,
)
from harness.runs.prepare import Host
from harness.scenario.kernel_request import KernelRequest


def without(name: str) -> tuple[str, ...]:
    return tuple(one for one in SCENARIO_MODULES if one != name)


@pytest.mark.parametrize(
    ("requested", "runs", "start"),
    [
        ("auto", 1, "cold"),
        ("auto", 2, "warm"),
        ("warm", 1, "warm"),
        ("cold", 9, "cold"),
    ],
)
def test_auto_is_warm_only_for_more_than_one_run(
    tmp_path: Path, requested: StartOption, runs: int, start: Start
) -> None:
    assert choose_start(requested, prepared_of(tmp_path), runs) == (start, "")


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        ({"accel": "kvm"}, "warm start is untested with kvm"),
        (
            {"modules": without("dax_hmem")},
            "built-in drivers run before a guest can be saved: dax_hmem",
        ),
        (
            {"modules": ()},
            "built-in drivers run before a guest can be saved: cxl_acpi, cxl_pci, dax_hmem",
        ),
    ],
)
def test_guests_that_cannot_be_warm_are_cold_with_a_note_where_warm_was_requested(
    tmp_path: Path, kernel: dict[str, Any], why: str
) -> None:
    prepared = prepared_of(tmp_path, **kernel)
    assert choose_start("warm", prepared, 1) == ("cold", f"starting cold: {why}")
    assert choose_start("auto", prepared, 9) == ("cold", "")


def test_drivers_that_only_wait_may_be_built_in_and_any_may_be_missing(tmp_path: Path) -> None:
    assert warm_obstacle(prepared_of(tmp_path, modules=without("cxl_port"))) == ""
    modules = without("cxl_acpi")
    assert warm_obstacle(prepared_of(tmp_path, modules=modules, cxl_acpi="not built")) == ""


@dataclass
class Lab:
    """Boots and saves machines that are only names."""

    folder: Path
    notes: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    saving: HarnessError | None = None
    restoring: HarnessError | None = None
    differing: HarnessError | None = None
    version: tuple[int, int, int] = (10, 0, 2)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def evidence(self) -> Evidence:
        folder = self.folder / f"{len(list(self.folder.iterdir()))}"
        folder.mkdir()
        return Evidence(folder)

    @contextmanager
    def boot(self, *_where: object) -> Iterator[BootedGuest]:
        self.events.append("boot")
        yield booted(FakeShell())
        self.events.append("end")

    @contextmanager
    def save(self, *_where: object) -> Iterator[Restorable]:
        self.events.append("save")
        if self.saving:
            raise self.saving
        yield self
        self.events.append("forget")

    @contextmanager
    def guest(self, *_where: object) -> Iterator[BootedGuest]:
        self.events.append("restore")
        if self.restoring:
            raise self.restoring
        yield replace(booted(FakeShell()), start="warm")
        self.events.append("end")

    def try_out(self, evidence: Evidence) -> None:
        with self.guest(evidence):
            if self.differing:
                raise self.differing

    @contextmanager
    def pool(self, start: Start = "warm") -> Iterator[GuestPool]:
        qemu = replace(FIT_QEMU, version=self.version)
        host = Host(qemu, cast(Any, None), cast(Any, self), "tcg")
        setup = BootSetup(host, prepared_of(self.folder / "k"), RunningMachines())
        with guest_pool(setup, self.evidence, start, self.boot, self.save) as pool:
            yield pool

    def starts(self, pool: GuestPool, count: int = 1) -> list[str]:
        found: list[str] = []
        for _ in range(count):
            with pool.guest(self.evidence(), Timings()) as guest:
                found.append(guest.start)
        return found


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_a_machine_is_saved_once_and_its_guests_restored(lab: Lab) -> None:
    with lab.pool() as pool:
        assert pool.start == "warm"
        assert lab.starts(pool, 2) == ["warm", "warm"]
    assert lab.events == ["save", "restore", "end", "restore", "end", "forget"]
    assert lab.notes == []


def test_a_kernel_that_was_just_removed_from_the_store_is_refused(lab: Lab) -> None:
    setup = BootSetup(
        Host(FIT_QEMU, cast(Any, None), cast(Any, lab), "tcg"),
        prepared_of(lab.folder / "k"),
        RunningMachines(),
    )
    setup.prepared.bootable.kernel.image.unlink()
    with (
        pytest.raises(UsageError, match="was removed from the store"),
        guest_pool(setup, lab.evidence, "cold", lab.boot, lab.save),
    ):
        pytest.fail("a guest could start")


def test_nothing_is_saved_for_cold_guests(lab: Lab) -> None:
    with lab.pool("cold") as pool:
        assert pool.start == "cold"
        assert lab.starts(pool) == ["cold"]
    assert lab.events == ["boot", "end"]


def test_one_guest_can_be_booted_beside_warm_ones(lab: Lab) -> None:
    with lab.pool() as pool:
        with pool.guest(lab.evidence(), Timings(), start="cold") as guest:
            assert guest.start == "cold"
        assert lab.starts(pool) == ["warm"]


@pytest.mark.parametrize(
    "error",
    [
        RestoreError("QEMU could not save the machine: no", hint="none"),
        MachineLostError("QEMU ended killed by signal 9", hint="none"),
        GuestLostError("the guest's kernel panicked", hint="none"),
        GuestCrashedError("the guest's kernel panicked: late", hint="none"),
    ],
)
def test_a_machine_that_cannot_be_saved_is_booted_each_time(lab: Lab, error: HarnessError) -> None:
    lab.saving = error
    with lab.pool() as pool:
        assert pool.start == "cold"
        assert lab.starts(pool, 2) == ["cold", "cold"]
    assert lab.notes == [f"warm start does not work here, starting cold: {error.message}"]


def test_a_guest_that_cannot_be_restored_is_booted_and_so_are_all_after_it(lab: Lab) -> None:
    with lab.pool() as pool:
        assert lab.starts(pool) == ["warm"]
        lab.restoring = RestoreError("the restored machine is not what was saved", hint="none")
        evidence = lab.evidence()
        with pool.guest(evidence, Timings()) as guest:
            assert guest.start == "cold"
        lab.restoring = None
        assert lab.starts(pool) == ["cold"], "tried again although it is unsafe"
    assert lab.events.count("restore") == 2
    assert len(lab.notes) == 1
    why = json.loads(evidence.path("start.json").read_text())
    assert why == {"start": "cold", "why": "the restored machine is not what was saved"}


def test_what_goes_wrong_in_the_guest_is_not_taken_for_a_failed_start(lab: Lab) -> None:
    with (
        lab.pool() as pool,
        pytest.raises(GuestLostError, match="in the middle"),
        pool.guest(lab.evidence(), Timings()),
    ):
        raise GuestLostError("in the middle", hint="none")
    assert "boot" not in lab.events
    assert lab.notes == []


def test_an_untried_qemu_is_tried_before_it_is_used(lab: Lab) -> None:
    lab.version = (11, 1, 0)
    with lab.pool() as pool:
        assert lab.events == ["save", "restore", "end"]
        assert lab.starts(pool) == ["warm"]


def _no_restore(lab: Lab) -> None:
    lab.restoring = RestoreError("it differs", hint="none")


def _other_guest(lab: Lab) -> None:
    lab.differing = RestoreError("it differs", hint="none")


@pytest.mark.parametrize("damage", [_no_restore, _other_guest])
def test_an_untried_qemu_that_does_not_do_is_not_used(
    lab: Lab, damage: Callable[[Lab], None]
) -> None:
    lab.version = (11, 1, 0)
    damage(lab)
    with lab.pool() as pool:
        assert lab.starts(pool) == ["cold"]
    assert lab.notes == ["warm start does not work here, starting cold: it differs"]


RESULT = RunResult("exact_cover", KernelRequest("debian:7.2"), "per_range", evidence="/somewhere")


@pytest.mark.parametrize("first", [Verdict.FAIL, Verdict.INCONCLUSIVE])
@pytest.mark.parametrize("second", [Verdict.FAIL, Verdict.PASS])
def test_a_warm_run_that_did_not_pass_is_done_again(
    lab: Lab, first: Verdict, second: Verdict
) -> None:
    cold = replace(RESULT, start="cold", verdict=second)
    warm = replace(RESULT, start="warm", verdict=first)
    assert confirmed(cast(Any, lab), warm, lambda: cold) is cold
    assert lab.notes == (
        []
        if first is second
        else [
            f"exact_cover was {first.name} warm (/somewhere) and {second.name} cold: "
            "the cold run counts"
        ]
    )


@pytest.mark.parametrize(
    ("start", "verdict"),
    [("warm", Verdict.PASS), ("cold", Verdict.FAIL), ("cold", Verdict.PASS), (None, Verdict.FAIL)],
)
def test_other_runs_stand(lab: Lab, start: Start | None, verdict: Verdict) -> None:
    result = replace(RESULT, start=start, verdict=verdict)
    assert confirmed(cast(Any, lab), result, lambda: pytest.fail("run again")) is result
