# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import io
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from newc import Entry, read_newc

from harness.guest import initramfs
from harness.guest.cpio import CpioWriter
from harness.guest.initramfs import (
    SharedInitramfs,
    shared_initramfs,
    write_acpi_tables,
    write_run_initramfs,
)
from harness.guest.keys import RunKeys
from harness.model.kernel import Kernel
from harness.model.kernel_modules import KernelModule, MissingModule, ModulePlan
from harness.progress import SilentProgress
from harness.store import Store

KERNEL = Kernel("debian:7.2", "7.2.0-test", Path("vmlinuz"), Path("modules"), None, "a1" * 16)
PROGRAMS = ("busybox", "dropbear", "cxl", "daxctl")


def module(name: str, *depends: str, aliases: tuple[str, ...] = ()) -> KernelModule:
    return KernelModule(name, Path(f"{name}.ko.xz"), depends, aliases=aliases)


PLAN = ModulePlan(
    order=(
        module("virtio"),
        module("virtio_net", "virtio", aliases=("virtio:d00000001v*",)),
        module("cxl_core"),
        module("cxl_port", "cxl_core"),
        module("dax_hmem"),
        module("dax_cxl", "cxl_port", "dax_hmem", aliases=("cxl:t8*", "cxl:t9*")),
    ),
    built_in=("kmem",),
    missing=(MissingModule("cxl_pmem"),),
)


@pytest.fixture
def make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[SharedInitramfs, list[Entry]]]:
    """Make the shared part; returns it with the entries of its archive."""
    root = tmp_path / "0123abcd" / "root"
    (root / "usr" / "bin").mkdir(parents=True)
    (root / "lib").mkdir()
    for name in PROGRAMS:
        (root / "usr" / "bin" / name).write_bytes(name.encode())
    library = root / "lib" / "libcxl.so.1"
    library.write_bytes(b"library")
    monkeypatch.setattr(initramfs, "library_closure", lambda _root, programs: (library,))

    def run(
        kernel: Kernel = KERNEL,
        wanted: tuple[str, ...] = ("virtio_net", "dax_cxl"),
        plan: Callable[[], ModulePlan] = lambda: PLAN,
    ) -> tuple[SharedInitramfs, list[Entry]]:
        made = shared_initramfs(
            kernel,
            wanted,
            root,
            Store(tmp_path / "store"),
            SilentProgress(),
            plan,
            lambda path: f"content of {path}".encode(),
        )
        (entries,) = read_newc(made.archive.read_bytes())
        return made, entries

    return run


Make = Callable[..., tuple[SharedInitramfs, list[Entry]]]


def test_the_shared_part_has_programs_libraries_and_scripts(make: Make) -> None:
    _, entries = make()
    files = {one.name: one for one in entries}
    assert len(files) == len(entries)
    for name in PROGRAMS:
        assert files[f"bin/{name}"].data == name.encode()
        assert stat.S_IMODE(files[f"bin/{name}"].mode) == 0o755
    assert files["lib/libcxl.so.1"].data == b"library"
    for name, script in (("init", "init.sh"), ("bin/observe", "observe.sh")):
        assert files[name].data == (Path(initramfs.__file__).parent / script).read_bytes()
        assert stat.S_IMODE(files[name].mode) == 0o755
    assert files["dev/console"].device == (5, 1)
    assert {"proc", "sys", "tmp"} <= set(files)


def test_every_program_that_the_scripts_call_is_there(make: Make) -> None:
    _, entries = make()
    there = {one.name.removeprefix("bin/") for one in entries}
    called = {"mount", "modprobe", "ifconfig", "setsid", "poweroff", "sleep", "dropbear"}
    called |= {"cat", "ls", "grep", "cxl", "daxctl", "dmesg", "rm", "sh"}
    assert called <= there
    assert "sbin/modprobe" in {one.name for one in entries}  # what the kernel itself calls


