# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_sources import (
    FAKE_KERNEL,
    HMEM,
    Builder,
    builder,
    copy_fake,
    edit,
    git,
    git_fake,
    stub_tools,
)

from harness.core.errors import UnbuildableError, UsageError
from harness.core.kernel import Kernel
from harness.core.paths import PROJECT
from harness.kernels.build.config import plan_config
from harness.kernels.build.from_source import kernel_key
from harness.kernels.build.make import failure, first_error
from harness.kernels.build.series import Patch, Series
from harness.kernels.build.toolchain import FoundToolchain, find_toolchain, jobs
from harness.kernels.build.tree import SourceState
from harness.kernels.image import read_release
from harness.kernels.modules import find_modules, index_modules
from harness.scenario.kernel_request import Toolchain

__all__ = ["builder"]


def manifest(kernel: Kernel) -> dict[str, object]:
    content: dict[str, object] = json.loads((kernel.image.parent / "manifest.json").read_text())
    return content


def test_a_kernel_of_a_git_tree(builder: Builder, tmp_path: Path) -> None:
    tree = git_fake(tmp_path / "linux")
    before = git(tree, "status", "--porcelain=v2", "--branch")
    repository = sorted(path.name for path in (tree / ".git").iterdir())
    kernel = builder(f"build:{tree}")
    assert kernel.release == "9.1.0" == read_release(kernel.image)
    assert kernel.modules is not None
    index = index_modules(kernel.modules)
    assert sorted(index.files) == ["hmem", "kmem", "region"]
    assert index.built_in == {"main"}
    assert find_modules(index, ["main"]).built_in == ("main",)
    assert kernel.config is not None
    assert "CONFIG_CXL_REGION=y" in kernel.config.read_text()
    assert {path.name for path in kernel.image.parent.iterdir()} == {
        *("vmlinuz", "config", "System.map", "build.log", "vmlinux", "modules", "manifest.json"),
        *("scripts", "SHA256SUMS"),
    }
    assert kernel.symbols == kernel.image.parent / "vmlinux"
    assert kernel.scripts == kernel.image.parent / "scripts"
    script = FAKE_KERNEL / "scripts" / "decode_stacktrace.sh"
    assert (kernel.scripts / script.name).read_bytes() == script.read_bytes()
    assert manifest(kernel)["source"] == {
        "origin": str(tree),
        "tree": git(tree, "rev-parse", "HEAD^{tree}"),
        "commit": git(tree, "rev-parse", "HEAD"),
        "dirty": False,
    }
    assert git(tree, "status", "--porcelain=v2", "--branch") == before
    assert sorted(path.name for path in (tree / ".git").iterdir()) == repository


def test_nothing_changed_builds_nothing(builder: Builder, tmp_path: Path) -> None:
    tree = git_fake(tmp_path / "linux")
    first = builder(f"build:{tree}")
    builder.progress.notes.clear()
    assert builder(f"build:{tree}") == first
    assert builder(f"build:{tree}@main").identity == first.identity
    assert builder.progress.notes == []


def test_a_change_compiles_one_file(builder: Builder, tmp_path: Path) -> None:
    tree = git_fake(tmp_path / "linux")
    first = builder(f"build:{tree}")
    edit(tree, "return 2", "return 22")
    second = builder(f"build:{tree}")
    assert second.identity != first.identity
    assert [line for line in builder.log().splitlines() if line.startswith("  CC")] == [
        "  CC      drivers/dax/hmem/hmem.o"
    ]
    assert manifest(second)["source"] == {
        "origin": str(tree),
        "tree": git(builder_git(builder), "rev-parse", "HEAD^{tree}"),
        "commit": git(tree, "rev-parse", "HEAD"),
        "dirty": True,
    }
    edit(tree, "return 22", "return 2")
    assert builder(f"build:{tree}") == first


def builder_git(builder: Builder) -> Path:
    (folder,) = builder.store.root.glob("sources/*/git")
    return folder


