# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import gzip
import lzma
import struct
from pathlib import Path

import pytest
import zstandard

from harness.core.errors import UsageError
from harness.core.kernel_modules import (
    KernelModule,
    MissingModule,
    ModulePlan,
    parse_modinfo,
    plan_modules,
)
from harness.kernels.modules import (
    find_modules,
    index_modules,
    module_files,
    read_module,
    read_vermagic,
)

VERMAGIC = "7.2.1-x SMP preempt mod_unload"


def elf(section: bytes, name: str = ".modinfo") -> bytes:
    """A relocatable ELF file with one section besides its table of names."""
    names = b"\0" + name.encode() + b"\0.shstrtab\0"
    at = 64 + len(section) + len(names)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 1, 62, 1, 0, 0, at, 0, 64, 0, 0, 64, 3, 2,
    )  # fmt: skip

    def entry(title: int, kind: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", title, kind, 0, 0, offset, size, 0, 0, 1, 0)

    table = entry(0, 0, 0, 0) + entry(1, 1, 64, len(section))
    table += entry(2 + len(name), 3, 64 + len(section), len(names))
    return header + section + names + table


def modinfo(**fields: str) -> bytes:
    return b"".join(f"{key}={value}".encode() + b"\0" for key, value in fields.items())


def put(path: Path, **fields: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = elf(modinfo(**fields, vermagic=VERMAGIC))
    if path.suffix == ".xz":
        data = lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32)
    elif path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        stream = zstandard.ZstdCompressor(write_content_size=False).compressobj()
        data = stream.compress(data) + stream.flush()
    path.write_bytes(data)
    return path


def test_the_description_of_a_module(tmp_path: Path) -> None:
    for suffix in ("", ".xz", ".zst", ".gz"):
        path = put(
            tmp_path / f"dax-cxl.ko{suffix}",
            name="dax_cxl",
            alias="cxl:t9*",
            depends="dax-hmem,cxl_core",
            softdep="pre: cxl-acpi cxl_port post: kmem",
        )
        assert read_module(path) == KernelModule(
            name="dax_cxl",
            path=path,
            depends=("dax_hmem", "cxl_core"),
            pre=("cxl_acpi", "cxl_port"),
            post=("kmem",),
            vermagic=VERMAGIC,
        )
        assert read_module(path).release == "7.2.1-x"
        assert read_vermagic(path) == VERMAGIC


def test_a_module_without_a_name_is_named_by_its_file() -> None:
    module = parse_modinfo(b"depends=\0\0junk\0", Path("a-b.ko.xz"))
    assert module == KernelModule("a_b", Path("a-b.ko.xz"))


def test_files_that_are_not_modules(tmp_path: Path) -> None:
    for name, content, message in (
        ("a.ko", b"", "not a kernel module"),
        ("a.ko", b"hello" * 100, "not a kernel module"),
        ("a.ko", elf(b"", ".text"), "no .modinfo"),
        ("a.ko.xz", b"hello", "decompressed"),
        ("a.ko.zst", b"hello", "decompressed"),
        ("a.ko.gz", b"hello", "decompressed"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UsageError, match=message):
            read_module(path)
        with pytest.raises(UsageError):
            read_vermagic(path)


def test_a_module_whose_name_is_a_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"its name is '\.\./a'"):
        read_module(put(tmp_path / "a.ko", name="../a"))


def test_softdeps_are_loaded_before_where_the_kernel_has_them() -> None:
    found = plan(
        ["mem"],
        mem=module("mem", "core", pre=("port", "gone")),
        port=module("port", "core", pre=("mem",)),
        core=module("core"),
    )
    assert found.loaded_before() == {
        "core": (),
        "port": ("core",),
        "mem": ("core", "port"),
    }


def test_an_installed_folder(tmp_path: Path) -> None:
    put(tmp_path / "kernel/drivers/cxl/cxl-mem.ko.xz")
    put(tmp_path / "kernel/drivers/dax/kmem.ko.xz")
    newer = put(tmp_path / "updates/kmem.ko")
    (tmp_path / "modules.builtin").write_text("kernel/drivers/cxl/core/cxl-core.ko\n")
    index = index_modules(tmp_path)
    assert set(index.files) == {"cxl_mem", "kmem"}
    assert index.files["kmem"] == newer
    assert index.built_in == {"cxl_core"}


def test_a_build_tree(tmp_path: Path) -> None:
    (tmp_path / "include/config").mkdir(parents=True)
    kmem = put(tmp_path / "drivers/dax/kmem.ko")
    old = put(tmp_path / "drivers/dax/device_dax.ko")
    lock = put(tmp_path / "kernel/locking/locktorture.ko")
    put(tmp_path / "drivers/dax/left_over.ko")
    (tmp_path / "modules.order").write_text(
        "drivers/dax/kmem.o\nkernel/drivers/dax/device_dax.ko\nkernel/locking/locktorture.o\n"
        "drivers/never/built.o\n"
    )
    assert module_files(tmp_path) == (kmem, old, lock)
    assert index_modules(tmp_path).built_in == frozenset()


def test_a_kernel_without_modules() -> None:
    assert index_modules(None).files == {}
    assert find_modules(index_modules(None), ["kmem"]).missing == (MissingModule("kmem"),)


def test_only_requested_modules_are_read(tmp_path: Path) -> None:
    put(tmp_path / "kernel/a.ko", depends="b")
    put(tmp_path / "kernel/b.ko")
    (tmp_path / "kernel/c.ko").write_bytes(b"broken")
    plan = find_modules(index_modules(tmp_path), ["a"])
    assert [module.name for module in plan.order] == ["b", "a"]


def plan(
    requested: list[str], built_in: tuple[str, ...] = (), **modules: KernelModule
) -> ModulePlan:
    return plan_modules(requested, read=modules.get, available=modules, built_in=built_in)


def module(
    name: str, *depends: str, pre: tuple[str, ...] = (), post: tuple[str, ...] = ()
) -> KernelModule:
    return KernelModule(name, Path(f"{name}.ko"), depends, pre, post)


def names(plan: ModulePlan) -> list[str]:
    return [module.name for module in plan.order]


def test_dependencies_come_first() -> None:
    found = plan(
        ["top", "bottom"],
        top=module("top", "middle", "other"),
        middle=module("middle", "bottom"),
        other=module("other", "bottom"),
        bottom=module("bottom"),
        unused=module("unused"),
    )
    assert names(found) == ["bottom", "middle", "other", "top"]
    assert (found.built_in, found.missing) == ((), ())


def test_softdeps_count_where_they_exist() -> None:
    found = plan(
        ["a"],
        built_in=("port",),
        a=module("a", pre=("before", "nowhere", "port"), post=("after",)),
        before=module("before"),
        after=module("after"),
    )
    assert names(found) == ["before", "a", "after"]
    assert (found.built_in, found.missing) == (("port",), ())


def test_softdeps_in_a_circle_end() -> None:
    found = plan(["a"], a=module("a", pre=("b",)), b=module("b", pre=("a",)))
    assert names(found) == ["b", "a"]


def test_built_in_names_need_nothing() -> None:
    found = plan(["cxl-port", "a"], built_in=("cxl_port", "core"), a=module("a", "core"))
    assert names(found) == ["a"]
    assert found.built_in == ("cxl_port", "core")


def test_missing_names_are_values() -> None:
    found = plan(
        ["dax-hmm", "a"], built_in=("dax_hmem",), a=module("a", "gone"), dax_cxl=module("dax_cxl")
    )
    assert names(found) == ["a"]
    first, second = found.missing
    assert (first.name, first.close, first.needed_by) == ("dax-hmm", ("dax_hmem",), None)
    assert str(first) == (
        "dax-hmm is neither a module of this kernel nor built in; close names: dax_hmem"
    )
    assert (second.name, second.needed_by) == ("gone", "a")
    assert str(second).endswith(", and a depends on it")
