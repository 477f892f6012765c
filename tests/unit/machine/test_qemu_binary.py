# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.core.errors import DeadlineExpiredError, UsageError
from harness.machine import qemu_binary
from harness.machine.qemu_binary import REQUIRED_FEATURES, require_qemu

FakeQemu = Callable[..., Path]

FAKE = """#!/bin/sh
echo "$*" >>"$0.asked"
case "$*" in
  --version)
    {before_version}
    echo "QEMU emulator version {version} (Fake 1:2.3)"
    echo "Copyright" ;;
  "-device sp-mem,help") echo "Device 'sp-mem' not found" >&2 ;;
  "-device cxl-type3,help") echo "cxl-type3 options:"; echo "  {type3_property}=<link>" ;;
  "-device pxb-cxl,help") echo "pxb-cxl options:"; echo "  hdm_for_passthrough=<bool>" ;;
  "-device "*,help) name=${{2%,help}}; echo "$name options:" ;;
  "-netdev help") printf 'Available netdev backend types:\\nsocket\\n{netdev}\\n' ;;
  *{refused}*) echo "Property '{refused}' not found" >&2; exit 1 ;;
  *) read answer; test "$answer" = quit ;;
esac
"""


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    store = tmp_path / "store"
    monkeypatch.setenv("HARNESS_STORE", str(store))
    monkeypatch.delenv("HARNESS_QEMU", raising=False)
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "debian"})
    return store


@pytest.fixture
def fake_qemu(tmp_path: Path) -> FakeQemu:
    def make(
        version: str = "10.1.2",
        before_version: str = ":",
        type3_property: str = "volatile-memdev",
        netdev: str = "user",
        refused: str = "nothing at all",
    ) -> Path:
        program = tmp_path / "qemu-system-x86_64"
        program.write_text(
            FAKE.format(
                version=version,
                before_version=before_version,
                type3_property=type3_property,
                netdev=netdev,
                refused=f'"{refused}"',
            )
        )
        program.chmod(0o755)
        return program

    return make


def questions(program: Path) -> int:
    return len(program.with_name(program.name + ".asked").read_text().splitlines())


def test_what_a_fit_qemu_says_is_read(fake_qemu: FakeQemu) -> None:
    program = fake_qemu()
    qemu = require_qemu(str(program))
    assert qemu.path == program
    assert qemu.version == (10, 1, 2)
    assert qemu.version_text == "10.1.2 (Fake 1:2.3)"
    assert qemu.seccomp
    assert set(REQUIRED_FEATURES) <= set(qemu.features)
    assert qemu.has("pxb-cxl.hdm_for_passthrough")
    assert not qemu.has("sp-mem")
    assert len(qemu.identity) == 64


def test_a_qemu_is_asked_once(fake_qemu: FakeQemu, own_store: Path) -> None:
    program = fake_qemu()
    first = require_qemu(str(program))
    asked = questions(program)
    assert require_qemu(str(program)) == first
    assert questions(program) == asked
    assert [path.suffix for path in (own_store / "qemu").iterdir()] == [".json"]


def test_a_replaced_qemu_is_asked_again(fake_qemu: FakeQemu) -> None:
    first = require_qemu(str(fake_qemu(version="10.0.0")))
    program = fake_qemu(version="10.0.1")
    os.utime(program, ns=(1, 1))
    second = require_qemu(str(program))
    assert second.version == (10, 0, 1)
    assert second.identity != first.identity


@pytest.mark.parametrize("damage", [b"", b"{", b'{"path": 3}', b"[]"])
def test_a_damaged_answer_in_the_store_is_asked_for_again(
    fake_qemu: FakeQemu, own_store: Path, damage: bytes
) -> None:
    program = fake_qemu()
    first = require_qemu(str(program))
    (entry,) = (own_store / "qemu").iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage)
    assert require_qemu(str(program)) == first
    assert entry.read_bytes() == whole


def test_a_store_that_cannot_be_written_is_only_no_cache(
    fake_qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HARNESS_STORE", str(tmp_path / "file" / "store"))
    program = fake_qemu()
    assert require_qemu(str(program)) == require_qemu(str(program))


def test_the_environment_and_then_the_path_say_which_qemu(
    fake_qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = fake_qemu()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert require_qemu().path == program
    other = tmp_path / "other-qemu"
    other.write_bytes(program.read_bytes())
    other.chmod(0o755)
    monkeypatch.setenv("HARNESS_QEMU", str(other))
    assert require_qemu().path == other


def test_an_absent_qemu_is_named_with_who_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_QEMU", "/nowhere/qemu")
    with pytest.raises(UsageError) as caught:
        require_qemu()
    assert caught.value.where == "HARNESS_QEMU=/nowhere/qemu"
    assert "ci/setup" in caught.value.hint


def test_an_old_qemu_is_refused_with_the_version_found_and_needed(fake_qemu: FakeQemu) -> None:
    with pytest.raises(UsageError, match=r"7\.2\.22 .* is too old: 10\.0 or later") as caught:
        require_qemu(str(fake_qemu(version="7.2.22")))
    assert "bookworm-backports" in caught.value.hint


@pytest.mark.parametrize(
    ("built", "lacking"),
    [
        ({"type3_property": "persistent-memdev"}, "cxl-type3.volatile-memdev"),
        ({"netdev": "tap"}, "netdev.user"),
        ({"refused": "hmat=on"}, "q35.hmat"),
    ],
)
def test_a_qemu_built_without_a_part_is_refused_by_the_parts_name(
    fake_qemu: FakeQemu, own_store: Path, built: dict[str, str], lacking: str
) -> None:
    with pytest.raises(UsageError, match=rf"features that a CXL machine needs: {lacking}\n"):
        require_qemu(str(fake_qemu(**built)))
    assert not own_store.exists(), "an unfit QEMU is not remembered"


def test_a_qemu_that_makes_no_machine_at_all_speaks_for_itself(fake_qemu: FakeQemu) -> None:
    with pytest.raises(UsageError, match="empty q35 machine: Property"):
        require_qemu(str(fake_qemu(refused="q35")))


def test_a_qemu_without_a_sandbox_is_fit(fake_qemu: FakeQemu) -> None:
    assert not require_qemu(str(fake_qemu(refused="-sandbox on"))).seccomp


def test_a_program_that_is_not_qemu_is_refused(fake_qemu: FakeQemu) -> None:
    with pytest.raises(UsageError, match="not QEMU: --version prints hello"):
        require_qemu(str(fake_qemu(before_version="echo hello; exit 0")))


def test_a_qemu_that_does_not_answer_runs_into_the_deadline(
    fake_qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_binary, "_PROBE_SECONDS", 0.2)
    with pytest.raises(DeadlineExpiredError, match="to list its features"):
        require_qemu(str(fake_qemu(before_version="sleep 60")))


@pytest.mark.parametrize(
    ("release", "command"),
    [
        ({"ID": "debian"}, "apt-get install qemu-system-x86"),
        ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, "Ubuntu 25.10"),
        ({"ID": "fedora"}, "dnf install"),
        ({"ID": "arch"}, "pacman -S"),
        ({"ID": "opensuse-tumbleweed", "ID_LIKE": "opensuse suse"}, "zypper install"),
        ({"ID": "nixos"}, "install QEMU 10.0 or later"),
        ({}, "install QEMU 10.0 or later"),
    ],
)
def test_the_hint_is_for_this_distribution(
    monkeypatch: pytest.MonkeyPatch, release: dict[str, str], command: str
) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)
    assert command in qemu_binary.install_qemu_hint()