def test_another_configuration_has_its_own_objects(builder: Builder, tmp_path: Path) -> None:
    tree = copy_fake(tmp_path / "linux")
    base = builder(f"build:{tree}")
    other = builder(f"build:{tree}", "no_cxl_region")
    assert base.identity != other.identity
    assert other.config is not None
    assert "# CONFIG_CXL_REGION is not set" in other.config.read_text()
    assert len(list((builder.store.root / "outputs").iterdir())) == 2
    # It started with the objects of the first.
    assert "  CC" not in builder.log()
    assert base.config is not None
    assert "CONFIG_CXL_REGION=y" in base.config.read_text()


def test_an_option_that_the_source_cannot_give(builder: Builder, tmp_path: Path) -> None:
    tree = copy_fake(tmp_path / "linux")
    with pytest.raises(UnbuildableError) as caught:
        builder(f"build:{tree}", "hmem_builtin")
    assert "DEV_DAX_HMEM: requested y (hmem_builtin.config:1), got m" in caught.value.message
    assert "depends on CXL_ACPI || !CXL_ACPI (here CXL_ACPI=m)" in caught.value.message
    assert "NO_SUCH_THING" not in caught.value.message  # the fake Kconfig accepts any option
    assert builder.entries() == []


def test_a_compile_error(builder: Builder, tmp_path: Path) -> None:
    tree = git_fake(tmp_path / "linux")
    edit(tree, "/* Two. */", "#error this file is broken")
    with pytest.raises(UnbuildableError) as caught:
        builder(f"build:{tree}")
    lines = caught.value.message.splitlines()
    assert lines[0] == "the kernel does not build:"
    assert lines[1] == f"  {HMEM}: In function 'f':"
    assert lines[2] == f"  {HMEM}:8:2: error: #error this file is broken"
    assert "make" not in caught.value.message
    assert caught.value.where is not None and "does not" not in caught.value.where
    assert "#error" in Path(caught.value.where).read_text()
    assert builder.entries() == []
    edit(tree, "#error this file is broken", "/* Two. */")
    assert builder(f"build:{tree}").release == "9.1.0"
    assert "interrupted" not in " ".join(builder.progress.notes)


def test_a_compile_error_stays_one(builder: Builder, tmp_path: Path) -> None:
    tree = git_fake(tmp_path / "linux")
    edit(tree, "/* Two. */", "#error this file is broken")
    git(tree, "commit", "-q", "-a", "-m", "broken")
    for _ in range(2):
        with pytest.raises(UnbuildableError, match="#error this file is broken"):
            builder(f"build:{tree}@main")


def test_a_make_that_is_killed(builder: Builder, tmp_path: Path) -> None:
    """Its objects can be incomplete and newer than their source, also without a change."""
    tree = git_fake(tmp_path / "linux")
    builder(f"build:{tree}")
    edit(tree, "/* Two. */", "/* fake: killed make */")
    for _ in range(2):
        with pytest.raises(UnbuildableError, match="make was killed, by signal 9") as caught:
            builder(f"build:{tree}")
    assert "memory" in caught.value.hint
    assert "interrupted" in " ".join(builder.progress.notes)
    assert len(builder.entries()) == 1


def test_a_full_disk(builder: Builder, tmp_path: Path) -> None:
    tree = copy_fake(tmp_path / "linux")
    edit(tree, "/* Two. */", "/* fake: full disk */")
    with pytest.raises(UsageError, match="the store is full: No space left on device"):
        builder(f"build:{tree}")
    assert builder.entries() == []
    edit(tree, "/* fake: full disk */", "/* Two. */")
    assert builder(f"build:{tree}").release == "9.1.0"


def test_a_missing_header(builder: Builder, tmp_path: Path) -> None:
    tree = copy_fake(tmp_path / "linux")
    edit(tree, "/* Two. */", "/* fake: lacks gelf.h */")
    with pytest.raises(UsageError, match="not installed") as caught:
        builder(f"build:{tree}")
    assert "libelf-dev" in caught.value.hint


def test_a_missing_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = stub_tools(tmp_path / "bin")
    (tools / "gcc").unlink()
    monkeypatch.setenv("PATH", str(tools))
    kinds: tuple[Toolchain, ...] = ("gcc", "clang")
    for kind in kinds:
        with pytest.raises(UsageError, match=f"cannot build a kernel without .*{kind}") as caught:
            find_toolchain(kind)
        assert "apt-get install make " in caught.value.hint
        assert kind in caught.value.hint.split()


