# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from fake_sources import HMEM, Listener, copy_fake, edit, git, git_fake

from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.process import CommandError
from harness.core.progress import Progress
from harness.debian.apt import AnyPackage, Package, SourcePackage, parse_showsrc
from harness.kernels.build.tree import SourceState, SourceTree, look, split_ref
from harness.kernels.debian import source as module
from harness.kernels.debian.source import choose_source, debian_source
from harness.kernels.spec import KernelSpec


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def seen(value: object, store: Store) -> tuple[SourceTree, SourceState]:
    return look(str(value), store, Listener(), f"build:{value}")


def checked_out(source: SourceTree, state: SourceState) -> dict[str, str]:
    """The files of a state, written out."""
    source.check_out(source.base_commit(state), Listener())
    return {
        str(path.relative_to(source.files)): path.read_text()
        for path in source.files.rglob("*")
        if path.is_file()
    }


def test_a_clean_tree(store: Store, tmp_path: Path) -> None:
    tree = git_fake(tmp_path / "linux")
    source, state = seen(tree, store)
    commit = git(tree, "rev-parse", "HEAD")
    assert state == SourceState(git(tree, "rev-parse", "HEAD^{tree}"), commit, False, str(tree))
    assert checked_out(source, state)[HMEM] == (tree / HMEM).read_text()


def test_a_dirty_tree_is_read_with_its_changes(store: Store, tmp_path: Path) -> None:
    tree = git_fake(tmp_path / "linux")
    edit(tree, "return 2", "return 22")
    git(tree, "add", HMEM)
    edit(tree, "return 22", "return 222")
    (tree / "drivers/cxl/region.c").unlink()
    (tree / "drivers/new.c").write_text("new")
    (tree / ".gitignore").write_text("*.o\n")
    (tree / "drivers/new.o").write_text("object")
    before = git(tree, "status", "--porcelain"), (tree / ".git/index").read_bytes()
    source, state = seen(tree, store)
    assert state.dirty
    assert state.commit == git(tree, "rev-parse", "HEAD")
    files = checked_out(source, state)
    assert "return 222" in files[HMEM]
    assert files["drivers/new.c"] == "new"
    assert not {"drivers/cxl/region.c", "drivers/new.o"} & set(files)
    assert (git(tree, "status", "--porcelain"), (tree / ".git/index").read_bytes()) == before
    assert git(tree, "stash", "list") == ""


