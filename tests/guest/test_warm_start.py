# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that were saved after their boot and restored: the same as booted ones, or refused."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from harness.contract.expected import Expected
from harness.contract.judge import judge
from harness.contract.result import OwnedRange, Verdict
from harness.core.deadline import Deadline
from harness.core.errors import InconclusiveError, MachineLostError
from harness.core.progress import TerminalProgress
from harness.guest.modules import load_module
from harness.guest.observe import observe, read_sections
from harness.guest.settle import Settling, observe_settled
from harness.machine import snapshot
from harness.machine.qemu import Qemu
from harness.machine.qtest import Qtest
from harness.machine.snapshot import RestoreError, SavedMachine
from harness.plugins.pytest_plugin import asked_kernel
from harness.runs import guest_pool as pools
from harness.runs.boot import BootedGuest, BootSetup, RunningMachines, booted_guest
from harness.runs.evidence import Evidence, Timings, new_evidence
from harness.runs.guest_pool import RestorableGuest, choose_start, guest_pool, saved_guest
from harness.runs.prepare import Host, Prepared, prepare_case, request_for
from harness.scenario.scenario_files import load_case

pytestmark = pytest.mark.guest

BOOT_SECONDS = 120.0


@dataclass(frozen=True)
class Outcome:
    """What a guest came to after the steps of its scenario."""

    verdict: Verdict
    owners: tuple[OwnedRange, ...]
    iomem: str


@dataclass(frozen=True)
class Room:
    """A prepared scenario, and a place for evidence."""

    host: Host
    prepared: Prepared
    folder: Path

    @property
    def setup(self) -> BootSetup:
        return BootSetup(self.host, self.prepared, RunningMachines(), BOOT_SECONDS)

    def evidence(self) -> Evidence:
        return new_evidence(self.folder, "warm", "test")

    @contextmanager
    def booted(self) -> Iterator[BootedGuest]:
        with booted_guest(self.setup, self.evidence(), Timings()) as guest:
            yield guest

    @contextmanager
    def saved(self) -> Iterator[RestorableGuest]:
        with saved_guest(self.setup, self.evidence(), Timings()) as machine:
            yield machine

    def outcome(self, guest: BootedGuest) -> Outcome:
        scenario = self.prepared.case.scenario
        assert said(guest, "cat /proc/modules; ls /sys/bus/dax/devices").count("cxl") == 0
        for name in scenario.guest.modules:
            assert load_module(guest.shell, name) is None
        wanted = tuple(one.range for one in self.prepared.state.soft_reserved)
        sections = observe_settled(guest.shell, wanted, Settling(), lambda: observe(guest.shell))
        guest.check()
        expected = Expected(scenario.expect.owners("per_range"))
        allowed = [re.compile(line.pattern) for line in scenario.expect.dmesg]
        found = judge(read_sections(sections), self.prepared.state, expected, allowed)
        return Outcome(found.verdict, found.owners, sections["iomem"])


def said(guest: BootedGuest, command: str) -> str:
    return guest.shell.run(command, Deadline(60, f"{command} in the guest")).output


def room_of(request: pytest.FixtureRequest, host: Host, folder: Path, name: str) -> Room:
    case = load_case(name)
    prepared = prepare_case(host, case, request_for(case, asked_kernel(request.config)))
    if choose_start("warm", prepared, 1)[0] == "cold":
        pytest.skip("this kernel or accelerator starts cold only")
    return Room(host, prepared, folder)


@pytest.fixture(scope="module")
def room(
    request: pytest.FixtureRequest, harness_host: Host, tmp_path_factory: pytest.TempPathFactory
) -> Room:
    return room_of(request, harness_host, tmp_path_factory.mktemp("evidence"), "exact_cover")


@pytest.fixture(scope="module")
def saved(room: Room) -> Iterator[RestorableGuest]:
    with room.saved() as machine:
        assert children() == [], "a saved machine needs no process"
        yield machine


