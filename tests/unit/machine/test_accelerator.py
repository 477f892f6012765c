# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM or TCG."""

from __future__ import annotations

import functools
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from cli_fixtures import FIT_QEMU, Harness, assert_one_message, files, program

from harness.core.cache import Store
from harness.core.errors import InconclusiveError, MachineLostError, UsageError
from harness.core.progress import SilentProgress
from harness.machine import accelerator
from harness.machine.accelerator import AcceleratorOption, choose_accelerator
from harness.machine.qemu import running_qemu
from harness.machine.qemu_argv import qemu_argv
from harness.machine.qemu_binary import REQUIRED_FEATURES, QemuBinary
from harness.runs.prepare import Host
from harness.scenario.scenario_files import (
    load_profile,
)

pytestmark = pytest.mark.usefixtures("room")

# Takes the monitor's commands as QEMU does, and prints on the console when it is told to go on.
FAKE_MONITOR = """#!{python}
import json, re, socket, sys
words = " ".join(sys.argv)
def inherited(name):
    return socket.socket(fileno=int(re.search(rf"id={{name}},fd=([0-9]+)", words)[1]))
monitor = inherited("monitor")
monitor.sendall(b'{{"QMP": {{"version": {{}}, "capabilities": []}}}}\\r\\n')
while said := monitor.recv(4096):  # one command at a time, without an end of line
    request = json.loads(said)
    answer = {{"return": {{}}}} | {{name: request[name] for name in ("id",) if name in request}}
    monitor.sendall(json.dumps(answer).encode() + b"\\r\\n")
    if request["execute"] == "cont" and {says!r}:
        console = re.search("id=console,path=([^,]+)", words)[1]
        with open(console, "wb") as line:
            line.write({says!r})
        sys.exit()
"""


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "kvm"
    path.touch()
    return path


def a_host(room: Path) -> Host:
    """What another run on this machine would have: nothing but the store is shared."""
    return Host(FIT_QEMU, Store(room / "store"), SilentProgress(), "auto")


def choose(
    room: Path, device: Path, asked: AcceleratorOption = "auto", qemu: QemuBinary = FIT_QEMU
) -> tuple[str, str]:
    remember = a_host(room).remember("accelerators")
    nothing = Path("/nowhere")
    return choose_accelerator(asked, qemu, nothing, nothing, remember, device)


def qemu_at(path: Path) -> QemuBinary:
    return QemuBinary(path, (10, 0, 2), "10.0.2", "1" * 64, False, REQUIRED_FEATURES)


def forbid_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def trial(*_arguments: object) -> NoReturn:
        pytest.fail("KVM was tried")

    monkeypatch.setattr(accelerator, "_try_kvm", trial)