def test_files_that_the_users_git_ignores_are_left_out(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home/.config/git").mkdir(parents=True)
    (tmp_path / "home/.config/git/ignore").write_text("notes\n")
    tree = git_fake(tmp_path / "linux")
    (tree / ".git/info/exclude").write_text("/out/\n")
    (tree / "out").mkdir()
    (tree / "out/object").touch()
    (tree / "notes").touch()
    assert not seen(tree, store)[1].dirty


def contents(tree: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in tree.rglob("*")}


def test_the_users_tree_is_not_changed(store: Store, tmp_path: Path) -> None:
    tree = git_fake(tmp_path / "linux")
    edit(tree, "return 2", "return 22")
    before = contents(tree)
    seen(tree, store)
    seen(f"{tree}@main", store)
    assert contents(tree) == before


def test_a_ref(store: Store, tmp_path: Path) -> None:
    tree = git_fake(tmp_path / "linux")
    edit(tree, "return 2", "return 22")
    git(tree, "commit", "-q", "-a", "-m", "second")
    git(tree, "tag", "v9.1", "HEAD^")
    edit(tree, "return 22", "return 222")
    source, first = seen(f"{tree}@v9.1", store)
    assert (first.commit, first.dirty) == (git(tree, "rev-parse", "v9.1"), False)
    assert "return 2;" in checked_out(source, first)[HMEM]
    _, second = seen(f"{tree}@HEAD", store)
    assert "return 22;" in checked_out(source, second)[HMEM]
    assert seen(f"{tree}@main@{{0}}", store)[1].tree == second.tree
    bare = tmp_path / "bare.git"
    git(tmp_path, "clone", "-q", "--bare", str(tree), str(bare))
    assert seen(f"{bare}@main", store)[1].tree == second.tree


def test_a_ref_that_does_not_exist(store: Store, tmp_path: Path) -> None:
    tree = git_fake(tmp_path / "linux")
    with pytest.raises(UsageError, match="has no 'mian'") as caught:
        seen(f"{tree}@mian", store)
    assert caught.value.hint == "close names: main"
    for ref in ("", "--help", "main:Kconfig", "0123456789" * 4):
        with pytest.raises(UsageError, match="has no"):
            seen(f"{tree}@{ref}", store)


def test_an_at_in_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "linux@home"
    folder.mkdir()
    assert split_ref(str(folder)) == (folder, None)
    assert split_ref(f"{folder}@v1") == (folder, "v1")
    assert split_ref(f"{tmp_path}@v1@{{1}}") == (tmp_path, "v1@{1}")
    assert split_ref("/nowhere@v1") == (Path("/nowhere@v1"), None)


def test_unchanged_files_keep_their_times(store: Store, tmp_path: Path) -> None:
    tree = git_fake(tmp_path / "linux")
    source, state = seen(tree, store)
    checked_out(source, state)
    for path in source.files.rglob("*"):
        if path.is_file():
            os.utime(path, (1e9, 1e9))
    source.repository.git("update-index", "-q", "--refresh", files=source.files, index=source.index)
    edit(tree, "return 2", "return 22")
    _, state = seen(tree, store)
    files = checked_out(source, state)
    young = {name for name in files if (source.files / name).stat().st_mtime > 2e9 / 1.9}
    assert young == {HMEM}
    (source.files / "left behind").touch()
    source.restore(source.base_commit(state))
    assert set(checked_out(source, state)) == set(files)


def test_an_interrupted_check_out_is_done_again(store: Store, tmp_path: Path) -> None:
    tree = git_fake(tmp_path / "linux")
    source, state = seen(tree, store)
    whole = checked_out(source, state)
    for path in (source.index, source.files / HMEM, source.files / "Kconfig"):
        path.unlink()
    source.index.with_suffix(".lock").touch()
    assert checked_out(source, state) == whole
    (source.files / HMEM).unlink()
    with suppress(RuntimeError), source.changing():
        raise RuntimeError
    assert checked_out(source, state) == whole
    (source.folder / "seen.lock").touch()
    (source.repository.folder / "config").unlink()
    assert seen(tree, store) == (source, state)


def test_a_plain_folder(store: Store, tmp_path: Path) -> None:
    folder = copy_fake(tmp_path / "linux")
    # As in Debian's sources of the kernel.
    (folder / ".gitignore").write_text("/*\n!/debian/\n")
    (folder / "drivers/x.o").write_text("object")
    (folder / ".config").write_text("CONFIG_A=y\n")
    (folder / "include/generated").mkdir(parents=True)
    (folder / "include/generated/autoconf.h").touch()
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    source, state = seen(folder, store)
    assert (state.commit, state.dirty) == (None, False)
    files = checked_out(source, state)
    assert HMEM in files
    assert not {"drivers/x.o", ".config", "include/generated/autoconf.h"} & set(files)
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before
    edit(folder, "return 2", "return 22")
    (folder / "new.c").touch()
    (folder / "Makefile").rename(folder / "Kbuild")
    (folder / "Makefile").touch()
    other = seen(folder, store)[1]
    assert other.tree != state.tree
    assert {"new.c", "Kbuild"} <= set(checked_out(source, other))


def test_a_plain_folder_inside_a_git_tree(store: Store, tmp_path: Path) -> None:
    tree = git_fake(tmp_path / "linux")
    folder = copy_fake(tree / "inside")
    assert seen(folder, store)[1].commit is None
    with pytest.raises(UsageError, match="not the top of a git tree"):
        seen(f"{folder}@main", store)


def test_a_git_tree_without_a_commit(store: Store, tmp_path: Path) -> None:
    folder = copy_fake(tmp_path / "linux")
    git(folder, "init", "-q")
    _, state = seen(folder, store)
    assert (state.commit, state.dirty) == (None, True)


def test_paths_that_are_not_sources(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        seen(tmp_path / "none", store)
    with pytest.raises(UsageError, match="is not the source of a kernel"):
        seen(tmp_path, store)


SHOWSRC = """\
Package: linux
Binary: linux-source
Version: 7.1.13-1~bpo13+1
Files:
 0123 10 linux_7.1.13-1~bpo13+1.dsc
Checksums-Sha256:
 aaaa 10 linux_7.1.13-1~bpo13+1.dsc
 bbbb 1000 linux_7.1.13.orig.tar.xz
 cccc 100 linux_7.1.13-1~bpo13+1.debian.tar.xz
Directory: pool/main/l/linux

Package: linux
Version: 7.3~rc7-1~exp1
Checksums-Sha256:
 dddd 2000 linux_7.3~rc7.orig.tar.xz
"""


def test_source_packages() -> None:
    old, new = parse_showsrc(SHOWSRC)
    assert old == SourcePackage(
        "linux", "7.1.13-1~bpo13+1", "linux_7.1.13.orig.tar.xz", 1110, "bbbb"
    )
    assert choose_source((old, new), "7.1") == (old,) == choose_source((old, new), "7.1.13")
    assert choose_source((old, new), "7.3") == (new,) == choose_source((old, new), "7.3-rc7")
    assert choose_source((old, new), "7") == (new, old)
    assert choose_source((old, new), "7.2") == ()
    same = replace(old, version="7.1.13-1")
    older = replace(old, version="7.1.9-1")
    assert choose_source((older, old, same), "7.1") == (same, older)


class FakeApt:
    """Has one ready-made source package, of 7.2, and one source package proper, of 7.1."""

    def __init__(self, root: Path, sources: bool) -> None:
        self.root, self.sources = root, sources
        self.refreshed = 0

    def refresh(self, max_age: float) -> bool:
        self.refreshed += 1
        return False

    def search(self, pattern: str) -> tuple[Package, ...]:
        assert not self.sources
        return (Package("linux-source-7.2", "7.2.13-1", "sid", 1000, "e" * 64),)

    def source_versions(self, name: str) -> tuple[SourcePackage, ...]:
        assert self.sources
        return (
            SourcePackage(name, "7.1.9-1", "linux_7.1.9.orig.tar.xz", 1, "a" * 64),
            SourcePackage(name, "7.1.13-1", "linux_7.1.13.orig.tar.xz", 1, "f" * 64),
        )

    def download(self, packages: object, into: Path, what: str) -> tuple[Path, ...]:
        (into / "usr/src").mkdir(parents=True)
        pack(self.root, into / "usr/src/linux-source-7.2.tar.xz")
        return (into / "package.deb",)

    def download_source(self, package: SourcePackage, into: Path, what: str) -> Path:
        if (self.root / package.tarball).exists():
            raise CommandError(f"404  Not Found {package.tarball}", hint="wait")
        pack(self.root, into / package.tarball)
        return into / package.tarball


def pack(root: Path, path: Path) -> None:
    if (root / "broken").exists():
        raise CommandError("cannot fetch it", hint="wait")
    with tarfile.open(path, "w:xz") as archive:
        archive.add(root / "linux", arcname="linux-source-7.2")


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "mirror"
    copy_fake(root / "linux")
    (root / "linux/.gitignore").write_text("/*\n")

    @contextmanager
    def open_apt(store: Store, progress: Progress, *, sources: bool = False) -> Iterator[FakeApt]:
        yield FakeApt(root, sources)

    def files_on_mirror(apt: FakeApt, packages: object) -> Callable[[AnyPackage], bool]:
        return lambda package: not (root / getattr(package, "tarball", "")).is_file()

    monkeypatch.setattr(module, "open_apt", open_apt)
    monkeypatch.setattr(module, "files_on_mirror", files_on_mirror)
    monkeypatch.setattr(module, "unpack", lambda package, into: None)
    return root


@pytest.mark.parametrize(
    ("version", "origin"),
    [
        ("7.2", "Debian's linux-source-7.2 7.2.13-1"),
        ("7.1", "Debian's linux 7.1.13-1, upstream's tarball without Debian's patches"),
    ],
)
def test_a_source_of_debian(version: str, origin: str, debian: Path, store: Store) -> None:
    spec = KernelSpec("build:debian", version)
    progress = Listener()
    source, state = debian_source(spec, store, progress)
    assert (state.origin, state.dirty, state.commit) == (origin, False, None)
    files = checked_out(source, state)
    assert files[HMEM] == (debian / "linux" / HMEM).read_text()
    assert set(files) >= {"Makefile", "drivers/dax/Kconfig"}
    progress.notes.clear()
    shutil.rmtree(debian)
    assert debian_source(spec, store, progress) == (source, state)
    assert progress.notes == []


def test_a_version_that_debian_does_not_have(debian: Path, store: Store) -> None:
    with pytest.raises(UsageError, match=r"no source of Linux 7\.9") as caught:
        debian_source(KernelSpec("build:debian", "7.9"), store, Listener())
    assert caught.value.hint == "the newest of each series are 7.1.13, 7.2.13"
    (debian / "linux_7.1.13.orig.tar.xz").touch()  # listed and gone
    with pytest.raises(UsageError) as caught:
        debian_source(KernelSpec("build:debian", "7.9"), store, Listener())
    assert caught.value.hint == "the newest of each series are 7.1.9, 7.2.13"


def test_a_broken_import_is_done_again(debian: Path, store: Store) -> None:
    spec = KernelSpec("build:debian", "7.2")
    (debian / "broken").touch()
    with pytest.raises(CommandError):
        debian_source(spec, store, Listener())
    (debian / "broken").unlink()
    source, state = debian_source(spec, store, Listener())
    (source.folder / "state.json").write_text(json.dumps({"tree": "1"}))
    progress = Listener()
    assert debian_source(spec, store, progress) == (source, state)
    assert "interrupted" in progress.notes[0]


def test_a_source_that_is_listed_and_not_there(debian: Path, store: Store) -> None:
    spec, progress = KernelSpec("build:debian", "7.1"), Listener()
    (debian / "linux_7.1.13.orig.tar.xz").touch()
    _, state = debian_source(spec, store, progress)
    assert state.origin.startswith("Debian's linux 7.1.9-1")
    assert "taking Linux 7.1.9" in " ".join(progress.notes)


def test_no_source_that_is_listed_is_there(debian: Path, store: Store) -> None:
    for version in ("7.1.9", "7.1.13"):
        (debian / f"linux_{version}.orig.tar.xz").touch()
    with pytest.raises(UsageError, match=r"lists sources of Linux 7\.1, and lacks") as caught:
        debian_source(KernelSpec("build:debian", "7.1"), store, Listener())
    assert caught.value.hint == (
        "the newest of each series are 7.2.13; or name a tree with build:PATH"
    )
    (debian / "linux_7.1.9.orig.tar.xz").unlink()
    assert debian_source(KernelSpec("build:debian", "7.1"), store, Listener())


def test_an_unreachable_mirror_is_queried_for_one_version(debian: Path, store: Store) -> None:
    (debian / "broken").touch()
    progress = Listener()
    with pytest.raises(CommandError, match="cannot fetch"):
        debian_source(KernelSpec("build:debian", "7.1"), store, progress)
    assert "taking" not in " ".join(progress.notes)
