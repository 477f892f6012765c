# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from harness.cli import doctor
from harness.cli.doctor import Check, diagnose
from harness.core.errors import UsageError
from harness.machine.qemu_binary import REQUIRED_FEATURES, QemuBinary


class Usage(NamedTuple):
    total: int
    used: int
    free: int


FIT = QemuBinary(
    path=Path("/usr/bin/qemu-system-x86_64"),
    version=(10, 0, 2),
    version_text="10.0.2 (Fake)",
    identity="0" * 64,
    seccomp=True,
    features=REQUIRED_FEATURES,
)


def unfit(**changes: object) -> QemuBinary:
    values = {name: getattr(FIT, name) for name in FIT.__dataclass_fields__}
    return QemuBinary(**(values | changes))


@pytest.fixture(autouse=True)
def ready_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Debian machine that has everything."""
    monkeypatch.setenv("HARNESS_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "debian"})
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(9 << 30, 0, 9 << 30))
    use_qemu(monkeypatch, FIT)
    kvm = tmp_path / "kvm"
    kvm.touch()
    monkeypatch.setattr(doctor, "_KVM", kvm)
    use_meminfo(monkeypatch, tmp_path, "MemAvailable:    4194304 kB\n")
    monkeypatch.setattr(doctor, "find_orphans", tuple)
    monkeypatch.setattr(importlib.metadata, "requires", lambda _name: ["click>=8.1"])
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: name)


def use_qemu(monkeypatch: pytest.MonkeyPatch, qemu: QemuBinary) -> None:
    monkeypatch.setattr(doctor, "find_qemu", lambda: (qemu.path, "PATH"))
    monkeypatch.setattr(doctor, "examine", lambda _path: qemu)


def use_meminfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    (tmp_path / "meminfo").write_text(text)
    monkeypatch.setattr(doctor, "_MEMINFO", tmp_path / "meminfo")


def without_programs(monkeypatch: pytest.MonkeyPatch, *absent: str) -> None:
    monkeypatch.setattr(
        shutil, "which", lambda name: None if name in absent else f"/usr/bin/{name}"
    )


def the(name: str) -> Check:
    (check,) = (check for check in diagnose() if check.name == name)
    return check


def test_a_ready_machine_has_no_warning() -> None:
    checks = diagnose()
    assert {check.state for check in checks} == {"ok"}
    assert {check.hint for check in checks} == {""}
    assert len({check.name for check in checks}) == len(checks)


def test_every_warning_has_a_hint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_qemu(monkeypatch, unfit(version=(7, 2, 0), version_text="7.2", seccomp=False, features=()))
    without_programs(monkeypatch, "apt-get", "dpkg-deb", "xz", "git")
    monkeypatch.setattr(doctor, "_KVM", tmp_path / "no-kvm")
    use_meminfo(monkeypatch, tmp_path, "MemAvailable: 1000 kB\n")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(9, 9, 0))
    warnings = [check for check in diagnose() if check.state != "ok"]
    assert len(warnings) == 12
    assert all(check.hint for check in warnings)


def test_an_old_qemu_is_missing_with_the_version_found() -> None:
    with pytest.MonkeyPatch.context() as patch:
        use_qemu(patch, unfit(version=(7, 2, 0), version_text="7.2.0"))
        check = the("QEMU")
    assert check.state == "missing"
    assert "7.2.0" in check.found
    assert "10.0 or later" in check.found


def test_missing_qemu_features_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"cxl-type3.volatile-memdev", "q35.hmat"}
    use_qemu(monkeypatch, unfit(features=tuple(set(REQUIRED_FEATURES) - missing)))
    assert the("QEMU").state == "ok"
    assert the("QEMU's CXL devices").found == "without cxl-type3.volatile-memdev"
    assert the("QEMU's machine options").found == "without q35.hmat"
    assert the("QEMU's user networking").state == "ok"


def test_an_absent_qemu_is_missing_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> tuple[Path, str]:
        raise UsageError("there is no such program", where="somewhere", hint="get one")

    monkeypatch.setattr(doctor, "find_qemu", absent)
    assert the("QEMU") == Check("QEMU", "missing", "somewhere: there is no such program", "get one")


def test_no_qemu_is_started_without_setpriv(monkeypatch: pytest.MonkeyPatch) -> None:
    without_programs(monkeypatch, "setpriv")
    monkeypatch.setattr(doctor, "examine", lambda _path: pytest.fail("QEMU was started"))
    assert the("QEMU").state == "missing"
    assert "util-linux" in the("setpriv").hint


@pytest.mark.parametrize(
    ("release", "command"),
    [
        ({"ID": "debian"}, "use ci/setup, or: apt-get install xz-utils"),
        ({"ID": "ubuntu"}, "apt-get install xz-utils"),
        ({"ID": "rhel", "ID_LIKE": "fedora"}, "dnf install xz"),
        ({"ID": "arch"}, "pacman -S xz"),
        ({"ID": "opensuse-leap", "ID_LIKE": "suse opensuse"}, "zypper install xz"),
        ({"ID": "nixos"}, "install xz"),
    ],
)
def test_a_hint_is_the_command_of_this_distribution(
    monkeypatch: pytest.MonkeyPatch, release: dict[str, str], command: str
) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)
    without_programs(monkeypatch, "xz")
    assert the("xz").hint == command


def test_kvm_is_never_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_KVM", tmp_path / "no-kvm")
    assert the("KVM").state == "warning"
    monkeypatch.setattr(doctor, "_KVM", tmp_path / "kvm")
    monkeypatch.setattr(os, "access", lambda path, _mode: path.name != "kvm")
    assert "no permission for" in the("KVM").found


def test_a_store_that_cannot_be_written_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HARNESS_STORE", str(tmp_path / "file"))
    assert the("store").state == "missing"
    assert "HARNESS_STORE" in the("store").hint


def test_little_room_and_little_memory_are_warnings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(9 << 30, 8 << 30, 1 << 30))
    use_meminfo(monkeypatch, tmp_path, "MemTotal: 9 kB\nMemAvailable:   524288 kB\n")
    assert the("store").state == "warning"
    assert the("memory").found == "0.5 GiB available"
    assert the("memory").state == "warning"


def test_python_packages_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def distribution(name: str) -> str:
        if name == "qemu.qmp":
            raise importlib.metadata.PackageNotFoundError(name)
        return name

    monkeypatch.setattr(
        importlib.metadata,
        "requires",
        lambda _name: ["click>=8.1", "qemu.qmp>=0.0.3", 'ruff>=0.8; extra == "dev"'],
    )
    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    assert the("Python packages").found == "not installed: qemu.qmp"
