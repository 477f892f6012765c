# SPDX-License-Identifier: GPL-2.0-or-later
"""List and prune the store: kernels, objects, sources, initramfs and the compiler's cache."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from fake_sources import Builder, Listener, builder, edit, git_fake

from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.kernel import Kernel
from harness.core.kernel_modules import ModulePlan
from harness.core.progress import Progress
from harness.guest.initramfs import SharedInitramfs, shared_initramfs
from harness.kernels import prune as prune_module
from harness.kernels.build.make import run_make
from harness.kernels.build.tree import SourceTree, look
from harness.kernels.prune import (
    StoredItem,
    choose_to_prune,
    prune,
    size_of_the_rest,
    stored_items,
)
from harness.kernels.store import entry_in_use, folder_in_use, kernel_in_use, remove_unless_used
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
    """Set back the times of last use in a folder."""
    then = time.time() - seconds
    for file in (*path.rglob("*"), path):
        os.utime(file, (then, then), follow_symlinks=False)


def of_sort(store: Store, sort: str) -> list[StoredItem]:
    return [item for item in stored_items(store) if item.sort == sort]


def sorts(items: tuple[StoredItem, ...]) -> list[str]:
    return [item.sort for item in items]


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
    assert item.text.endswith(", which was removed")
    removed, _ = prune(builder.store, Listener(), keep=PLENTY)
    assert sorts(removed) == ["initramfs"]


def test_an_initramfs_goes_with_its_kernel(builder: Builder, kernel: Kernel) -> None:
    shared = initramfs_of(kernel, builder.store)
    age(builder.store.root, DAY)
    age(shared.archive.parent, DAY / 24)
    removed, _ = prune(builder.store, Listener(), older_than=DAY / 2)
    assert sorts(removed)[-1] == "initramfs"
    assert "kernel" in sorts(removed)


def test_an_initramfs_of_a_users_kernel_is_pruned_by_age(builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    kernel = Kernel("image:mine", "9.2.0", tmp_path / "mine" / "bzImage", None, None, "c" * 32)
    initramfs_of(kernel, builder.store)
    age(builder.store.root, DAY)
    assert prune(builder.store, Listener(), older_than=2 * DAY) == ((), ())
    assert sorts(prune(builder.store, Listener(), older_than=DAY / 2)[0]) == ["initramfs"]


def test_an_initramfs_of_an_unknown_kernel_is_pruned_by_age(
    builder: Builder, kernel: Kernel
) -> None:
    shared = initramfs_of(kernel, builder.store)
    (shared.archive.parent / "manifest.json").write_text('{"depends": {}, "missing": {}}')
    shutil.rmtree(kernel.image.parent)
    age(builder.store.root, DAY)
    assert prune(builder.store, Listener(), older_than=2 * DAY) == ((), ())
    assert "initramfs" in sorts(prune(builder.store, Listener(), older_than=DAY / 2)[0])


def test_items_in_use_stay(builder: Builder, kernel: Kernel) -> None:
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
    assert prune(store, Listener(), keep=0) == ((), ()), "it is in its grace period"
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
    size = sum(item.size for item in stored_items(builder.store))
    (builder.store.root / "userland").mkdir()
    (builder.store.root / "userland" / "programs").write_bytes(b"x" * 2_000_000)
    rest = size_of_the_rest(builder.store)
    assert rest >= 2_000_000
    assert prune(builder.store, Listener(), keep=size + rest) == ((), ())
    assert prune(builder.store, Listener(), keep=size + rest - 1)[0] != ()


def item(name: str, size: int, age: float) -> StoredItem:
    return StoredItem("kernel", Path(name), size, 1e6 - age, name)


ITEMS = (item("new", 100, 10.0), item("day", 200, DAY), item("week", 300, 7 * DAY))


def test_items_to_prune() -> None:
    for keep, older_than, expected in (
        (1000, None, []),
        (300, None, ["week"]),
        (299, None, ["week", "day"]),
        (0, None, ["week", "day"]),  # an item in its grace period stays
        (None, 2 * DAY, ["week"]),
        (None, 0.0, ["week", "day"]),
        (100, 2 * DAY, ["week", "day"]),
    ):
        chosen = choose_to_prune(ITEMS, keep=keep, older_than=older_than, now=1e6)
        assert [item.text for item in chosen] == expected, (keep, older_than)


def test_a_list(builder: Builder, kernel: Kernel, tmp_path: Path) -> None:
    items = {item.sort: item for item in stored_items(builder.store)}
    assert set(items) == {"kernel", "objects", "source"}
    assert items["kernel"].path == kernel.image.parent
    assert items["kernel"].text == f"9.1.0  build:{tmp_path}/linux"
    assert items["source"].text == f"{tmp_path}/linux"
    assert all(item.size > 1000 for item in items.values())
    assert all(abs(item.used - time.time()) < 60 for item in items.values())
    assert stored_items(Store(tmp_path / "none")) == ()


def test_all_items_can_be_pruned_and_made_again(
    builder: Builder, kernel: Kernel, tmp_path: Path
) -> None:
    assert prune(builder.store, Listener(), keep=0) == ((), ())
    age(builder.store.root, DAY)
    removed, in_use = prune(builder.store, Listener(), keep=0)
    assert (len(removed), in_use) == (3, ())
    assert sorts(stored_items(builder.store)) == []
    assert builder(f"build:{tmp_path}/linux") == kernel
    assert not list((builder.store.root / "tmp").glob("*/*"))


def test_a_kernel_in_use_stays(builder: Builder, kernel: Kernel) -> None:
    with kernel_in_use(kernel), kernel_in_use(kernel):
        age(builder.store.root, DAY)
        removed, in_use = prune(builder.store, Listener(), older_than=60.0)
        assert sorted(sorts(removed)) == ["objects", "source"]
        assert [item.path for item in in_use] == [kernel.image.parent]
        assert kernel.image.exists()
    prune(builder.store, Listener(), keep=0)
    assert not kernel.image.exists()
    with pytest.raises(UsageError, match="was removed from the store"), kernel_in_use(kernel):
        pass


def test_a_kernel_of_the_users_is_not_locked(tmp_path: Path) -> None:
    image = tmp_path / "bzImage"
    image.touch()
    with kernel_in_use(Kernel("image:x", "1", image, None, None, "0")):
        pass


def test_a_use_counts(builder: Builder, kernel: Kernel, tmp_path: Path) -> None:
    age(builder.store.root, DAY)
    builder(f"build:{tmp_path}/linux")
    removed, _ = prune(builder.store, Listener(), keep=0)
    assert "kernel" not in sorts(removed)


def test_a_source_that_is_read_meanwhile_stays(
    builder: Builder, kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build reads the source first, and claims it later."""
    age(builder.store.root, DAY)
    choose = prune_module.choose_to_prune

    def choose_and_wait(*words: Any, **named: Any) -> Any:
        chosen = choose(*words, **named)
        look(f"{tmp_path / 'linux'}@main", builder.store, Listener(), "")
        return chosen

    monkeypatch.setattr(prune_module, "choose_to_prune", choose_and_wait)
    removed, in_use = prune(builder.store, Listener(), keep=0)
    assert sorts(in_use) == ["source"]
    assert sorted(sorts(removed)) == ["kernel", "objects"]
    assert builder(f"build:{tmp_path / 'linux'}").identity == kernel.identity