def test_a_compiler_with_a_version_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = stub_tools(tmp_path / "bin")
    for name in ("make", "clang-9", "clang-19", "clang-tidy-20", "ld.lld-19", "llvm-ar-19"):
        shutil.copy(tools / "gcc", tools / name)
    shutil.copy(tools / "gcc", tools / "llvm-nm-19")
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(
        "harness.kernels.build.toolchain._first_line", lambda program: f"{program} 19.1"
    )
    found = find_toolchain("clang")
    assert found.version == "clang-19 19.1\nld.lld-19 19.1"
    assert found.make_words == ("LLVM=-19", "CC=clang-19", "HOSTCC=clang-19")
    # A distribution's own clang counts where it is the newest.
    shutil.copy(tools / "gcc", tools / "clang")
    for own, suffix in ((14, "-19"), (21, "")):
        monkeypatch.setattr(
            "harness.kernels.build.toolchain._first_line",
            lambda program, own=own: f"Debian {program} version {own}.0.6",
        )
        for name in ("ld.lld", "llvm-ar", "llvm-nm"):
            shutil.copy(tools / "gcc", tools / name)
        assert find_toolchain("clang").suffix == suffix
    shutil.copy(tools / "gcc", tools / "ccache")
    assert find_toolchain("gcc").make_words == ("CC=ccache gcc", "HOSTCC=ccache gcc")


def test_jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A job for each core, but 512 MiB of available memory for each, and at least one."""
    file = tmp_path / "meminfo"
    monkeypatch.setattr("harness.kernels.build.toolchain._MEMINFO", file)
    for cores, megabytes, number in (
        (1, 64_000, 1), (8, 64_000, 8), (8, 4096, 8), (8, 4095, 7), (8, 1100, 2), (8, 300, 1),
    ):  # fmt: skip
        text = f"MemFree:  1024 kB\nMemAvailable:  {megabytes << 10} kB\nCached:  7 kB\n"
        file.write_text(text)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _process, n=cores: set(range(n)))
        assert jobs() == number, (cores, megabytes)


RESOLVE = """
import sys
from pathlib import Path
from harness.kernels.build import from_source
from harness.kernels.resolve import resolve_kernel
from harness.core.progress import TerminalProgress
from harness.core.cache import Store

root, spec = Path(sys.argv[1]), sys.argv[2]
plan = from_source.plan_config
from_source.plan_config = lambda names: plan(names, root / "configs")
print(resolve_kernel(spec, Store(root / "store"), TerminalProgress()).identity)
"""


def start(root: Path, spec: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RESOLVE, str(root), spec],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_half(builder: Builder) -> None:
    """Until the compiler is in the middle of hmem.c."""
    end = time.monotonic() + 20
    while not any(
        path.read_text() == "half" for path in builder.store.root.glob("outputs/*/**/hmem.o")
    ):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_build(builder: Builder, tmp_path: Path, number: int) -> None:
    tree = git_fake(tmp_path / "linux")
    builder(f"build:{tree}")
    edit(tree, "return 2", "return 22; /* fake: sleep 30 */")
    child = start(tmp_path, f"build:{tree}")
    wait_for_half(builder)
    child.send_signal(number)
    child.communicate(timeout=20)
    assert child.returncode != 0
    assert len(builder.entries()) == 1
    edit(tree, " /* fake: sleep 30 */", "")
    (half,) = builder.store.root.glob("outputs/*/objects/drivers/dax/hmem/hmem.o")
    # Newer than its source: only the record of the interruption shows that it is incomplete.
    later = time.time() + 3600
    os.utime(half, (later, later))
    kernel = builder(f"build:{tree}")
    assert "interrupted" in " ".join(builder.progress.notes)
    assert kernel.modules is not None
    assert "return 22;" in (kernel.modules / "kernel/drivers/dax/hmem/hmem.ko").read_text()
    leftovers = list((builder.store.root / "tmp").glob("*/*"))
    assert leftovers == []


def test_two_concurrent_builders(builder: Builder, tmp_path: Path) -> None:
    tree = git_fake(tmp_path / "linux")
    edit(tree, "/* Two. */", "/* fake: sleep 1 */")
    first, second = start(tmp_path, f"build:{tree}"), start(tmp_path, f"build:{tree}")
    results = [child.communicate(timeout=60) for child in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), results
    assert results[0][0] == results[1][0]
    output = results[0][1] + results[1][1]
    assert output.count("another harness is building") == 1
    assert output.count("built Linux 9.1.0") == 1


def test_a_build_without_bubblewrap(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = SimpleNamespace(which=lambda name: None)
    monkeypatch.setattr("harness.kernels.build.sandbox.shutil", nothing)
    tree = copy_fake(tmp_path / "linux")
    kernel = builder(f"build:{tree}")
    assert manifest(kernel)["sandboxed"] is False
    (note,) = [note for note in builder.progress.notes if "sandbox" in note]
    assert "apt-get install bubblewrap" in note


LINKED = """\
  CC      a.o
  LD      vmlinux.o
