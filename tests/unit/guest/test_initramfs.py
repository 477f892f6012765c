# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import io
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from newc import Entry, read_newc

from harness.core.cache import Store
from harness.core.files import write_sums
from harness.core.kernel import Kernel
from harness.core.kernel_modules import KernelModule, MissingModule, ModulePlan
from harness.core.progress import SilentProgress
from harness.guest import initramfs
from harness.guest.cpio import CpioWriter
from harness.guest.initramfs import (
    SharedInitramfs,
    shared_initramfs,
    write_acpi_tables,
    write_run_initramfs,
)
from harness.guest.keys import RunKeys

KERNEL = Kernel("debian:7.2", "7.2.0-test", Path("vmlinuz"), Path("modules"), None, "a1" * 16)
PROGRAMS = ("busybox", "dropbear", "cxl", "daxctl", "kmod", "chrt")


PLAN = ModulePlan(
    order=(
        KernelModule("virtio", Path("virtio.ko.xz")),
        KernelModule("virtio_net", Path("virtio_net.ko.xz"), depends=("virtio",)),
        KernelModule("cxl_port", Path("cxl_port.ko.xz")),
        KernelModule("cxl_mem", Path("cxl_mem.ko.xz"), pre=("cxl_port", "gone")),
    ),
    built_in=("kmem",),
    missing=(MissingModule("cxl_pmem"),),
)
FILES = {"cxl_mem.ko": b"a module", "modules.dep.bin": b"an index"}


def modules_in(folder: Path) -> tuple[ModulePlan, dict[str, bytes]]:
    (folder / "left").write_bytes(b"over")
    return PLAN, FILES


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
    write_sums(root.parent)
    monkeypatch.setattr(initramfs, "library_closure", lambda _root, programs: (library,))

    def run(
        kernel: Kernel = KERNEL,
        wanted: tuple[str, ...] = ("virtio_net", "cxl_mem"),
        modules: Callable[[Path], tuple[ModulePlan, Mapping[str, bytes]]] = modules_in,
    ) -> tuple[SharedInitramfs, list[Entry]]:
        made = shared_initramfs(
            kernel,
            wanted,
            root,
            Store(tmp_path / "store"),
            SilentProgress(),
            modules,
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
    called = {"mount", "ifconfig", "setsid", "poweroff", "sleep", "dropbear"}
    called |= {"cat", "ls", "grep", "cxl", "daxctl", "dmesg", "rm", "sh"}
    assert called <= there


def test_modprobe_is_kmods(make: Make) -> None:
    _, entries = make()
    links = {one.name: one.data for one in entries if stat.S_ISLNK(one.mode)}
    assert links["sbin/modprobe"] == b"/bin/kmod"  # the path that the kernel has, too
    assert [name for name in links if name.endswith("/modprobe")] == ["sbin/modprobe"]


def test_modules_and_their_indexes_are_there(make: Make) -> None:
    made, entries = make()
    root = "lib/modules/7.2.0-test/"
    files = {
        one.name.removeprefix(root): one.data
        for one in entries
        if one.name.startswith(root) and stat.S_ISREG(one.mode)
    }
    assert files == FILES
    stored = {path.name for path in made.archive.parent.iterdir()}
    assert stored >= {"initramfs.cpio", "manifest.json"} and "modules" not in stored


def test_what_modprobe_loads_first_is_remembered(make: Make) -> None:
    made, _ = make()
    assert made.depends["virtio_net"] == ("virtio",)
    assert made.depends["cxl_mem"] == ("cxl_port",)  # a softdep, of which the kernel has one


def test_what_is_there_and_what_is_missing_is_remembered(make: Make) -> None:
    def must_not(_folder: Path) -> NoReturn:
        raise AssertionError("made again")

    first, _ = make()
    again, _ = make(modules=must_not)
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
