# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's modules, as its own modprobe resolves them; run on the host, without a guest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.core.cache import Store
from harness.core.deadline import Deadline
from harness.core.paths import store_root
from harness.core.process import run
from harness.core.progress import TerminalProgress
from harness.guest.initramfs import BOOT_MODULES, SCENARIO_MODULES
from harness.guest.userland import userland
from harness.kernels.build.depmod import guest_modules, module_indexes
from harness.kernels.modules import index_modules, open_module
from harness.kernels.resolve import resolve_kernel

pytestmark = pytest.mark.guest


class Tree:
    """A `/lib/modules/RELEASE`, and what kmod's modprobe would do with it."""

    def __init__(self, files: Mapping[str, bytes], programs: Path, root: Path) -> None:
        self._root, self._programs = root, programs
        self._folder = root / "lib/modules/1.0"
        self._folder.mkdir(parents=True)
        for name, content in files.items():
            (self._folder / name).write_bytes(content)

    def loads(self, name: str, *options: str) -> list[str]:
        """The modules that modprobe would load for a name or alias, in order."""
        done = run(
            [
                self._programs / "lib64/ld-linux-x86-64.so.2",
                "--library-path",
                self._programs / "usr/lib/x86_64-linux-gnu",
                self._programs / "usr/sbin/modprobe",
                *("-d", str(self._root), "-S", "1.0", "--show-depends"),
                *(options or ("-C", "/dev/null")),
                name,
            ],
            deadline=Deadline(60, "modprobe to end"),
        )
        words = [line.split()[:2] for line in done.stdout.splitlines()]
        return [f"{verb} {Path(what).stem}" for verb, what in words]


@pytest.fixture
def store() -> Store:
    return Store(store_root())


@pytest.fixture
def programs(store: Store) -> Path:
    return userland(store, TerminalProgress())


@pytest.mark.parametrize("version", ["6.12", "6.18", "7.2"])
def test_the_guest_has_all_that_modprobe_would_load_for_a_driver(
    store: Store, programs: Path, tmp_path: Path, version: str
) -> None:
    kernel = resolve_kernel(f"debian:{version}", store, TerminalProgress())
    assert kernel.modules is not None
    wanted = (*BOOT_MODULES, *SCENARIO_MODULES)
    (tmp_path / "work").mkdir()
    plan, files = guest_modules(kernel.modules, wanted, programs, tmp_path / "work")
    guest = Tree(files, programs, tmp_path / "guest")

    whole: dict[str, bytes] = {}
    for name, path in index_modules(kernel.modules).files.items():
        with open_module(path) as module:
            whole[f"{name}.ko"] = module.read()
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        whole[name] = (kernel.modules / name).read_bytes()
    (tmp_path / "all").mkdir()
    whole |= module_indexes(whole, programs, tmp_path / "all")
    machine = Tree(whole, programs, tmp_path / "machine")

    names = [*(module.name for module in plan.order), *plan.built_in]
    assert {name: guest.loads(name) for name in names} == {
        name: machine.loads(name) for name in names
    }
    before = plan.loaded_before()
    for name in before:
        loaded = [line.split()[1] for line in guest.loads(name) if line.startswith("insmod")]
        assert set(before[name]) & set(before) <= set(loaded[:-1]), name
    for alias in ("acpi:ACPI0017:", "pci:v00008086d00000D93sv0sd0bc05sc02i10", "platform:hmem.0"):
        assert guest.loads(alias) == machine.loads(alias) != [], alias
    if version in ("6.12", "6.18"):
        assert guest.loads("cxl_mem")[0] == "builtin cxl_port"
        assert "insmod cxl_acpi" in guest.loads("dax_hmem")


def test_a_deny_list_stops_who_asks_by_alias_and_nobody_else(
    store: Store, programs: Path, tmp_path: Path
) -> None:
    kernel = resolve_kernel("debian:6.12", store, TerminalProgress())
    (tmp_path / "work").mkdir()
    _, files = guest_modules(kernel.modules, ("dax_hmem",), programs, tmp_path / "work")
    guest = Tree(files, programs, tmp_path / "guest")
    (tmp_path / "denied.conf").write_text("blacklist cxl_acpi\n")
    denied = ("-C", str(tmp_path / "denied.conf"))
    assert guest.loads("acpi:ACPI0017:", *denied) == []
    assert "insmod cxl_acpi" in guest.loads("cxl_acpi", *denied)
    assert "insmod cxl_acpi" in guest.loads("platform:hmem.0", "-b", *denied)  # a softdep
