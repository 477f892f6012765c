# SPDX-License-Identifier: GPL-2.0-or-later
"""Read a user's source tree, and keep a copy of it to build from.

No file of the user's is written. Each source has a folder in the store with a git repository that
borrows the objects of the user's, the files that are compiled, and an index of the user's files, so
that reading 90,000 of them a second time is fast.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.progress import Progress
from harness.kernels.build.git import Repository, ask

FOLDER = "sources"
USED = "used"
# The files of Linux 7.2, and their git objects where those cannot be borrowed.
SOURCE_BYTES = 2_600_000_000
_HINT = "name a git tree or the source of a kernel, as build:PATH or build:PATH@REF"

# Build products in a plain folder. Its .gitignore cannot be used: that of Debian's kernel sources
# ignores every file.
_PRODUCTS = (
    *("*.o", "*.a", "*.ko", "*.mod", "*.mod.c", "*.cmd", ".*.d", "*.order", "*.symvers"),
    *("/vmlinux*", "!/vmlinux*.lds.S", "/System.map", "/.config*", "/.git", "/.version", "/.pc"),
    *("/include/config/", "/include/generated/", "/arch/*/include/generated/"),
    *("/modules.builtin*", "/modules.nsdeps"),
)


@dataclass(frozen=True)
class SourceState:
    """The content of a source at one moment.

    Attributes:
        tree: git's hash of all its files.
        commit: the user's commit that it is based on, None for a plain folder.
        dirty: files differ from that commit.
        origin: a description of where it is from.
    """

    tree: str
    commit: str | None
    dirty: bool
    origin: str


@dataclass(frozen=True)
class SourceTree:
    """The copy of a source in the store.

    Attributes:
        name: of the folder; one process at a time may write to it, see `claimed`.
    """

    folder: Path
    name: str

    @property
    def repository(self) -> Repository:
        """The git repository, with every state that was read."""
        return Repository(self.folder / "git")

    @property
    def files(self) -> Path:
        """The folder of the files that are compiled."""
        return self.folder / "tree"

    @property
    def index(self) -> Path:
        """Git's index of `files`."""
        return self.folder / "index"

    def base_commit(self, state: SourceState) -> str:
        """Return a commit of this state, without history; always the same for one tree."""
        done = self.repository.git("commit-tree", state.tree, "-m", f"base {state.tree}")
        return done.stdout.strip()

    def check_out(self, commit: str, progress: Progress) -> None:
        """Check out a commit in `files`; unchanged files keep their times.

        The caller holds `claimed`.
        """
        before = self._checked_out()
        if before == commit:
            return
        if not self.files.exists():
            progress.note("writing out the source tree (once)")
            self.files.mkdir()
        # From a known state git checks only files that differ, otherwise every file. The old tree
        # is not named: the index has it, and git would read all trees once more.
        words = ("-m", commit) if before is not None else ("--reset", commit)
        with self.changing():
            self.index.with_suffix(".lock").unlink(missing_ok=True)
            self.repository.git(
                "read-tree", "-u", *words, files=self.files, index=self.index,
                what="the checkout of the source tree",
            )  # fmt: skip
            self.repository.git("update-ref", "--no-deref", "HEAD", commit)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Mark the content of `files` as unknown until the block ends without an error."""
        self._unfinished.touch()
        yield
        self._unfinished.unlink()

    @property
    def _unfinished(self) -> Path:
        return self.folder / "changing"

    def _checked_out(self) -> str | None:
        """Return the commit that is checked out in `files`, None where it is unknown."""
        if self._unfinished.exists() or not self.index.exists():
            return None
        head = (self.repository.folder / "HEAD").read_text().strip()
        return None if head.startswith("ref:") else head

    def restore(self, commit: str) -> None:
        """Check out a commit in `files`, and remove all other files; the caller holds `claimed`."""
        git = self.repository.git
        git("read-tree", "-u", "--reset", commit, files=self.files, index=self.index)
        git("clean", "-ffdxq", files=self.files, index=self.index)
        git("update-ref", "--no-deref", "HEAD", commit)

    @contextmanager
    def looked_at(self, store: Store, progress: Progress) -> Iterator[None]:
        """Hold the lock for reading this source into the store, or removing it."""
        with store.lock(f"look-{self.name}", what="reading this tree", progress=progress):
            yield

    def mark_used(self, store: Store, progress: Progress) -> None:
        """Record a use of this source, so that it is not pruned before it is built."""
        if not os.access(self.folder, os.W_OK):
            return  # a read-only store
        with self.looked_at(store, progress), suppress(FileNotFoundError):
            (self.folder / USED).touch()

    @contextmanager
    def claimed(self, store: Store, progress: Progress) -> Iterator[None]:
        """Hold the lock for writing to the files of this source."""
        with store.lock(f"source-{self.name}", what="building from this tree", progress=progress):
            yield


def source_of(path: Path, store: Store) -> SourceTree:
    """Return the store's copy of the source at a path; it may be empty."""
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return SourceTree(store.folder(FOLDER) / name, name)


def look(
    value: str, store: Store, progress: Progress, where: str
) -> tuple[SourceTree, SourceState]:
    """Find the source that a SPEC names, and read its current content into the store.

    Args:
        value: `PATH` or `PATH@REF`.
        progress: reports that a first read takes a while.
        where: the SPEC, for messages.

    Raises:
        UsageError: there is no such tree or REF, or it is not the source of a kernel.
        CommandError: git failed.
    """
    path, ref = split_ref(value)
    if not path.is_dir():
        raise UsageError(f"there is no folder {path}", where=where, hint=_HINT)
    path = path.resolve()
    source = source_of(path, store)
    source.folder.mkdir(exist_ok=True)
    source.mark_used(store, progress)
    theirs = _ask_repository(path, where)
    source.repository.prepare(theirs.objects if theirs else None)
    origin = source.folder / "origin"
    if not origin.exists():
        origin.write_text(f"{path}\n")
    if ref is not None:
        if theirs is None:
            raise UsageError(f"{path} is not the top of a git tree", where=where, hint=_HINT)
        return source, _look_at_ref(source, path, ref, where)
    if not (path / "Kconfig").is_file() or not (path / "Makefile").is_file():
        raise UsageError(f"{path} is not the source of a kernel", where=where, hint=_HINT)
    return source, _look_at_files(source, path, theirs, store, progress)


