# SPDX-License-Identifier: GPL-2.0-or-later
"""What was damaged in the store is not used: it is said, and made again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_fixtures import FIT_QEMU
from damage import DAMAGE, flip
from fake_sources import Builder, Listener, builder, git_fake

from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.files import DamagedEntryError
from harness.core.kernel import Kernel
from harness.core.kernel_modules import ModulePlan
from harness.guest.initramfs import shared_initramfs
from harness.kernels.request import KernelRequest
from harness.kernels.store import kernel_in_use, require_whole_modules
from harness.runs.prepare import Host, prepare_kernel

__all__ = ["builder"]


@pytest.fixture
def kernel(builder: Builder, tmp_path: Path) -> Kernel:
    return builder(f"build:{git_fake(tmp_path / 'linux')}")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["vmlinuz", "config", "manifest.json"])
def test_a_damaged_kernel_is_made_again(
    builder: Builder, kernel: Kernel, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    path = kernel.image.parent / name
    whole = path.read_bytes()
    damage(path)
    again = builder(f"build:{tmp_path / 'linux'}")
    assert (again.identity, again.image) == (kernel.identity, kernel.image)
    if name != "manifest.json":  # it has the time of the build
        assert path.read_bytes() == whole
    (said,) = [note for note in builder.progress.notes if "damaged in the store" in note]
    assert said.startswith(f"kernels/{kernel.identity[:12]} is damaged in the store: {name}")
    assert said.endswith("it is made again")
    assert not list((builder.store.root / "tmp").glob("*/*"))


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
    (said,) = [note for note in builder.progress.notes if "damaged in the store" in note]
    assert module.name in said


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
    assert [one.wait(60) for one in running] == [0] * 6
    assert Path(f"{root}.log").read_text() == "made\n" * 2
    assert not list((root / "tmp").glob("*/*"))


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["initramfs.cpio", "manifest.json"])
def test_a_damaged_initramfs_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: Callable[[Path], None]
) -> None:
    monkeypatch.setattr("harness.guest.initramfs._add_programs", lambda *_: None)
    store, programs = Store(tmp_path / "store"), tmp_path / "userland" / "0" / "root"
    (programs / "usr").mkdir(parents=True)
    (programs / "usr" / "busybox").write_bytes(b"busybox")
    kernel = Kernel("x", "1", tmp_path / "vmlinuz", None, None, "0")

    def make() -> Path:
        plan = ModulePlan((), (), ())
        return shared_initramfs(
            kernel, ("kmem",), programs, store, Listener(), lambda _: (plan, {})
        ).archive

    archive = make()
    damage(archive.with_name(name))
    with pytest.raises(DamagedEntryError, match=name):
        make()
    # And the guest's programs, of which the next one would be made.
    store.remove(archive.parent)
    damage(programs / "usr" / "busybox")
    with pytest.raises(DamagedEntryError, match="busybox"):
        make()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_answer_is_asked_for_again(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    progress = Listener()
    host = Host(FIT_QEMU, Store(tmp_path / "store"), progress, "tcg")
    recall = host.remember("layouts")
    asked: list[int] = []

    def ask() -> dict[str, str]:
        asked.append(1)
        return {"SRAT": "00"}

    for _ in range(2):
        assert recall("a", ask) == {"SRAT": "00"}
    damage(host.store.root / "layouts" / "a" / "answer.json")
    assert recall("a", ask) == {"SRAT": "00"}
    assert len(asked) == 2
    (said,) = progress.notes
    assert said.startswith("layouts/a is damaged in the store: answer.json")