def test_modules_are_there_with_what_they_need_nearest_first(make: Make) -> None:
    _, entries = make()
    files = {one.name: one.data.decode() for one in entries}
    root = "lib/modules/7.2.0-test"
    assert files[f"{root}/dax_cxl.ko"] == "content of dax_cxl.ko.xz"
    assert files[f"{root}/modules.dep"].splitlines() == [
        "virtio.ko:",
        "virtio_net.ko: virtio.ko",
        "cxl_core.ko:",
        "cxl_port.ko: cxl_core.ko",
        "dax_hmem.ko:",
        "dax_cxl.ko: cxl_port.ko dax_hmem.ko cxl_core.ko",
    ]
    assert files[f"{root}/modules.alias"].splitlines() == [
        "alias virtio:d00000001v* virtio_net",
        "alias cxl:t8* dax_cxl",
        "alias cxl:t9* dax_cxl",
    ]


def test_a_module_that_two_need_comes_behind_both(make: Make) -> None:
    diamond = ModulePlan(
        (module("d"), module("c", "d"), module("b", "c"), module("a", "d", "b")), (), ()
    )
    _, entries = make(plan=lambda: diamond)
    dep = next(one.data for one in entries if one.name.endswith("modules.dep"))
    assert dep.decode().splitlines()[-1] == "a.ko: b.ko c.ko d.ko"


def test_what_is_there_and_what_is_missing_is_remembered(make: Make) -> None:
    def must_not() -> ModulePlan:
        raise AssertionError("made again")

    first, _ = make()
    again, _ = make(plan=must_not)
    assert first == again
    assert first.modules == tuple(one.name for one in PLAN.order)
    assert set(first.missing) == {"cxl_pmem"}
    assert "neither a module of this kernel nor built in" in first.missing["cxl_pmem"]


def test_another_kernel_or_other_modules_have_a_part_of_their_own(make: Make) -> None:
    archives = {
        make()[0].archive,
        make(kernel=replace(KERNEL, identity="b2" * 16))[0].archive,
        make(wanted=("virtio_net",))[0].archive,
    }
    assert len(archives) == 3


def test_acpi_tables_come_in_the_first_archive_where_linux_looks_for_them() -> None:
    output = io.BytesIO()
    write_acpi_tables(output, {"SRAT": b"srat", "CEDT": b"cedt"})
    (entries,) = read_newc(output.getvalue())
    assert [(one.name, one.data) for one in entries[3:]] == [
        ("kernel/firmware/acpi/cedt.aml", b"cedt"),
        ("kernel/firmware/acpi/srat.aml", b"srat"),
    ]


def test_without_tables_nothing_is_written() -> None:
    output = io.BytesIO()
    write_acpi_tables(output, {})
    assert output.getvalue() == b""


@pytest.mark.parametrize("tables", [{}, {"SRAT": b"srat"}])
def test_a_runs_initramfs_is_tables_then_the_shared_part_then_the_runs_own(
    tables: dict[str, bytes], tmp_path: Path
) -> None:
    shared = tmp_path / "initramfs.cpio"
    with shared.open("wb") as output:
        archive = CpioWriter(output)
        archive.add_file("bin/busybox", b"program", 0o755)
        archive.close()
    keys = RunKeys()
    whole = io.BytesIO()
    made = SharedInitramfs(shared, {"virtio_net": (), "kmem": ()}, {})
    write_run_initramfs(whole, made, keys, "secret", tables)
    *before, common, own = read_newc(whole.getvalue())
    assert [entries[-1].name for entries in before] == ["kernel/firmware/acpi/srat.aml"][
        : len(tables)
    ]
    assert common[-1].name == "bin/busybox"
    files = {one.name: one for one in own}
    assert files["etc/harness"].data == b"token=secret\nboot_modules='virtio_net'\n"
    assert files["etc/dropbear_host_key"].data == keys.host_key_file()
    assert files["root/.ssh/authorized_keys"].data == keys.authorized_keys()
    # dropbear refuses keys that others could have written.
    assert stat.S_IMODE(files["root"].mode) == 0o700
    assert stat.S_IMODE(files["root/.ssh"].mode) == 0o700
    assert stat.S_IMODE(files["root/.ssh/authorized_keys"].mode) == 0o600
    assert stat.S_IMODE(files["etc/dropbear_host_key"].mode) == 0o600