def children() -> list[str]:
    """The command names of this process's children."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        if int(rest.split()[1]) == os.getpid():
            found.append(name)
    return found


def test_a_restored_guest_comes_to_the_same_as_a_booted_one(
    room: Room, saved: RestorableGuest
) -> None:
    with room.booted() as guest:
        assert guest.start == "cold"
        cold = room.outcome(guest)
    evidence, timings = room.evidence(), Timings()
    with saved.guest(evidence, timings) as guest:
        assert guest.start == "warm"
        warm = room.outcome(guest)
    assert cold.verdict is Verdict.PASS
    assert warm == cold
    assert list(timings.seconds()) == ["start", "restore", "login", "total"]
    assert saved.size > 1 << 20
    start = json.loads(evidence.path("start.json").read_text())
    assert start["start"] == "warm"
    booted_in = Evidence(Path(start["booted_in"]))
    for name in ("kernel.json", "firmware.json"):
        assert evidence.path(name).read_text() == booted_in.path(name).read_text()
    assert "-incoming" in evidence.path("qemu.argv").read_text()
    before, mark, after = evidence.path("serial.log").read_text().partition("[harness: restored")
    assert before == booted_in.path("serial.log").read_text()
    assert "Linux version" in before
    assert mark
    assert "Linux version" not in after


def test_guests_run_at_once_and_know_nothing_of_each_other(
    room: Room, saved: RestorableGuest
) -> None:
    window = room.prepared.state.windows[0].start

    def live(number: int) -> tuple[Outcome, str, str]:
        with saved.guest(room.evidence(), Timings()) as guest:
            guest.machine.qtest.write64(window, number)
            said(guest, f"echo {number} > /mine")
            outcome = room.outcome(guest)
            return outcome, said(guest, "cat /mine").strip(), said(guest, "cat /proc/uptime")

    with saved.guest(room.evidence(), Timings()) as first:
        said(first, "echo first > /mine")
        with ThreadPoolExecutor(2) as pool:
            lives = list(pool.map(live, (1, 2)))
        assert said(first, "cat /mine").strip() == "first"
        assert "cxl_acpi" not in said(first, "cat /proc/modules")
        assert first.machine.qtest.read64(window) == 0
    assert [mine for _, mine, _ in lives] == ["1", "2"]
    assert lives[0][0] == lives[1][0]
    assert lives[0][0].verdict is Verdict.PASS
    with saved.guest(room.evidence(), Timings()) as late:
        assert "No such file" in said(late, "cat /mine")


@pytest.mark.parametrize("name", ["thread_hmat_maxmem", "sr_outside_window", "partial_region"])
def test_other_machines_come_to_the_same(
    name: str, request: pytest.FixtureRequest, harness_host: Host, tmp_path: Path
) -> None:
    room = room_of(request, harness_host, tmp_path, name)
    with room.booted() as guest:
        cold = room.outcome(guest)
    with room.saved() as machine, machine.guest(room.evidence(), Timings()) as guest:
        warm = room.outcome(guest)
    assert warm == cold


def test_a_register_that_differs_is_noticed(
    room: Room, saved: RestorableGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    registers = room.prepared.layout.bridges[0].registers.start

    def meddle(qtest: Qtest, _decoders: object) -> None:
        # The base of a decoder that nobody has committed.
        hdm = registers + 0x1000 + (_capability(qtest, registers + 0x1000, 5) >> 20)
        qtest.write32(hdm + 0x10 + 0x20, 0x1000_0000)

    monkeypatch.setattr(snapshot, "prove_paths", meddle)
    with (
        pytest.raises(RestoreError, match=r"component registers of the host bridge 0x35 at .* was"),
        saved.guest(room.evidence(), Timings()),
    ):
        pytest.fail("a machine that differs was let run")
    assert children() == []


def _capability(qtest: Qtest, table: int, wanted: int) -> int:
    for entry in range(1, (qtest.read32(table) >> 24) + 1):
        found = qtest.read32(table + 4 * entry)
        if found & 0xFFFF == wanted:
            return found
    pytest.fail(f"no capability {wanted}")


def _nothing(file: int) -> None:
    os.ftruncate(file, 0)


def _first_half(file: int) -> None:
    os.ftruncate(file, os.fstat(file).st_size // 2)


def _no_devices(file: int) -> None:
    os.ftruncate(file, os.lseek(file, -(256 << 10), os.SEEK_END))


def _other_beginning(file: int) -> None:
    os.pwrite(file, bytes(64), 0)


@contextmanager
def copied(file: int) -> Iterator[int]:
    """A copy of a file in memory that has large holes."""
    size = os.fstat(file).st_size
    with open(os.memfd_create("copy"), "w+b") as copy:
        os.ftruncate(copy.fileno(), size)
        end = 0
        while end < size:
            start = os.lseek(file, end, os.SEEK_DATA)
            end = os.lseek(file, start, os.SEEK_HOLE)
            os.pwrite(copy.fileno(), os.pread(file, end - start, start), start)
        yield copy.fileno()


@pytest.mark.parametrize("damage", [_nothing, _first_half, _no_devices, _other_beginning])
def test_a_damaged_file_is_told(
    room: Room,
    saved: RestorableGuest,
    damage: Callable[[int], None],
) -> None:
    with copied(saved.saved.file) as file:
        damage(file)
        other = replace(saved, saved=replace(saved.saved, file=file))
        with pytest.raises(MachineLostError) as caught, other.guest(room.evidence(), Timings()):
            pytest.fail("a damaged machine was let run")
    assert caught.value.message.startswith("QEMU ended with status 1: ")
    assert children() == []


def test_what_was_saved_cannot_be_changed(saved: RestorableGuest) -> None:
    for change in (
        lambda file: os.pwrite(file, b"x", 0),
        lambda file: os.ftruncate(file, 0),
    ):
        with pytest.raises(PermissionError):
            change(saved.saved.file)


def _dying(step: Callable[..., Any]) -> Callable[..., Any]:
    def die(machine: Qemu, *arguments: Any, **more: Any) -> Any:
        os.kill(machine.pid, signal.SIGKILL)
        return step(machine, *arguments, **more)

    return die


def test_a_qemu_that_is_killed_while_it_restores(
    room: Room, saved: RestorableGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_await_migration", _dying(snapshot._await_migration))
    with (
        pytest.raises(MachineLostError, match="QEMU ended killed by signal 9"),
        saved.guest(room.evidence(), Timings()),
    ):
        pytest.fail("a dead machine was let run")
    assert children() == []


def test_where_saving_fails_guests_are_booted(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    host = replace(room.host, progress=TerminalProgress())
    monkeypatch.setattr(host.progress, "note", notes.append)
    errors: list[InconclusiveError] = []

    def save(*arguments: Any) -> SavedMachine:
        try:
            return snapshot.save_machine(*arguments)
        except InconclusiveError as error:
            errors.append(error)
            raise

    monkeypatch.setattr(snapshot, "_await_migration", _dying(snapshot._await_migration))
    monkeypatch.setattr(pools, "save_machine", save)
    before = os.listdir("/proc/self/fd")
    with ExitStack() as stack:
        setup = replace(room.setup, host=host)
        source = stack.enter_context(guest_pool(setup, room.evidence, "warm"))
        assert source.start == "cold"
        assert children() == []
        guest = stack.enter_context(source.guest(room.evidence(), Timings()))
        assert guest.start == "cold"
        assert said(guest, "echo well").strip() == "well"
    (error,) = errors
    assert error.message.startswith("QEMU ended killed by signal 9")
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert notes == [f"warm start does not work here, starting cold: {error.message}"]


def test_nothing_is_left_behind(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    # The first QMP session of a process's main thread makes its event loop, which stays; the loop
    # that an earlier test left closes its files when it is collected.
    asyncio.set_event_loop(asyncio.new_event_loop())
    gc.collect()
    before = os.listdir("/proc/self/fd")
    boot, evidence = room.evidence(), room.evidence()
    with saved_guest(room.setup, boot, Timings()) as machine:
        with machine.guest(evidence, Timings()):
            assert len(children()) == 1
        assert children() == []
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert list(tmp_path.iterdir()) == []
    files = {"qemu.argv", "kernel.json", "firmware.json", "serial.log", "qemu.log"}
    files |= {"scenario.yaml", "profile.yaml", "layout.json", "firmware_state.json"}
    if (room.prepared.bootable.kernel.image.parent / "manifest.json").exists():
        files.add("kernel_manifest.json")
    assert {path.name for path in boot.folder.iterdir()} == files
    assert {path.name for path in evidence.folder.iterdir()} == files | {"start.json"}
