# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures for series: a fake kernel, patches to it, and their application."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_sources import HMEM, Listener, builder, format_patch, git_fake

from harness.core.cache import Store
from harness.core.errors import UnbuildableError
from harness.kernels.build.apply_series import series_commit
from harness.kernels.build.series import read_series
from harness.kernels.build.tree import SourceState, SourceTree, look

__all__ = ["builder"]
KMEM = "drivers/dax/kmem.c"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return git_fake(tmp_path / "linux")


@pytest.fixture
def patches(tmp_path: Path) -> tuple[bytes, ...]:
    """Three patches to the fake kernel, the third on top of the first."""
    work = git_fake(tmp_path / "work")
    return (
        format_patch(work, {HMEM: ("return 1", "return 11")}, "hmem: one"),
        format_patch(work, {KMEM: ("return 2", "return 22")}, "kmem: ümläut"),
        format_patch(work, {HMEM: ("return 11", "return 111")}, "hmem: one more"),
    )


def applied(tree: Path, path: Path, store: Store, upto: int | None = None) -> dict[str, str]:
    """The files of a tree with a series."""
    source, commit = commit_of(tree, path, store, upto)
    source.check_out(commit, Listener())
    return {name: (source.files / name).read_text() for name in (HMEM, KMEM)}


def commit_of(
    tree: Path, path: Path, store: Store, upto: int | None = None
) -> tuple[SourceTree, str]:
    source, state = look(str(tree), store, Listener(), "build:x")
    series = read_series(path).upto(upto)
    return source, series_commit(source, state, series, Listener())


def one(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "one.mbx"
    path.write_bytes(data)
    return path


def refused(tree: Path, path: Path, store: Store) -> tuple[UnbuildableError, SourceState]:
    source, state = look(str(tree), store, Listener(), "build:x")
    with pytest.raises(UnbuildableError) as caught:
        series_commit(source, state, read_series(path), Listener())
    assert not source.files.exists()  # no file is written for a series that does not apply
    assert not (source.folder / "applying").exists()
    return caught.value, state
