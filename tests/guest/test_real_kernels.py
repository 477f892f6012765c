# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetches from the machine's Debian mirror, into the default store: only the first run is slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.core.cache import Store
from harness.core.paths import store_root
from harness.core.progress import TerminalProgress
from harness.guest.userland import find_program, library_closure, userland
from harness.kernels.build.config import parse_config
from harness.kernels.image import read_release
from harness.kernels.modules import find_modules, index_modules
from harness.kernels.resolve import resolve_kernel

pytestmark = pytest.mark.guest

WANTED = ("cxl_acpi", "cxl_pci", "cxl_mem", "cxl_port", "dax_hmem", "kmem", "dax_cxl", "virtio_net")
PROGRAMS = ("busybox", "cxl", "daxctl", "dropbear", "dropbearkey")


@pytest.fixture
def store() -> Store:
    return Store(store_root())


@pytest.mark.parametrize("version", ["6.18", "7.2"])
def test_a_kernel_of_debian(store: Store, version: str) -> None:
    kernel = resolve_kernel(f"debian:{version}", store, TerminalProgress())
    assert kernel.release.startswith(f"{version}.")
    assert read_release(kernel.image) == kernel.release
    assert kernel.config is not None
    assert parse_config(kernel.config.read_text()).enabled("CXL_BUS")
    plan = find_modules(index_modules(kernel.modules), WANTED)
    assert plan.missing == ()
    assert {module.release for module in plan.order} == {kernel.release}
    assert {module.name for module in plan.order} | set(plan.built_in) >= set(WANTED)
    again = resolve_kernel(f"image:{kernel.image.parent}", store, TerminalProgress())
    assert (again.release, again.modules) == (kernel.release, kernel.modules)


def test_the_programs_of_the_guest(store: Store) -> None:
    root = userland(store, TerminalProgress())
    libraries = library_closure(root, PROGRAMS)
    names = {path.name for path in libraries}
    assert {"libc.so.6", "libcxl.so.1", "libdaxctl.so.1", "ld-linux-x86-64.so.2"} <= names
    assert root / "lib64/ld-linux-x86-64.so.2" in libraries
    for path in (*libraries, *(find_program(root, name) for name in PROGRAMS)):
        assert path.resolve().is_relative_to(root)
    assert not [path for path in links(root) if path.readlink().is_absolute()]


def links(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_symlink()]