def test_a_source_that_is_removed_before_its_build(
    builder: Builder, kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(tmp_path / "linux", "return 2", "return 22")
    claimed = SourceTree.claimed

    def too_late(tree: SourceTree, store: Store, progress: Progress) -> Any:
        shutil.rmtree(tree.folder)
        return claimed(tree, store, progress)

    monkeypatch.setattr(SourceTree, "claimed", too_late)
    with pytest.raises(UsageError, match="was removed from the store") as caught:
        builder(f"build:{tmp_path / 'linux'}")
    assert "start again" in caught.value.hint


def test_a_damaged_entry_can_be_pruned(builder: Builder, kernel: Kernel) -> None:
    (kernel.image.parent / "manifest.json").unlink()
    age(builder.store.root, DAY)
    assert "damaged" in {item.text for item in stored_items(builder.store)}
    prune(builder.store, Listener(), keep=0)
    assert sorts(stored_items(builder.store)) == []


def test_objects_without_their_source(builder: Builder, kernel: Kernel, tmp_path: Path) -> None:
    (source,) = (builder.store.root / "sources").iterdir()
    shutil.rmtree(source)
    edit(tmp_path / "linux", "return 2", "return 22")
    assert builder(f"build:{tmp_path}/linux").identity != kernel.identity


def test_a_folder_that_disappears_while_it_is_listed(
    builder: Builder, kernel: Kernel, tmp_path: Path
) -> None:
    """As when two processes prune concurrently."""
    assert prune_module._size(kernel.image.parent) > 1000
    assert prune_module._size(tmp_path / "gone") == 0
