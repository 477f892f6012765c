# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_sources import Listener

from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.process import CommandError

PROJECT = Path(__file__).resolve().parents[3]

# Builds ROOT/things/KEY, counts the builds in ROOT.log, and works until the file GO exists.
BUILDER = """
import sys, time
from pathlib import Path
from harness.core.cache import Store

root, key, go = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])

def make(folder):
    with open(f"{root}.log", "a") as log:
        log.write("built\\n")
    (folder / "half").touch()
    while not go.exists():
        time.sleep(0.01)
    (folder / "whole").touch()

Store(root).build("things", key, make)
"""

COUNTER = """
import sys
from pathlib import Path
from harness.core.cache import Store

store, counter = Store(Path(sys.argv[1])), Path(sys.argv[2])
for _ in range(40):
    with store.lock("counter", what="counting"):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def start(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(PROJECT)})


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def leftovers(store: Store) -> list[str]:
    return sorted(str(p.relative_to(store.root)) for p in (store.root / "tmp").glob("*/*"))


def fail_if_called(folder: Path) -> None:
    raise AssertionError("built twice")


def test_an_entry_is_built_once(store: Store) -> None:
    assert store.find("things", "a") is None
    path = store.build("things", "a", lambda folder: (folder / "x").write_text("1"))
    assert path == store.root / "things" / "a"
    assert (path / "x").read_text() == "1"
    assert store.build("things", "a", fail_if_called) == path == store.find("things", "a")
    assert leftovers(store) == []


def test_an_existing_entry_costs_one_stat(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.build("things", "a", lambda folder: None)
    store.set_alias("things", "name", "a")
    for name in ("open", "mkdir", "listdir", "scandir"):
        monkeypatch.setattr(os, name, fail_if_called)
    assert store.build("things", "a", fail_if_called) == store.find_alias("things", "name")


def test_entries_may_be_built_inside_others(store: Store) -> None:
    def outer(folder: Path) -> None:
        inner = store.build("things", "inner", lambda inside: (inside / "x").touch())
        (folder / "link").symlink_to(inner)

    assert (store.build("things", "outer", outer) / "link" / "x").exists()


def test_a_failed_build_leaves_nothing(store: Store) -> None:
    def make(folder: Path) -> None:
        (folder / "sub").mkdir()
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        store.build("things", "a", make)
    assert store.find("things", "a") is None
    assert leftovers(store) == []


def test_names_that_could_escape_are_refused(store: Store) -> None:
    for name in ("", ".x", "a/b", "..", "tmp", "aliases", "lock", "a b"):
        with pytest.raises(ValueError, match="not a name"):
            store.find(name, "a")


def test_the_last_alias_counts(store: Store) -> None:
    for key in ("a", "b"):
        store.build("things", key, lambda folder: None)
        store.set_alias("things", "debian:7.2", key)
        assert store.find_alias("things", "debian:7.2") == store.root / "things" / key
    assert store.find_alias("things", "debian:7") is None
    (store.root / "things" / "b").rmdir()
    assert store.find_alias("things", "debian:7.2") is None
    assert leftovers(store) == []


def test_any_text_can_be_an_alias(store: Store) -> None:
    store.build("things", "a", lambda folder: None)
    for name in ("/a/b c.lock", "x" * 4000, "..", "naïve"):
        store.set_alias("things", name, "a")
        assert store.find_alias("things", name) == store.root / "things" / "a"


def test_two_processes_build_an_entry_once(store: Store, tmp_path: Path) -> None:
    go = tmp_path / "go"
    builders = [start(BUILDER, store.root, "a", go) for _ in range(2)]
    wait_for(lambda: (store.root / "tmp/work/things.a/half").exists())
    listener = Listener()
    waiter = threading.Thread(
        target=lambda: store.build(
            "things", "a", fail_if_called, what="fetching it", progress=listener
        )
    )
    waiter.start()
    wait_for(lambda: bool(listener.notes))
    go.touch()
    waiter.join()
    assert [builder.wait() for builder in builders] == [0, 0]
    assert listener.notes == ["another harness is fetching it; waiting for it"]
    assert Path(f"{store.root}.log").read_text() == "built\n"
    assert (store.root / "things/a/whole").exists()
    assert leftovers(store) == []


def test_a_killed_builder_leaves_nothing_for_long(store: Store, tmp_path: Path) -> None:
    builder = start(BUILDER, store.root, "a", tmp_path / "never")
    half = store.root / "tmp/work/things.a/half"
    wait_for(half.exists)
    # The folder of a running builder stays while other entries are built.
    store.build("things", "b", lambda folder: None)
    assert half.exists()
    builder.kill()
    builder.wait()
    assert store.find("things", "a") is None
    store.build("things", "c", lambda folder: None)
    assert leftovers(store) == []
    store.build("things", "a", lambda folder: None)


def test_the_next_build_of_the_same_entry_starts_with_an_empty_folder(
    store: Store, tmp_path: Path
) -> None:
    builder = start(BUILDER, store.root, "a", tmp_path / "never")
    wait_for((store.root / "tmp/work/things.a/half").exists)
    builder.kill()
    builder.wait()
    path = store.build("things", "a", lambda folder: (folder / "new").touch())
    assert sorted(file.name for file in path.iterdir()) == ["SHA256SUMS", "new"]


def test_locks_exclude_although_their_files_come_and_go(store: Store, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    counters = [start(COUNTER, store.root, counter) for _ in range(4)]
    assert [child.wait() for child in counters] == [0] * 4
    assert counter.read_text() == "160"
    assert leftovers(store) == []


def test_a_full_store_is_a_usage_error(store: Store) -> None:
    text = "dpkg-deb ended with status 2:\ncannot write: No space left on device"
    for error in (
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        CommandError(text, hint=""),
    ):

        def make(folder: Path, error: Exception = error) -> None:
            (folder / "half").touch()
            raise error

        with pytest.raises(UsageError, match="the store is full") as caught:
            store.build("things", "a", make)
        assert "HARNESS_STORE" in caught.value.hint
        assert leftovers(store) == []
        assert store.find("things", "a") is None


def test_a_read_only_store_returns_its_entries(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.build("things", "a", lambda folder: None)

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert store.build("things", "a", fail_if_called)
    with pytest.raises(UsageError, match="cannot write to the store") as caught:
        store.build("things", "b", fail_if_called)
    assert "HARNESS_STORE" in caught.value.hint


def test_more_than_the_free_space_is_refused(store: Store) -> None:
    store.require_space(1, "a little")
    with pytest.raises(UsageError, match=r"fetching a lot takes 1000000000000 MB, \d+ MB are free"):
        store.require_space(10**18, "a lot")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_in_a_folder_of_others(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(UsageError, match="cannot create the store"):
        Store(tmp_path / "a" / "b").build("things", "a", fail_if_called)


def test_a_store_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    for root in (tmp_path / "store", tmp_path / "store" / "below"):
        with pytest.raises(UsageError, match="cannot create the store: Not a directory"):
            Store(root).build("things", "a", fail_if_called)


def test_other_errors_are_not_changed(store: Store) -> None:
    def make(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "no", "/somewhere/else")

    with pytest.raises(PermissionError):
        store.build("things", "a", make)