def test_without_a_kvm_device_tcg_runs_and_says_so(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_trial(monkeypatch)
    device = room / "no-kvm"
    assert choose(room, device) == ("tcg", f"{device} does not exist: using TCG")
    with pytest.raises(UsageError, match="no-kvm does not exist") as caught:
        choose(room, device, "kvm")
    assert "--accel tcg" in caught.value.hint
    assert choose(room, device, "tcg") == ("tcg", "")
    assert files(room) == set()


def test_a_kvm_device_of_others(room: Path, device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_trial(monkeypatch)
    monkeypatch.setattr(os, "access", lambda path, _mode: path != device)
    assert choose(room, device) == ("tcg", f"{device} is not accessible for this user: using TCG")
    with pytest.raises(UsageError, match="is not accessible for this user") as caught:
        choose(room, device, "kvm")
    assert "group kvm" in caught.value.hint


@pytest.mark.parametrize("failure", ["", "no line came"])
def test_kvm_is_tried_once_and_the_answer_is_kept(
    room: Path, device: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    tried: list[QemuBinary] = []

    def trial(qemu: QemuBinary, _kernel: Path, _initramfs: Path) -> str:
        tried.append(qemu)
        return failure

    monkeypatch.setattr(accelerator, "_try_kvm", trial)
    first = choose(room, device)
    assert first == (
        ("tcg", f"KVM does not boot a kernel here ({failure}): using TCG")
        if failure
        else ("kvm", "")
    )
    assert [choose(room, device) for _ in range(3)] == [first] * 3
    assert tried == [FIT_QEMU]
    if failure:
        with pytest.raises(UsageError, match=f"does not boot a kernel here: {failure}"):
            choose(room, device, "kvm")
        assert tried == [FIT_QEMU]
    another = qemu_at(FIT_QEMU.path)
    choose(room, device, qemu=another)
    assert tried == [FIT_QEMU, another]


def test_a_trial_that_is_interrupted_is_no_answer(
    room: Path, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(accelerator, "_try_kvm", interrupted)
    with pytest.raises(KeyboardInterrupt):
        choose(room, device)
    monkeypatch.setattr(accelerator, "_try_kvm", lambda *_arguments: "")
    assert choose(room, device) == ("kvm", "")


def test_a_kvm_on_which_qemu_dies(room: Path, device: Path) -> None:
    qemu = qemu_at(program("#!/bin/sh\necho failed to set MSR 0x10a >&2\nexit 1\n"))
    accel, note = choose(room, device, qemu=qemu)
    assert accel == "tcg"
    assert note == (
        "KVM does not boot a kernel here (QEMU ended with status 1: failed to set MSR 0x10a): "
        "using TCG"
    )


def test_a_kvm_on_which_no_kernel_prints_a_line(
    room: Path, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "_BOOT_SECONDS", 0.5)
    qemu = qemu_at(program(FAKE_MONITOR.format(python=sys.executable, says=b"")))
    accel, note = choose(room, device, qemu=qemu)
    assert accel == "tcg"
    assert "timed out after 0.5 s waiting for a kernel to boot under KVM" in note


def test_a_kvm_that_boots(room: Path, device: Path) -> None:
    says = b"[    0.000000] Linux version 7.2.0\r\n"
    qemu = qemu_at(program(FAKE_MONITOR.format(python=sys.executable, says=says)))
    assert choose(room, device, qemu=qemu) == ("kvm", "")
    assert list((room / "tmp").iterdir()) == []


def test_a_qemu_that_greets_and_says_no_more(room: Path) -> None:
    """As one does that is stopped, or on a host that swaps: no wait is without a deadline."""
    silent = FAKE_MONITOR.replace("    monitor.sendall", "    continue\n    monitor.sendall")
    qemu = qemu_at(program(silent.format(python=sys.executable, says=b"")))
    profile = load_profile("one_window")
    with (
        tempfile.TemporaryFile() as log,
        running_qemu(
            lambda control, _fd: qemu_argv(qemu, profile, "tcg", control=control), log
        ) as machine,
        time_limit(10, "connect_monitor goes on waiting"),
        pytest.raises(InconclusiveError),
    ):
        machine.connect_monitor(seconds=1.0)


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    def expired(_number: int, _frame: object) -> NoReturn:
        pytest.fail(what)

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("no_guest")
def test_kvm_that_was_asked_for_and_is_not_there(
    harness: Harness, room: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = room / "no-kvm"
    chooser = functools.partial(choose_accelerator, device=device)
    monkeypatch.setattr("harness.runs.prepare.choose_accelerator", chooser)
    ended = harness("run", "exact_cover", "--kernel", kernel, "--accel", "kvm")
    assert_one_message(ended, f"{device} does not exist", "--accel tcg")
    assert not (room / "evidence").exists()


@pytest.mark.usefixtures("no_guest")
def test_the_note_about_kvm_comes_once(
    harness: Harness, room: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_arguments: object, **_more: object) -> NoReturn:
        raise MachineLostError("QEMU ended with status 1", hint="none")

    device = room / "no-kvm"
    chooser = functools.partial(choose_accelerator, device=device)
    monkeypatch.setattr("harness.runs.prepare.choose_accelerator", chooser)
    monkeypatch.setattr("harness.runs.boot.running_qemu", lost)
    ended = harness("run", "exact_cover", "exact_cover", "--kernel", kernel)
    assert ended.err == f"{device} does not exist: using TCG\n"
    assert ended.code == 3
