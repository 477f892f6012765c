# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

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
from harness.core.progress import Progress
from harness.kernels import prune as kernel_store
from harness.kernels.build.config import plan_config
from harness.kernels.build.from_source import kernel_key
from harness.kernels.build.series import Patch, Series
from harness.kernels.build.toolchain import FoundToolchain
from harness.kernels.build.tree import SourceState, SourceTree, look
from harness.kernels.prune import StoredItem, choose_to_prune, prune, stored_items
from harness.kernels.store import kernel_in_use

__all__ = ["builder"]

STATE = SourceState("a" * 40, None, False, "here")
PLAN = plan_config([])
GCC = FoundToolchain("gcc", "gcc 12\nld 2.40", True)
SERIES = Series(Path("/s"), (Patch("a", b"1"), Patch("b", b"2")))


def test_what_goes_into_the_key() -> None:
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


def test_what_does_not() -> None:
    key = kernel_key(STATE, SERIES, PLAN, GCC)
    moved = SourceState("a" * 40, "c" * 40, True, "there")
    assert kernel_key(moved, SERIES, PLAN, GCC) == key
    assert kernel_key(STATE, Series(Path("/t"), SERIES.patches), PLAN, GCC) == key
    assert kernel_key(STATE, SERIES, plan_config(["base"]), GCC) == key
    none = kernel_key(STATE, None, PLAN, GCC)
    assert kernel_key(STATE, SERIES.upto(0), PLAN, GCC) == none
    assert kernel_key(STATE, SERIES, PLAN, FoundToolchain("gcc", GCC.version, False)) == key


def item(name: str, size: int, age: float) -> StoredItem:
    return StoredItem("kernel", Path(name), size, 1e6 - age, name)


DAY = 86400.0
ITEMS = (item("new", 100, 10.0), item("day", 200, DAY), item("week", 300, 7 * DAY))


@pytest.mark.parametrize(
    ("keep", "older_than", "chosen"),
    [
        (1000, None, []),
        (300, None, ["week"]),
        (299, None, ["week", "day"]),
        (0, None, ["week", "day"]),  # what was used a moment ago stays
        (None, 2 * DAY, ["week"]),
        (None, 0.0, ["week", "day"]),
        (100, 2 * DAY, ["week", "day"]),
    ],
)
def test_what_is_pruned(keep: int | None, older_than: float | None, chosen: list[str]) -> None:
    found = choose_to_prune(ITEMS, keep=keep, older_than=older_than, now=1e6)
    assert [one.text for one in found] == chosen


def make_old(store: Store) -> None:
    """As if nothing had been used for a day."""
    old = time.time() - DAY
    for path in store.root.rglob("*"):
        if not path.is_symlink():
            os.utime(path, (old, old))


@pytest.fixture
def kernel(builder: Builder, tmp_path: Path) -> Kernel:
    return builder(f"build:{git_fake(tmp_path / 'linux')}")


def sorts(store: Store) -> list[str]:
    return sorted(one.sort for one in stored_items(store))


def test_a_list(builder: Builder, kernel: Kernel, tmp_path: Path) -> None:
    items = {one.sort: one for one in stored_items(builder.store)}
    assert set(items) == {"kernel", "objects", "source"}
    assert items["kernel"].path == kernel.image.parent
    assert items["kernel"].text == f"9.1.0  build:{tmp_path}/linux"
    assert items["source"].text == f"{tmp_path}/linux"
    assert all(one.size > 1000 for one in items.values())
    assert all(abs(one.used - time.time()) < 60 for one in items.values())
    assert stored_items(Store(tmp_path / "none")) == ()


def test_all_can_go_and_come_back(builder: Builder, kernel: Kernel, tmp_path: Path) -> None:
    assert prune(builder.store, Listener(), keep=0) == ((), ())
    make_old(builder.store)
    removed, in_use = prune(builder.store, Listener(), keep=0)
    assert (len(removed), in_use) == (3, ())
    assert sorts(builder.store) == []
    assert builder(f"build:{tmp_path}/linux") == kernel
    assert not list((builder.store.root / "tmp").glob("*/*"))


def test_what_is_in_use_stays(builder: Builder, kernel: Kernel) -> None:
    with kernel_in_use(kernel), kernel_in_use(kernel):
        make_old(builder.store)
        removed, in_use = prune(builder.store, Listener(), older_than=60.0)
        assert sorted(one.sort for one in removed) == ["objects", "source"]
        assert [one.path for one in in_use] == [kernel.image.parent]
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
    make_old(builder.store)
    builder(f"build:{tmp_path}/linux")
    removed, _ = prune(builder.store, Listener(), keep=0)
    assert "kernel" not in {one.sort for one in removed}


def test_a_source_that_is_looked_at_meanwhile_stays(
    builder: Builder, kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who builds looks at the source first, and claims it only then."""
    make_old(builder.store)
    choose = kernel_store.choose_to_prune

    def choose_and_wait(*words: Any, **named: Any) -> Any:
        chosen = choose(*words, **named)
        look(f"{tmp_path / 'linux'}@main", builder.store, Listener(), "")
        return chosen

    monkeypatch.setattr(kernel_store, "choose_to_prune", choose_and_wait)
    removed, in_use = prune(builder.store, Listener(), keep=0)
    assert [one.sort for one in in_use] == ["source"]
    assert sorted(one.sort for one in removed) == ["kernel", "objects"]
    assert builder(f"build:{tmp_path / 'linux'}").identity == kernel.identity


def test_a_source_that_is_gone_when_it_is_its_turn(
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


def test_a_damaged_entry_can_go(builder: Builder, kernel: Kernel) -> None:
    (kernel.image.parent / "manifest.json").unlink()
    make_old(builder.store)
    assert "damaged" in {one.text for one in stored_items(builder.store)}
    prune(builder.store, Listener(), keep=0)
    assert sorts(builder.store) == []


def test_objects_without_their_source(builder: Builder, kernel: Kernel, tmp_path: Path) -> None:
    (source,) = (builder.store.root / "sources").iterdir()
    shutil.rmtree(source)
    edit(tmp_path / "linux", "return 2", "return 22")
    assert builder(f"build:{tmp_path}/linux").identity != kernel.identity


def test_what_goes_while_it_is_listed(builder: Builder, kernel: Kernel, tmp_path: Path) -> None:
    """As when two prune at once."""
    assert kernel_store._size(kernel.image.parent) > 1000
    assert kernel_store._size(tmp_path / "gone") == 0
