# SPDX-License-Identifier: GPL-2.0-or-later
"""Check this machine for the requirements of the harness."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.core.errors import HarnessError
from harness.core.paths import store_root
from harness.core.stale_qemu import find_orphans
from harness.machine.qemu_binary import (
    MINIMUM,
    REQUIRED_FEATURES,
    QemuBinary,
    examine,
    find_qemu,
    for_this_distribution,
    install_qemu_hint,
)

_GIB = 1 << 30
_STORE_BYTES = 2 * _GIB
_MEMORY_BYTES = 1 * _GIB

_DISTRIBUTION = "cxl-ownership-harness"
_KVM = Path("/dev/kvm")
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        state: "warning": guests run, but slower or with a feature missing; "missing": they do not.
        hint: empty when the state is "ok".
    """

    name: str
    state: Literal["ok", "warning", "missing"]
    found: str
    hint: str = ""


@dataclass(frozen=True)
class _Program:
    """A program that the harness starts, its purpose, and its package."""

    name: str
    purpose: str
    state_without: Literal["warning", "missing"]
    package: str
    debian_package: str


_SETPRIV = _Program("setpriv", "starts every other program", "missing", "util-linux", "util-linux")
_PROGRAMS = (
    _Program("apt-get", "fetches Debian kernels and the guest's tools", "missing", "apt", "apt"),
    _Program("dpkg-deb", "unpacks Debian kernels and the guest's tools", "missing", "dpkg", "dpkg"),
    _Program("xz", "unpacks kernel modules", "missing", "xz", "xz-utils"),
    _Program("git", "builds kernels", "warning", "git", "git"),
    _Program("make", "builds kernels", "warning", "make", "make"),
    _Program("gcc", "builds kernels", "warning", "gcc", "gcc"),
    _Program("flex", "builds kernels", "warning", "flex", "flex"),
    _Program("bison", "builds kernels", "warning", "bison", "bison"),
    _Program("bc", "builds kernels", "warning", "bc", "bc"),
    _Program("lz4", "builds kernels", "warning", "lz4", "lz4"),
    _Program("ccache", "speeds up builds", "warning", "ccache", "ccache"),
    _Program("bwrap", "confines kernel builds", "warning", "bubblewrap", "bubblewrap"),
)


def diagnose() -> tuple[Check, ...]:
    """Check everything that the harness needs from this machine.

    Changes nothing, except that QEMU's answers are cached in the store.
    """
    return (
        *_check_qemu(),
        _check_program(_SETPRIV),
        *(_check_program(program) for program in _PROGRAMS),
        _check_kvm(),
        _check_memory(),
        _check_store(),
        _check_python_packages(),
        *check_orphans(),
    )


def check_orphans() -> Iterator[Check]:
    """Yield a warning for each QEMU process that outlived its harness."""
    for orphan in find_orphans():
        yield Check(
            "stale QEMU",
            "warning",
            f"process {orphan.pid} outlived its harness; it writes to {orphan.log}",
            f"kill {orphan.pid}, and report how its harness ended",
        )


def _check_qemu() -> Iterator[Check]:
    if _check_program(_SETPRIV).state != "ok":
        yield Check("QEMU", "missing", "not checked: setpriv is missing", "install setpriv first")
        return
    try:
        path, _ = find_qemu()
        qemu = examine(path)
    except HarnessError as error:
        text = f"{error.where}: {error.message}" if error.where else error.message
        yield Check("QEMU", "missing", text, error.hint)
        return
    except OSError as error:
        yield Check("QEMU", "missing", f"cannot be run: {error}", install_qemu_hint())
        return
    found = f"{qemu.version_text} ({qemu.path})"
    if qemu.too_old():
        required = f"{MINIMUM[0]}.{MINIMUM[1]} or later is required"
        yield Check("QEMU", "missing", f"{found}: {required}", install_qemu_hint())
    else:
        yield Check("QEMU", "ok", found)
    yield _check_features(qemu, "QEMU's CXL devices", ("cxl-", "pxb-cxl"))
    yield _check_features(qemu, "QEMU's machine options", ("q35.",))
    yield _check_features(qemu, "QEMU's user networking", ("netdev.",))
    if qemu.seccomp:
        yield Check("QEMU's sandbox", "ok", "seccomp")
    else:
        yield Check(
            "QEMU's sandbox",
            "warning",
            "QEMU does not start with -sandbox on, so it runs without",
            "use a QEMU that was built with seccomp, on a host that permits it",
        )


