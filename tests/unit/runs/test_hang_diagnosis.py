# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.core.deadline import Deadline
from harness.core.errors import (
    DeadlineExpiredError,
    GuestCrashedError,
    GuestLostError,
    HarnessError,
    MachineLostError,
)
from harness.guest.ssh import GuestCommand
from harness.runs.boot import BootedGuest
from harness.runs.evidence import Evidence
from harness.runs.hang_diagnosis import explain_silence

MODPROBE = "76 (modprobe) D 75 75 75 0 -1 4194304 98 0 0 0 0 7 0 0 20 0 1 0 260 925696 120 0\n"
SHELL = "75 (sh) S 0 75 75 0 -1 4194304 98 0 0 0 0 7 0 0 20 0 1 0 260 925696 120 0\n"
STACK = "[<0>] dax_hmem_platform_probe+0x1a/0x40 [dax_hmem]\n[<0>] platform_probe+0x4/0x9\n"
OURS = ("Kernel panic - not syncing: NMI", " hmem_spin+0x1/0x2 [dax_hmem]")


class FakeShell:
    """A shell that hangs, and what another one beside it says; None for no other."""

    step = "modprobe dax_hmem"

    def __init__(self, tasks: str | None, stack: str) -> None:
        self.tasks = tasks
        self.stack = stack

    @contextmanager
    def beside(self, deadline: Deadline) -> Iterator[FakeShell]:
        if self.tasks is None:
            raise GuestLostError("no other shell", hint="x")
        yield self

    def run(self, command: str, deadline: Deadline) -> GuestCommand:
        assert self.tasks is not None
        return GuestCommand(command, 0, self.stack if "/76/stack" in command else self.tasks)


class FakeGuest:
    """A guest that does not answer.

    Args:
        tasks: what it says when it is asked by another shell, None for nothing.
        nmi: what its kernel says of an NMI.
        status: QEMU's.
        crash: what a check finds.
        stack: of the task that waits.
    """

    def __init__(
        self,
        tasks: str | None = None,
        nmi: tuple[str, ...] = (),
        status: str = "running",
        crash: HarnessError | None = None,
        stack: str = STACK,
    ) -> None:
        self.shell = FakeShell(tasks, stack)
        self.machine = self
        self.watch = SimpleNamespace(trace=(), panicked=False, await_panic=lambda seconds: None)
        self.console = SimpleNamespace(await_closed=lambda seconds: None)
        self.commands: list[str] = []
        self._nmi, self._status, self._crash = nmi, status, crash

    def check(self) -> None:
        if self._crash is not None:
            raise self._crash

    def command(self, name: str, **_arguments: object) -> Any:
        self.commands.append(name)
        if name == "inject-nmi":
            self.watch.trace, self.watch.panicked = self._nmi, bool(self._nmi)
        return {"status": self._status} if name == "query-status" else "CPU#0 RIP=1\n"


def explain(guest: FakeGuest, tmp_path: Path) -> HarnessError:
    error = Deadline(60, "modprobe dax_hmem to end in the guest").error()
    assert error.seconds == 60
    return explain_silence(cast(BootedGuest, guest), error, Evidence(tmp_path), between=0.0)


def test_a_guest_that_answers_otherwise_says_what_hangs(tmp_path: Path) -> None:
    guest = FakeGuest(tasks=SHELL + MODPROBE)
    found = explain(guest, tmp_path)
    assert isinstance(found, GuestCrashedError)
    assert found.kind == "hang"
    assert found.step == "modprobe dax_hmem"
    assert found.message == (
        "the guest's kernel hangs: modprobe:76 did not go on in 60 s (during modprobe dax_hmem)"
    )
    assert found.trace == ("task modprobe:76 state:D", *STACK.splitlines())
    assert (tmp_path / "stuck_tasks.txt").read_text().startswith("task modprobe:76")
    assert "inject-nmi" not in guest.commands, "it lives"


def test_a_kernel_that_shows_no_stacks_shows_them_in_a_panic(tmp_path: Path) -> None:
    guest = FakeGuest(tasks=MODPROBE, nmi=OURS, stack="dax_hmem_platform_probe\n")
    found = explain(guest, tmp_path)
    assert isinstance(found, GuestCrashedError)
    assert found.trace == ("task modprobe:76 state:D", "dax_hmem_platform_probe", *OURS)
    assert "modprobe:76 did not go on" in found.message


def test_a_guest_that_is_only_slow_is_inconclusive(tmp_path: Path) -> None:
    found = explain(FakeGuest(tasks=SHELL), tmp_path)
    assert isinstance(found, DeadlineExpiredError)
    assert found.message == "timed out after 60 s waiting for modprobe dax_hmem to end in the guest"


def test_a_guest_that_answers_only_an_nmi_hangs_in_the_drivers(tmp_path: Path) -> None:
    guest = FakeGuest(nmi=OURS)
    found = explain(guest, tmp_path)
    assert isinstance(found, GuestCrashedError)
    assert found.kind == "hang"
    assert "it responds only to an NMI (during modprobe dax_hmem)" in found.message
    assert found.trace == OURS
    assert (tmp_path / "cpus.txt").read_text() == "CPU#0 RIP=1\n"


@pytest.mark.parametrize(
    ("nmi", "text"),
    [
        ((), "not even to an NMI"),
        (("Kernel panic - not syncing: NMI", " default_idle+0x1/0x2"), "was not in the drivers"),
    ],
)
def test_a_guest_of_which_nobody_can_say_is_inconclusive(
    tmp_path: Path, nmi: tuple[str, ...], text: str
) -> None:
    found = explain(FakeGuest(nmi=nmi), tmp_path)
    assert isinstance(found, DeadlineExpiredError)
    assert text in found.message


def test_a_guest_that_qemu_has_stopped_is_no_finding(tmp_path: Path) -> None:
    found = explain(FakeGuest(tasks=MODPROBE, status="internal-error"), tmp_path)
    assert isinstance(found, MachineLostError)
    assert "internal-error" in found.message


def test_a_crash_that_was_seen_meanwhile_is_what_happened(tmp_path: Path) -> None:
    crash = GuestCrashedError("it panicked", hint="x")
    assert explain(FakeGuest(tasks=MODPROBE, crash=crash), tmp_path) is crash