def split_ref(value: str) -> tuple[Path, str | None]:
    """Split `PATH@REF`; an @ in the path of an existing folder is part of the path."""
    at = -1
    while (at := value.find("@", at + 1)) >= 0:
        path = Path(value[:at] or ".").expanduser()
        if path.is_dir() and not Path(value).expanduser().is_dir():
            return path.absolute(), value[at + 1 :]
    return Path(value).expanduser().absolute(), None


@dataclass(frozen=True)
class _TheirRepository:
    """The user's repository, where a path is the top of its tree."""

    objects: Path
    excludes: Path
    commit: str | None
    tree: str | None


def _ask_repository(path: Path, where: str) -> _TheirRepository | None:
    """Query git about a path with one command; return None for a plain folder."""
    done = ask(
        path, "rev-parse", "--path-format=absolute", "--git-path", "objects",
        "--git-path", "info/exclude", "--is-bare-repository", "--show-cdup",
        "HEAD", "HEAD^{tree}",
    )  # fmt: skip
    if "dubious ownership" in done.stderr:
        raise UsageError(
            f"git does not trust {path}: it belongs to another user",
            where=where,
            hint=f"git config --global --add safe.directory {path}",
        )
    objects, excludes, bare, up, *head = (*done.stdout.split("\n"), "", "", "")
    # Without any commit git names HEAD itself, and fails.
    commit, tree = head[:2] if done.status == 0 else (None, None)
    if not objects or (bare != "true" and up != ""):
        return None
    return _TheirRepository(Path(objects), Path(excludes), commit, tree)


def _look_at_ref(source: SourceTree, path: Path, ref: str, where: str) -> SourceState:
    commit = commit_of(path, ref, where)
    tree = source.repository.line("rev-parse", "--verify", "-q", f"{commit}^{{tree}}")
    if tree is None:
        raise _no_such(path, ref, where)
    return SourceState(tree, commit, False, f"{path}@{ref}")


def commit_of(path: Path, ref: str, where: str) -> str:
    """Return the commit that a REF of a user's git tree names now.

    Raises:
        UsageError: the tree has no such REF.
    """
    done = ask(path, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if done.status != 0:
        raise _no_such(path, ref, where)
    return done.stdout.split()[-1]


def _no_such(path: Path, ref: str, where: str) -> UsageError:
    import difflib

    names = ask(path, "for-each-ref", "--format=%(refname:short)").stdout.split()
    close = difflib.get_close_matches(ref, names, n=3, cutoff=0.5)
    hint = f"close names: {', '.join(close)}" if close else "fetch it, or run git branch -a"
    return UsageError(f"the git tree {path} has no {ref!r}", where=where, hint=hint)


def _look_at_files(
    source: SourceTree,
    path: Path,
    theirs: _TheirRepository | None,
    store: Store,
    progress: Progress,
) -> SourceState:
    """Read the files of a folder, tracked by git or not."""
    index = source.folder / "seen"
    with source.looked_at(store, progress):
        Path(f"{index}.lock").unlink(missing_ok=True)
        if not index.exists():
            progress.note(f"reading the files of {path} (once)")
            if theirs is not None and theirs.tree is not None:
                source.repository.git("read-tree", theirs.tree, index=index)
        _add_files(source, path, theirs, index)
        tree = _tree_of(source, index)
    if theirs is None:
        return SourceState(tree, None, False, str(path))
    return SourceState(tree, theirs.commit, tree != theirs.tree, str(path))


def _add_files(
    source: SourceTree, path: Path, theirs: _TheirRepository | None, index: Path
) -> None:
    """Update an index with a folder's files."""
    git = source.repository.git
    if theirs is None:
        excludes = [f"--exclude={pattern}" for pattern in _PRODUCTS]
        new = git("ls-files", "-z", "--others", *excludes, files=path, index=index).stdout
        if new:
            words = ("update-index", "--add", "--replace", "-z", "--stdin")
            git(*words, files=path, index=index, stdin=new)
        git("add", "--update", files=path, index=index)
        return
    # Files that the user's git ignores are not part of the source.
    ours = source.repository.folder / "info" / "exclude"
    text = theirs.excludes.read_bytes() if theirs.excludes.is_file() else b""
    if not ours.exists() or ours.read_bytes() != text:
        ours.write_bytes(text)
    git("add", "--all", files=path, index=index, settings=True)


def _tree_of(source: SourceTree, index: Path) -> str:
    """Return the tree of an index; it is kept until git writes the index again."""
    memory = index.with_suffix(".tree")
    status = index.stat()
    seal = f"{status.st_ino} {status.st_mtime_ns} {status.st_size}"
    try:
        known, tree = memory.read_text().split("\n")
        if known == seal:
            return tree
    except (FileNotFoundError, ValueError):
        pass
    tree = source.repository.git("write-tree", index=index).stdout.strip()
    # write-tree may have written the index, with a cache of its trees.
    status = index.stat()
    memory.write_text(f"{status.st_ino} {status.st_mtime_ns} {status.st_size}\n{tree}")
    return tree