def _check_features(qemu: QemuBinary, name: str, prefixes: tuple[str, ...]) -> Check:
    required = tuple(feature for feature in REQUIRED_FEATURES if feature.startswith(prefixes))
    missing = tuple(feature for feature in required if not qemu.has(feature))
    if missing:
        return Check(name, "missing", f"without {', '.join(missing)}", install_qemu_hint())
    return Check(name, "ok", ", ".join(required))


def _check_program(program: _Program) -> Check:
    path = shutil.which(program.name)
    if path is not None:
        return Check(program.name, "ok", path)
    hint = for_this_distribution(
        {
            "debian": f"use ci/setup, or: apt-get install {program.debian_package}",
            "ubuntu": f"apt-get install {program.debian_package}",
            "fedora": f"dnf install {program.package}",
            "arch": f"pacman -S {program.package}",
            "suse": f"zypper install {program.package}",
        },
        f"install {program.package}",
    )
    return Check(program.name, program.state_without, f"not installed ({program.purpose})", hint)


def _check_kvm() -> Check:
    if not _KVM.exists():
        return Check(
            "KVM",
            "warning",
            f"no {_KVM}: guests run under TCG, which is slower",
            "optional: enable virtualization in the firmware or the hypervisor",
        )
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return Check(
            "KVM",
            "warning",
            f"no permission for {_KVM}: guests run under TCG, which is slower",
            'run usermod --append --groups kvm "$USER" as root, then log in again',
        )
    return Check("KVM", "ok", f"{_KVM} (the first run tests whether guests boot with it)")


def _check_memory() -> Check:
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB$", _MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        match = None
    if match is None:
        return Check("memory", "warning", f"no MemAvailable in {_MEMINFO}", "a guest needs 1 GiB")
    available = int(match[1]) << 10
    if available < _MEMORY_BYTES:
        return Check(
            "memory",
            "warning",
            f"{_in_gib(available)} available",
            f"free some memory: a guest needs about {_in_gib(_MEMORY_BYTES)}",
        )
    return Check("memory", "ok", f"{_in_gib(available)} available")


def _check_store() -> Check:
    store = store_root()
    elsewhere = "set HARNESS_STORE to a folder"
    # Below an unreadable parent, paths seem not to exist.
    existing = next(path for path in (store, *store.parents) if os.access(path, os.F_OK))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check("store", "missing", f"{store} is not writable", f"{elsewhere} you can write")
    free = shutil.disk_usage(existing).free
    if free < _STORE_BYTES:
        return Check(
            "store",
            "warning",
            f"{store}, {_in_gib(free)} free",
            f"{elsewhere} with {_in_gib(_STORE_BYTES)} free, or free some space",
        )
    return Check("store", "ok", f"{store}, {_in_gib(free)} free")


def _check_python_packages() -> Check:
    name = "Python packages"
    hint = "run the harness with ci/setup, or: python3 -m pip install --editable '.[dev]'"
    try:
        requirements = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "missing", f"{_DISTRIBUTION} is not installed", hint)
    missing = []
    count = 0
    for requirement in requirements:
        package = re.match(r"[A-Za-z0-9._-]+", requirement)
        if package is None or "extra ==" in requirement:
            continue
        count += 1
        try:
            importlib.metadata.distribution(package[0])
        except importlib.metadata.PackageNotFoundError:
            missing.append(package[0])
    if missing:
        return Check(name, "missing", f"not installed: {', '.join(missing)}", hint)
    return Check(name, "ok", f"all {count} are installed")


def _in_gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
