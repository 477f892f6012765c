# SPDX-License-Identifier: GPL-2.0-or-later
"""Where guests come from, with guests that are only names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cli_fixtures import FIT_QEMU

from harness.contract.result import RunResult, Start, Verdict
from harness.core.errors import GuestCrashedError, GuestLostError, HarnessError, MachineLostError
from harness.guest.initramfs import SCENARIO_MODULES, SharedInitramfs
from harness.machine.snapshot import RestoreError
from harness.runs import guest_pool as under_test
from harness.runs.evidence import Evidence
from harness.runs.guest_pool import GuestSource, choose_start, confirmed, guest_source
from harness.runs.prepare import Host, Prepared
from harness.runs.timings import Timings
from harness.runs.warm_start import AskedStart, warm_obstacle
from harness.scenario.kernel_request import KernelRequest


def prepared_with(
    *, modules: tuple[str, ...] = SCENARIO_MODULES, accel: str = "tcg", **missing: str
) -> Prepared:
    initramfs = SharedInitramfs(Path("/nowhere"), {name: () for name in modules}, missing)
    bootable = SimpleNamespace(accel=accel, initramfs=initramfs, kernel="7.2")
    return cast(Prepared, SimpleNamespace(bootable=bootable, state=None, layout=None))


PREPARED = prepared_with()


def without(name: str) -> tuple[str, ...]:
    return tuple(one for one in SCENARIO_MODULES if one != name)


@pytest.mark.parametrize(
    ("asked", "runs", "start"),
    [
        ("auto", 1, "cold"),
        ("auto", 2, "warm"),
        ("warm", 1, "warm"),
        ("cold", 9, "cold"),
    ],
)
def test_auto_is_warm_only_for_more_than_one_run(
    asked: AskedStart, runs: int, start: Start
) -> None:
    assert choose_start(asked, PREPARED, runs) == (start, "")


@pytest.mark.parametrize(
    ("prepared", "why"),
    [
        (prepared_with(accel="kvm"), "warm start is untried with kvm"),
        (
            prepared_with(modules=without("dax_hmem")),
            "what is built in runs before a guest can be saved: dax_hmem",
        ),
        (
            prepared_with(modules=()),
            "what is built in runs before a guest can be saved: cxl_acpi, cxl_pci, dax_hmem",
        ),
    ],
)
def test_what_cannot_be_warm_is_cold_and_said_where_warm_was_asked_for(
    prepared: Prepared, why: str
) -> None:
    assert choose_start("warm", prepared, 1) == ("cold", f"starting cold: {why}")
    assert choose_start("auto", prepared, 9) == ("cold", "")


def test_drivers_that_only_wait_may_be_built_in_and_any_may_be_missing() -> None:
    assert warm_obstacle(prepared_with(modules=without("cxl_port"))) == ""
    assert warm_obstacle(prepared_with(modules=without("cxl_acpi"), cxl_acpi="not built")) == ""


@dataclass
class Room:
    """Fakes of everything below a guest source."""

    folder: Path
    notes: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)
    saving: HarnessError | None = None
    restoring: HarnessError | None = None
    early: tuple[str, ...] = ()
    version: tuple[int, int, int] = (10, 0, 2)

    @property
    def host(self) -> Host:
        progress = SimpleNamespace(note=self.notes.append)
        return Host(
            replace(FIT_QEMU, version=self.version), cast(Any, None), cast(Any, progress), "tcg"
        )

    def evidence(self) -> Evidence:
        folder = self.folder / f"{len(list(self.folder.iterdir()))}"
        folder.mkdir()
        return Evidence(folder)

    @contextmanager
    def in_use(self, bootable: SimpleNamespace) -> Iterator[None]:
        self.kernels.append(bootable.kernel)
        yield
        self.kernels.remove(bootable.kernel)

    @contextmanager
    def booted_guest(self, *_arguments: object) -> Iterator[SimpleNamespace]:
        self.events.append("boot")
        yield SimpleNamespace(start="cold")
        self.events.append("end")

    @contextmanager
    def warm_machine(self, *_arguments: object) -> Iterator[Room]:
        self.events.append("save")
        if self.saving:
            raise self.saving
        yield self
        self.events.append("forget")

    @contextmanager
    def guest(self, *_arguments: object) -> Iterator[SimpleNamespace]:
        self.events.append("restore")
        if self.restoring:
            raise self.restoring
        yield SimpleNamespace(start="warm", shell=None)
        self.events.append("end")

    @contextmanager
    def source(self, asked: AskedStart = "warm", runs: int = 2) -> Iterator[GuestSource]:
        with guest_source(self.host, PREPARED, self.evidence, 1.0, asked, runs) as source:
            yield source

    def starts(self, source: GuestSource, count: int = 1) -> list[str]:
        found: list[str] = []
        for _ in range(count):
            with source.guest(self.evidence(), Timings()) as guest:
                found.append(guest.start)
        return found


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    room = Room(tmp_path)
    monkeypatch.setattr(under_test, "in_use", room.in_use)
    monkeypatch.setattr(under_test, "booted_guest", room.booted_guest)
    monkeypatch.setattr(under_test, "warm_machine", room.warm_machine)
    monkeypatch.setattr(under_test, "early_messages", lambda _shell: ())
    monkeypatch.setattr(under_test, "early_problems", lambda *_arguments: room.early)
    return room


def test_a_machine_is_saved_once_and_its_guests_restored(space: Room) -> None:
    with space.source() as source:
        assert source.start == "warm"
        assert space.kernels == ["7.2"], "every guest reads it"
        assert space.starts(source, 2) == ["warm", "warm"]
    assert space.kernels == []
    assert space.events == ["save", "restore", "end", "restore", "end", "forget"]
    assert space.notes == []


def test_nothing_is_saved_for_cold_guests(space: Room) -> None:
    with space.source("auto", runs=1) as source:
        assert source.start == "cold"
        assert space.starts(source) == ["cold"]
    assert space.events == ["boot", "end"]


def test_one_guest_can_be_booted_beside_warm_ones(space: Room) -> None:
    with space.source() as source:
        with source.guest(space.evidence(), Timings(), start="cold") as guest:
            assert guest.start == "cold"
        assert space.starts(source) == ["warm"]


@pytest.mark.parametrize(
    "error",
    [
        RestoreError("QEMU could not save the machine: no", hint="none"),
        MachineLostError("QEMU ended killed by signal 9", hint="none"),
        GuestLostError("the guest's kernel panicked", hint="none"),
        GuestCrashedError("the guest's kernel panicked: late", hint="none"),
    ],
)
def test_a_machine_that_cannot_be_saved_is_booted_each_time(
    space: Room, error: HarnessError
) -> None:
    space.saving = error
    with space.source() as source:
        assert source.start == "cold"
        assert space.starts(source, 2) == ["cold", "cold"]
    assert space.notes == [f"warm start does not work here, starting cold: {error.message}"]


def test_a_guest_that_cannot_be_restored_is_booted_and_so_are_all_after_it(space: Room) -> None:
    with space.source() as source:
        assert space.starts(source) == ["warm"]
        space.restoring = RestoreError("the restored machine is not what was saved", hint="none")
        evidence = space.evidence()
        with source.guest(evidence, Timings()) as guest:
            assert guest.start == "cold"
        space.restoring = None
        assert space.starts(source) == ["cold"], "tried again although it is unsafe"
    assert space.events.count("restore") == 2
    assert len(space.notes) == 1
    why = json.loads(evidence.path("start.json").read_text())
    assert why == {"start": "cold", "why": "the restored machine is not what was saved"}


def test_what_goes_wrong_in_the_guest_is_not_taken_for_a_failed_start(space: Room) -> None:
    with (
        space.source() as source,
        pytest.raises(GuestLostError, match="in the middle"),
        source.guest(space.evidence(), Timings()),
    ):
        raise GuestLostError("in the middle", hint="none")
    assert "boot" not in space.events
    assert space.notes == []


def test_an_untried_qemu_is_tried_before_it_is_used(space: Room) -> None:
    space.version = (11, 1, 0)
    with space.source() as source:
        assert space.events == ["save", "restore", "end"]
        assert space.starts(source) == ["warm"]


def _no_restore(space: Room) -> None:
    space.restoring = RestoreError("it differs", hint="none")


def _other_guest(space: Room) -> None:
    space.early = ("it differs",)


@pytest.mark.parametrize("damage", [_no_restore, _other_guest])
def test_an_untried_qemu_that_does_not_do_is_not_used(
    space: Room, damage: Callable[[Room], None]
) -> None:
    space.version = (11, 1, 0)
    damage(space)
    with space.source() as source:
        assert space.starts(source) == ["cold"]
    assert space.notes == ["warm start does not work here, starting cold: it differs"]


RESULT = RunResult("exact_cover", KernelRequest("debian:7.2"), "per_range", evidence="/somewhere")


@pytest.mark.parametrize("first", [Verdict.FAIL, Verdict.INCONCLUSIVE])
@pytest.mark.parametrize("second", [Verdict.FAIL, Verdict.PASS])
def test_a_warm_run_that_did_not_pass_is_done_again(
    space: Room, first: Verdict, second: Verdict
) -> None:
    cold = replace(RESULT, start="cold", verdict=second)
    warm = replace(RESULT, start="warm", verdict=first)
    assert confirmed(space.host, warm, lambda: cold) is cold
    assert space.notes == (
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
def test_other_runs_stand(space: Room, start: Start | None, verdict: Verdict) -> None:
    result = replace(RESULT, start=start, verdict=verdict)
    assert confirmed(space.host, result, lambda: pytest.fail("run again")) is result
