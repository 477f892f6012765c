# SPDX-License-Identifier: GPL-2.0-or-later
"""Damaged entries of the store are reported and made again, never used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_fixtures import FIT_QEMU
from damage import DAMAGE, flip
from fake_sources import Builder, Listener, builder, git_fake

from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.files import DamagedEntryError, write_sums
from harness.core.kernel import Kernel
from harness.core.kernel_modules import ModulePlan
from harness.guest.initramfs import shared_initramfs
from harness.kernels.store import kernel_in_use, require_whole_modules
from harness.runs.prepare import Host, prepare_kernel
from harness.scenario.kernel_request import KernelRequest

__all__ = ["builder"]


@pytest.fixture
def kernel(builder: Builder, tmp_path: Path) -> Kernel:
    return builder(f"build:{git_fake(tmp_path / 'linux')}")


def test_a_damaged_kernel_is_made_again(builder: Builder, kernel: Kernel, tmp_path: Path) -> None:
    for name, damage in (
        ("vmlinuz", flip), ("vmlinuz", Path.unlink), ("config", flip), ("manifest.json", flip),
        ("manifest.json", Path.unlink),
    ):  # fmt: skip
        path = kernel.image.parent / name
        whole = path.read_bytes()
        builder.progress.notes.clear()
        damage(path)
        again = builder(f"build:{tmp_path / 'linux'}")
        assert (again.identity, again.image) == (kernel.identity, kernel.image)
        if name != "manifest.json":  # it has the time of the build
            assert path.read_bytes() == whole
        assert_reported(builder.progress, f"kernels/{kernel.identity[:12]}", name)
    assert not list((builder.store.root / "tmp").glob("*/*"))


def assert_reported(progress: Listener, entry: str, name: str) -> None:
    (note,) = [note for note in progress.notes if "damaged in the store" in note]
    assert note.startswith(f"{entry} is damaged in the store: {name}")
    assert note.endswith("it is made again")


def test_a_damaged_kernel_that_a_run_uses_is_not_booted(
    builder: Builder, kernel: Kernel, tmp_path: Path
) -> None:
    with kernel_in_use(kernel):
        flip(kernel.image)
        with pytest.raises(UsageError, match="and a run uses it") as caught:
            builder(f"build:{tmp_path / 'linux'}")
    assert "wait until" in caught.value.hint
    assert builder(f"build:{tmp_path / 'linux'}").image.exists()


def test_damaged_modules_are_noticed(builder: Builder, kernel: Kernel, tmp_path: Path) -> None:
    require_whole_modules(kernel, builder.store)
    assert kernel.modules is not None
    module = next(kernel.modules.rglob("*.ko"))
    flip(module)
    with pytest.raises(DamagedEntryError, match=module.name):
        require_whole_modules(kernel, builder.store)
    require_whole_modules(kernel, Store(tmp_path / "another"))  # then it is the user's own


def test_damaged_modules_are_not_put_into_an_initramfs(
    builder: Builder, kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "userland" / "0" / "root"
    programs.mkdir(parents=True)
    monkeypatch.setattr("harness.runs.prepare.userland", lambda *_: programs)
    monkeypatch.setattr("harness.guest.initramfs._add_programs", lambda *_: None)
    assert kernel.modules is not None
    module = next(kernel.modules.rglob("*.ko"))
    whole = module.read_bytes()
    flip(module)
    host = Host(FIT_QEMU, builder.store, builder.progress, "tcg")
    with pytest.raises(UsageError, match="not a kernel module"):  # it is a fake one
        prepare_kernel(host, KernelRequest(f"build:{tmp_path / 'linux'}"))
    assert module.read_bytes() == whole
    (note,) = [note for note in builder.progress.notes if "damaged in the store" in note]
    assert module.name in note


MAKE_AGAIN = """
import sys
import time
from pathlib import Path
from harness.kernels.store import discard_damaged
from harness.core.progress import SilentProgress
from harness.core.cache import Store
from harness.core.files import made_again, require_whole

store = Store(Path(sys.argv[1]))

def get():
    def make(folder):
        with open(f"{store.root}.log", "a") as log:
            log.write("made\\n")
        (folder / "image").write_bytes(b"whole")
    entry = store.build("things", "a", make)
    require_whole(entry, ("image",))
    return entry

entry = made_again(get, lambda error: discard_damaged(error, store, SilentProgress()))
assert (entry / "image").read_bytes() == b"whole"
"""


def test_several_processes_make_it_again_once(tmp_path: Path) -> None:
    root = tmp_path / "store"
    words = [sys.executable, "-c", MAKE_AGAIN, str(root)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    subprocess.run(words, env=environment, check=True)
    flip(root / "things" / "a" / "image")
    running = [subprocess.Popen(words, env=environment) for _ in range(6)]
    assert [child.wait(60) for child in running] == [0] * 6
    assert Path(f"{root}.log").read_text() == "made\n" * 2
    assert not list((root / "tmp").glob("*/*"))


def test_a_damaged_initramfs_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.guest.initramfs._add_programs", lambda *_: None)
    store, programs = Store(tmp_path / "store"), tmp_path / "userland" / "0" / "root"
    (programs / "usr").mkdir(parents=True)
    (programs / "usr" / "busybox").write_bytes(b"busybox")
    write_sums(programs.parent)
    kernel = Kernel("x", "1", tmp_path / "vmlinuz", None, None, "0")

    def make() -> Path:
        plan = ModulePlan((), (), ())
        return shared_initramfs(
            kernel, ("kmem",), programs, store, Listener(), lambda _: (plan, {})
        ).archive

    for name in ("initramfs.cpio", "manifest.json"):
        for damage in DAMAGE:
            archive = make()
            damage(archive.with_name(name))
            with pytest.raises(DamagedEntryError, match=name):
                make()
            store.remove(archive.parent)
    # The guest's programs are copied into the next one.
    flip(programs / "usr" / "busybox")
    with pytest.raises(DamagedEntryError, match="busybox"):
        make()


def test_a_damaged_answer_is_queried_again(tmp_path: Path) -> None:
    progress = Listener()
    host = Host(FIT_QEMU, Store(tmp_path / "store"), progress, "tcg")
    recall = host.remember("layouts")
    queries: list[int] = []

    def query() -> dict[str, str]:
        queries.append(1)
        return {"SRAT": "00"}

    for damage in DAMAGE:
        queries.clear()
        progress.notes.clear()
        for _ in range(2):
            assert recall("a", query) == {"SRAT": "00"}
        damage(host.store.root / "layouts" / "a" / "answer.json")
        assert recall("a", query) == {"SRAT": "00"}
        assert len(queries) == (2 if damage is DAMAGE[0] else 1)
        assert_reported(progress, "layouts/a", "answer.json")
