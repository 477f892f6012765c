# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest
from machines import one_window

from harness import doctor
from harness.machine.qemu_command import Boot, ConsolePipe, qemu_argv
from harness.orphans import Orphan, find_orphans


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """Processes: init, a harness with its QEMU, and a QEMU that init has got."""
    from cli_room import FIT_QEMU

    console = ConsolePipe(7, Path("/evidence/a,b/serial.log"))
    boot = Boot(Path("/kernel"), "/dev/fd/9", "console=ttyS0", console)
    qemu = qemu_argv(FIT_QEMU, one_window(), "tcg", boot=boot)
    folder = tmp_path / "proc"
    for number, parent, words in (
        (1, 0, ("/sbin/init",)),
        (20, 1, ("/venv/bin/python3.11", "/venv/bin/harness", "run", "exact_cover")),
        (21, 20, qemu),
        (30, 1, qemu),
        (31, 1, ("/usr/bin/qemu-system-x86_64", "-serial", "stdio")),
        (32, 1, ("grep", "-chardev file,id=console,path=/dev/fd/7,logfile=x")),
    ):
        one = folder / str(number)
        one.mkdir(parents=True)
        (one / "cmdline").write_text("\0".join(words) + "\0")
        (one / "stat").write_text(f"{number} (odd) name) S {parent} 1 1 0\n")
    return folder


def test_a_qemu_without_its_harness_is_found(proc: Path) -> None:
    assert find_orphans(proc) == (Orphan(30, "/evidence/a,b/serial.log"),)


def test_the_doctor_says_how_to_end_it(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_orphans", lambda: find_orphans(proc))
    (check,) = doctor.check_orphans()
    assert check.state == "warning"
    assert "30" in check.found and "/evidence/a,b/serial.log" in check.found
    assert check.hint.startswith("kill 30")
    monkeypatch.setattr(doctor, "find_orphans", tuple)
    assert list(doctor.check_orphans()) == []
