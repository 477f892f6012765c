# SPDX-License-Identifier: GPL-2.0-or-later
"""What belongs to kernels of the store, and goes with them: initramfs, the compiler's cache."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from fake_sources import Builder, Listener, builder, git_fake

from harness.core.cache import Store
from harness.core.kernel import Kernel
from harness.core.kernel_modules import ModulePlan
from harness.guest.initramfs import SharedInitramfs, shared_initramfs
from harness.kernels.build.make import run_make
from harness.kernels.prune import StoredItem, prune, size_of_the_rest, stored_items
from harness.kernels.store import entry_in_use, folder_in_use, remove_unless_used
from harness.runs.prepare import Bootable, in_use

__all__ = ["builder"]

DAY = 86400.0
PLENTY = 10**15


@pytest.fixture
def kernel(builder: Builder, tmp_path: Path) -> Kernel:
    return builder(f"build:{git_fake(tmp_path / 'linux')}")


@pytest.fixture(autouse=True)
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.guest.initramfs._add_programs", lambda *_arguments: None)


def initramfs_of(kernel: Kernel, store: Store) -> SharedInitramfs:
    programs = store.root.parent / "programs" / "root"
    programs.mkdir(parents=True, exist_ok=True)
    return shared_initramfs(
        kernel, (), programs, store, Listener(), lambda _: (ModulePlan((), (), ()), {})
    )


def age(path: Path, seconds: float) -> None:
    """As if nothing in a folder had been used for so long."""
    then = time.time() - seconds
    for one in (*path.rglob("*"), path):
        os.utime(one, (then, then), follow_symlinks=False)


def of_sort(store: Store, sort: str) -> list[StoredItem]:
    return [one for one in stored_items(store) if one.sort == sort]


def sorts(items: tuple[StoredItem, ...]) -> list[str]:
    return [one.sort for one in items]


def test_an_initramfs_is_listed_and_pruned(builder: Builder, kernel: Kernel) -> None:
    shared = initramfs_of(kernel, builder.store)
    (item,) = of_sort(builder.store, "initramfs")
    assert (item.path, item.text) == (shared.archive.parent, f"9.1.0  {kernel.spec}")
    assert item.size >= shared.archive.stat().st_size > 0
    assert not item.orphan
    age(builder.store.root, DAY)
    assert initramfs_of(kernel, builder.store) == shared
    assert prune(builder.store, Listener(), older_than=DAY / 2)[0] != ()
    assert of_sort(builder.store, "initramfs"), "a use counts, also without its kernel"
    age(builder.store.root, DAY)
    removed, _ = prune(builder.store, Listener(), older_than=DAY / 2)
    assert sorts(removed) == ["initramfs"]
    assert not shared.archive.exists()


def test_an_initramfs_goes_when_its_kernel_is_gone(builder: Builder, kernel: Kernel) -> None:
    initramfs_of(kernel, builder.store)
    age(builder.store.root, DAY)
    assert prune(builder.store, Listener(), keep=PLENTY) == ((), ())
    shutil.rmtree(kernel.image.parent)
    (item,) = of_sort(builder.store, "initramfs")
    assert item.orphan
    assert item.text.endswith(", which is gone")
    removed, _ = prune(builder.store, Listener(), keep=PLENTY)
    assert sorts(removed) == ["initramfs"]


def test_an_initramfs_goes_with_its_kernel(builder: Builder, kernel: Kernel) -> None:
    shared = initramfs_of(kernel, builder.store)
    age(builder.store.root, DAY)
    age(shared.archive.parent, DAY / 24)
    removed, _ = prune(builder.store, Listener(), older_than=DAY / 2)
    assert sorts(removed)[-1] == "initramfs"
    assert "kernel" in sorts(removed)


def test_an_initramfs_of_a_kernel_of_the_users_stays_while_it_is_used(
    builder: Builder, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    kernel = Kernel("image:mine", "9.2.0", tmp_path / "mine" / "bzImage", None, None, "c" * 32)
    initramfs_of(kernel, builder.store)
    age(builder.store.root, DAY)
    assert prune(builder.store, Listener(), older_than=2 * DAY) == ((), ())
    assert sorts(prune(builder.store, Listener(), older_than=DAY / 2)[0]) == ["initramfs"]


def test_an_initramfs_that_names_no_kernel_goes_by_its_age(
    builder: Builder, kernel: Kernel
) -> None:
    """As those that were made before they named one."""
    shared = initramfs_of(kernel, builder.store)
    (shared.archive.parent / "manifest.json").write_text('{"depends": {}, "missing": {}}')
    shutil.rmtree(kernel.image.parent)
    age(builder.store.root, DAY)
    assert prune(builder.store, Listener(), older_than=2 * DAY) == ((), ())
    assert "initramfs" in sorts(prune(builder.store, Listener(), older_than=DAY / 2)[0])


def test_what_a_run_uses_stays(builder: Builder, kernel: Kernel) -> None:
    shared = initramfs_of(kernel, builder.store)
    with in_use(Bootable(kernel, shared, "tcg")):
        age(builder.store.root, DAY)
        _, kept = prune(builder.store, Listener(), keep=0)
        assert sorted(sorts(kept)) == ["initramfs", "kernel"]
    with entry_in_use(shared.archive.parent):
        shutil.rmtree(kernel.image.parent)
        removed, kept = prune(builder.store, Listener(), keep=0)
        assert (removed, sorts(kept)) == ((), ["initramfs"])
    assert sorts(prune(builder.store, Listener(), keep=0)[0]) == ["initramfs"]


def test_the_compilers_cache_counts(builder: Builder, kernel: Kernel) -> None:
    cache = builder.store.root / "ccache"
    assert not of_sort(builder.store, "ccache"), "it is empty"
    (cache / "0").mkdir()
    (cache / "0" / "object").write_bytes(b"x" * 3_000_000)
    (item,) = of_sort(builder.store, "ccache")
    assert item.size >= 3_000_000
    age(builder.store.root, DAY)
    age(cache, 2 * DAY)
    assert sorts(prune(builder.store, Listener(), keep=2_000_000)[0]) == ["ccache"]
    assert len(stored_items(builder.store)) == 3


def test_the_compilers_cache_stays_while_a_build_has_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    cache = tmp_path / "ccache"
    with folder_in_use(cache), folder_in_use(cache):
        (cache / "object").write_bytes(b"x" * 5000)
        age(cache, DAY)
        removed, kept = prune(store, Listener(), keep=0)
        assert (removed, sorts(kept)) == ((), ["ccache"])
    with folder_in_use(cache):
        pass
    assert prune(store, Listener(), keep=0) == ((), ()), "it was used a moment ago"
    age(cache, DAY)
    assert sorts(prune(store, Listener(), keep=0)[0]) == ["ccache"]


def test_a_build_has_the_compilers_cache(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = []

    def make(*arguments: Any, **options: Any) -> int:
        removed.append(remove_unless_used(builder.store.root / "ccache", builder.store, "."))
        return run_make(*arguments, **options)

    monkeypatch.setattr("harness.kernels.build.build.run_make", make)
    builder(f"build:{git_fake(tmp_path / 'linux')}")
    assert removed == [False, False], "while it configures, and while it compiles"


def test_a_folder_that_is_removed_while_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ccache"
    lock = fcntl.flock
    removed: list[Path] = []

    def late(handle: int, operation: int) -> None:
        lock(handle, operation)
        if not removed:
            removed.append(folder.rename(tmp_path / "away"))

    monkeypatch.setattr("harness.kernels.store.fcntl.flock", late)
    with folder_in_use(folder):
        assert folder.is_dir()
        with folder.joinpath("x").open("w"):
            pass
    assert removed


def test_an_error_of_a_build_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), folder_in_use(tmp_path / "ccache"):
        raise FileNotFoundError


def test_the_limit_is_of_the_whole_store(builder: Builder, kernel: Kernel) -> None:
    age(builder.store.root, DAY)
    size = sum(one.size for one in stored_items(builder.store))
    (builder.store.root / "userland").mkdir()
    (builder.store.root / "userland" / "programs").write_bytes(b"x" * 2_000_000)
    rest = size_of_the_rest(builder.store)
    assert rest >= 2_000_000
    assert prune(builder.store, Listener(), keep=size + rest) == ((), ())
    assert prune(builder.store, Listener(), keep=size + rest - 1)[0] != ()
