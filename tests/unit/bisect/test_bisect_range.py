# SPDX-License-Identifier: GPL-2.0-or-later
"""The trees that can be bisected over; nothing in them is changed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from fake_sources import Listener as Notes
from fake_sources import copy_fake, git
from small_history import FakeJudge, commits, found_range, run, store, tree

from harness.bisect.range import RangeOptions, find_range
from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.scenario.kernel_request import KernelRequest

__all__ = ["store", "tree"]


def contents(tree: Path) -> dict[Path, tuple[bytes | None, int]]:
    return {
        path: (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns)
        for path in tree.rglob("*")
    }


def test_the_users_tree_is_not_changed(tree: Path, store: Store) -> None:
    """This includes files that are not committed, and a bisection of the user's own."""
    made = commits(tree, "good", *["good"] * 5, *["bad"] * 5)
    git(tree, "bisect", "start", made[-1], made[0])
    (tree / "notes").write_text("not committed")
    (tree / "new").write_text("untracked")
    before = contents(tree)
    run(tree, store, made[0], "main")
    assert contents(tree) == before


def test_a_bare_repository(tree: Path, store: Store, tmp_path: Path) -> None:
    made = commits(tree, "good", "good", "bad", "bad")
    git(tmp_path, "clone", "-q", "--bare", str(tree), "bare.git")
    result = run(tmp_path / "bare.git", store, made[0], "main", judge=FakeJudge(tree))
    assert result.first is not None and result.first.name == made[2]


def test_a_shallow_clone(tree: Path, store: Store, tmp_path: Path) -> None:
    """Its history ends early; the commits in it can be bisected."""
    made = commits(tree, "good", "good", "good", "bad", "bad")
    git(tmp_path, "clone", "-q", "--depth", "4", f"file://{tree}", "shallow")
    result = run(tmp_path / "shallow", store, made[2], "main", judge=FakeJudge(tree))
    assert result.first is not None and result.first.name == made[3]
    with pytest.raises(UsageError, match="has no"):
        run(tmp_path / "shallow", store, made[0], "main")


@pytest.mark.parametrize("option", ["--good", "--bad"])
def test_a_missing_commit(tree: Path, store: Store, option: str) -> None:
    commits(tree, "good", "bad")
    for ref in ("mian", "0123456789" * 4, ""):
        good, bad = (ref, "main") if option == "--good" else ("main", ref)
        with pytest.raises(UsageError, match="has no") as refused:
            found_range(tree, store, good, bad)
        assert refused.value.where == f"{option} {ref}"
        if ref == "mian":
            assert "close names: main" in refused.value.hint


def test_not_a_git_tree(tree: Path, store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        found_range(tmp_path / "nowhere", store, "main", "main")
    plain = copy_fake(tmp_path / "plain")
    with pytest.raises(UsageError, match="not the top of a git tree"):
        found_range(plain, store, "main", "main")
    for name, good, bad, error in (
        ("debian:7.2", "a", "b", "has no history"),
        (str(tree), None, "main", "--good is not given"),
        (str(tree), "main", None, "--bad is not given"),
    ):
        with pytest.raises(UsageError, match=error):
            find_range(RangeOptions(name, good, bad, KernelRequest("build:")), store, Notes())


def test_one_bisection_of_a_tree_at_a_time(store: Store) -> None:
    """A second one is refused immediately."""
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with store.lock("bisect-x", what="bisecting x", wait=False):
            inside.set()
            assert done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(20)
    with (
        pytest.raises(UsageError, match="another harness is bisecting x"),
        store.lock("bisect-x", what="bisecting x", wait=False),
    ):
        pytest.fail("two at once")
    done.set()
    thread.join()
    with store.lock("bisect-x", what="bisecting x", wait=False):
        pass
