# SPDX-License-Identifier: GPL-2.0-or-later
"""Selection of the QEMU binary."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_fixtures import Harness, assert_one_message, files, program

pytestmark = pytest.mark.usefixtures("room")

FAKE_QEMU = """#!/bin/sh
case "$*" in
  --version) echo "QEMU emulator version {version}" ;;
  "-device {absent},help") echo "Device '{absent}' not found" >&2 ;;
  "-device cxl-type3,help") echo "cxl-type3 options:"; echo "  volatile-memdev=<link>" ;;
  "-device pxb-cxl,help") echo "pxb-cxl options:"; echo "  hdm_for_passthrough=<bool>" ;;
  "-device "*,help) name=${{2%,help}}; echo "$name options:" ;;
  "-netdev help") echo user ;;
  *) read answer ;;
esac
"""


def fake_qemu(version: str = "10.0.2", absent: str = "nothing") -> Path:
    return program(FAKE_QEMU.format(version=version, absent=absent))


def make_nothing() -> Path:
    return Path("nowhere/qemu").absolute()


def make_a_text_file() -> Path:
    fake_qemu().chmod(0o644)
    return Path("fake-qemu").absolute()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (make_nothing, ("there is no such program", "10.0 or later")),
        (make_a_text_file, ("there is no such program",)),
        (functools.partial(fake_qemu, "7.2.22"), ("QEMU 7.2.22 is too old", "10.0 or later")),
        (functools.partial(fake_qemu, "10.0.2", "cxl-type3"), ("lacks features", "cxl-type3")),
        (functools.partial(fake_qemu, "10.0.2", "pxb-cxl"), ("lacks features", "pxb-cxl")),
        (functools.partial(program, "#!/bin/sh\necho hello\n"), ("--version prints hello",)),
        (functools.partial(program, "#!/bin/sh\nexit 7\n"), ("status 7",)),
    ],
    ids=["absent", "not a program", "old", "no type 3", "no bridge", "another", "broken"],
)
@pytest.mark.parametrize("by_variable", [False, True])
@pytest.mark.parametrize("command", ["run", "boot"])
def test_an_unusable_qemu(
    harness: Harness,
    room: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], Path],
    expected: tuple[str, ...],
    by_variable: bool,
    command: str,
) -> None:
    qemu = make()
    before = files(room)
    words: tuple[object, ...] = ("--qemu", qemu)
    if by_variable:
        monkeypatch.setenv("HARNESS_QEMU", str(qemu))
        words = ()
    ended = harness(command, "exact_cover", *words)
    hint = ("apt-get install qemu-system-x86", "HARNESS_QEMU")
    assert_one_message(ended, str(qemu), *expected, *hint)
    assert files(room) == before


def test_the_option_wins_over_the_variable(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_QEMU", str(fake_qemu("7.2.22")))
    assert_one_message(harness("run", "exact_cover", "--qemu", "/nowhere/q"), "/nowhere/q: there")