ld: drivers/dax/bus.o: in function `f':
bus.c:(.text+0x5): undefined reference to `cxl_wait'
make[2]: *** [scripts/Makefile.vmlinux:34: vmlinux] Error 1
"""


def test_the_first_error(tmp_path: Path) -> None:
    assert first_error(LINKED) == "  bus.c:(.text+0x5): undefined reference to `cxl_wait'"
    modpost = 'ERROR: modpost: "f" [drivers/dax/kmem.ko] undefined!\nmake[1]: *** [x] Error 1\n'
    assert first_error(modpost) == '  ERROR: modpost: "f" [drivers/dax/kmem.ko] undefined!'
    assert first_error("one\nmake: *** No rule to make target 'x'.  Stop.\n") == (
        "  make: *** No rule to make target 'x'.  Stop."
    )
    assert first_error("strange\nend\n") == "  strange\n  end"
    old = failure("***\n*** C compiler is too old.\n***   Your Clang version: 14.0.6\n", tmp_path)
    assert isinstance(old, UsageError)
    assert "too old" in old.message and "clang-19" in old.hint
    killed = failure("gcc: internal compiler error: Killed (program cc1)\n", tmp_path / "log")
    assert "memory" in killed.hint
    with pytest.raises(OSError) as caught:
        failure("as: x.o: Disk quota exceeded", tmp_path / "log")
    assert caught.value.errno == errno.EDQUOT


STATE = SourceState("a" * 40, None, False, "here")
PLAN = plan_config([])
GCC = FoundToolchain("gcc", "gcc 12\nld 2.40", True)
SERIES = Series(Path("/s"), (Patch("a", b"1"), Patch("b", b"2")))


def test_inputs_of_the_key() -> None:
    key = kernel_key(STATE, None, PLAN, GCC)
    assert len(key) == 64
    others = (
        kernel_key(SourceState("b" * 40, None, False, "here"), None, PLAN, GCC),
        kernel_key(STATE, SERIES, PLAN, GCC),
        kernel_key(STATE, SERIES.upto(1), PLAN, GCC),
        kernel_key(STATE, None, plan_config(["no_kmem"]), GCC),
        kernel_key(STATE, None, PLAN, FoundToolchain("gcc", "gcc 13\nld 2.40", True)),
        kernel_key(STATE, None, PLAN, FoundToolchain("clang", GCC.version, True)),
    )
    assert len({key, *others}) == 7


def test_facts_that_are_not_inputs_of_the_key() -> None:
    key = kernel_key(STATE, SERIES, PLAN, GCC)
    moved = SourceState("a" * 40, "c" * 40, True, "there")
    assert kernel_key(moved, SERIES, PLAN, GCC) == key
    assert kernel_key(STATE, Series(Path("/t"), SERIES.patches), PLAN, GCC) == key
    assert kernel_key(STATE, SERIES, plan_config(["base"]), GCC) == key
    none = kernel_key(STATE, None, PLAN, GCC)
    assert kernel_key(STATE, SERIES.upto(0), PLAN, GCC) == none
    assert kernel_key(STATE, SERIES, PLAN, FoundToolchain("gcc", GCC.version, False)) == key
