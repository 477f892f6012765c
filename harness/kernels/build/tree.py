# SPDX-License-Identifier: GPL-2.0-or-later
"""Sources of a kernel: what exactly a user's tree has now, and a copy of it to build from.

Nothing of the user's is written. Each source has a folder in the store with a git repository that
borrows the objects of the user's, the files that are compiled, and an index that remembers which
of the user's files were seen, so that a second look at 90,000 of them takes no time.
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
# The files of Linux 7.2, and git's objects of them where they cannot be borrowed.
SOURCE_BYTES = 2_600_000_000
_HINT = "name a git tree or the source of a kernel, as build:PATH or build:PATH@REF"

# A plain folder may have been built in, and its .gitignore cannot be asked: that of Debian's kernel
# sources ignores every file.
_PRODUCTS = (
    *("*.o", "*.a", "*.ko", "*.mod", "*.mod.c", "*.cmd", ".*.d", "*.order", "*.symvers"),
    *("/vmlinux*", "!/vmlinux*.lds.S", "/System.map", "/.config*", "/.git", "/.version", "/.pc"),
    *("/include/config/", "/include/generated/", "/arch/*/include/generated/"),
    *("/modules.builtin*", "/modules.nsdeps"),
)


@dataclass(frozen=True)
class SourceState:
    """What a source has, at one moment.

    Attributes:
        tree: git's hash of all its files.
        commit: the commit of the user's that it was taken from, None for a plain folder.
        dirty: whether files differ from that commit.
        origin: where it is from, for people.
    """

    tree: str
    commit: str | None
    dirty: bool
    origin: str


@dataclass(frozen=True)
class SourceTree:
    """The harness's own copy of a source.

    Attributes:
        folder: in the store.
        name: of the folder; one process at a time may write to it, see `claimed`.
        repository: knows every state that was looked at.
    """

    folder: Path
    name: str

    @property
    def repository(self) -> Repository:
        """The git repository, without files."""
        return Repository(self.folder / "git")

    @property
    def files(self) -> Path:
        """The folder of files that is compiled from."""
        return self.folder / "tree"

    @property
    def index(self) -> Path:
        """Git's index of `files`."""
        return self.folder / "index"

    def base_commit(self, state: SourceState) -> str:
        """A commit of exactly this state, without history; always the same for one tree."""
        done = self.repository.git("commit-tree", state.tree, "-m", f"base {state.tree}")
        return done.stdout.strip()

    def check_out(self, commit: str, progress: Progress) -> None:
        """Make `files` what a commit has; files that are the same keep their times.

        Hold `claimed` around it.
        """
        before = self._checked_out()
        if before == commit:
            return
        if not self.files.exists():
            progress.note("writing out the source tree (once)")
            self.files.mkdir()
        # From a known state only what differs is looked at, else every file. The tree of before
        # is not named: the index has it, and git would go through all trees once more.
        words = ("-m", commit) if before is not None else ("--reset", commit)
        with self.changing():
            self.index.with_suffix(".lock").unlink(missing_ok=True)
            self.repository.git(
                "read-tree", "-u", *words, files=self.files, index=self.index,
                what="the source tree to be written out",
            )  # fmt: skip
            self.repository.git("update-ref", "--no-deref", "HEAD", commit)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Until the block ends well, nobody relies on what `files` has."""
        self._unfinished.touch()
        yield
        self._unfinished.unlink()

    @property
    def _unfinished(self) -> Path:
        return self.folder / "changing"

    def _checked_out(self) -> str | None:
        """The commit that `files` has, None where nobody knows."""
        if self._unfinished.exists() or not self.index.exists():
            return None
        head = (self.repository.folder / "HEAD").read_text().strip()
        return None if head.startswith("ref:") else head

    def restore(self, commit: str) -> None:
        """Make `files` what a commit has, whatever has become of them; hold `claimed` around it."""
        git = self.repository.git
        git("read-tree", "-u", "--reset", commit, files=self.files, index=self.index)
        git("clean", "-ffdxq", files=self.files, index=self.index)
        git("update-ref", "--no-deref", "HEAD", commit)

    @contextmanager
    def looked_at(self, store: Store, progress: Progress) -> Iterator[None]:
        """Be the only process that looks at this source, or removes it for want of use."""
        with store.lock(f"look-{self.name}", what="looking at this tree", progress=progress):
            yield

    def mark_used(self, store: Store, progress: Progress) -> None:
        """Say that it is about to be built from: who prunes then leaves it alone for a while."""
        if not os.access(self.folder, os.W_OK):
            return  # a store that is only read
        with self.looked_at(store, progress), suppress(FileNotFoundError):
            (self.folder / USED).touch()

    @contextmanager
    def claimed(self, store: Store, progress: Progress) -> Iterator[None]:
        """Be the only process that writes to the files of this source."""
        with store.lock(f"source-{self.name}", what="building from this tree", progress=progress):
            yield


def source_of(path: Path, store: Store) -> SourceTree:
    """The store's copy of the source at a path; it may still be empty."""
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return SourceTree(store.folder(FOLDER) / name, name)


def look(
    value: str, store: Store, progress: Progress, where: str
) -> tuple[SourceTree, SourceState]:
    """Find the source that a SPEC names and say what it has now.

    Args:
        value: `PATH` or `PATH@REF`.
        store: where the copy is kept.
        progress: hears that a first look takes a while.
        where: the SPEC, for messages.

    Raises:
        UsageError: there is no such tree or REF, or it is no kernel.
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
    """Path and REF; an @ that belongs to the path of an existing folder separates nothing."""
    at = -1
    while (at := value.find("@", at + 1)) >= 0:
        path = Path(value[:at] or ".").expanduser()
        if path.is_dir() and not Path(value).expanduser().is_dir():
            return path.absolute(), value[at + 1 :]
    return Path(value).expanduser().absolute(), None


@dataclass(frozen=True)
class _TheirRepository:
    """The repository of the user's, where a path is the top of its tree."""

    objects: Path
    excludes: Path
    commit: str | None
    tree: str | None


def _ask_repository(path: Path, where: str) -> _TheirRepository | None:
    """What git says about a path in one go, None for a plain folder."""
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
    """The commit that a REF of a user's git tree stands for now.

    Raises:
        UsageError: there is none.
    """
    done = ask(path, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if done.status != 0:
        raise _no_such(path, ref, where)
    return done.stdout.split()[-1]


def _no_such(path: Path, ref: str, where: str) -> UsageError:
    import difflib

    names = ask(path, "for-each-ref", "--format=%(refname:short)").stdout.split()
    close = difflib.get_close_matches(ref, names, n=3, cutoff=0.5)
    hint = f"close names: {', '.join(close)}" if close else "fetch it, or see git branch -a"
    return UsageError(f"the git tree {path} has no {ref!r}", where=where, hint=hint)


def _look_at_files(
    source: SourceTree,
    path: Path,
    theirs: _TheirRepository | None,
    store: Store,
    progress: Progress,
) -> SourceState:
    """The state of a folder's files, whether git knows them or not."""
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
    """Bring an index up to date with a folder's files."""
    git = source.repository.git
    if theirs is None:
        excludes = [f"--exclude={pattern}" for pattern in _PRODUCTS]
        new = git("ls-files", "-z", "--others", *excludes, files=path, index=index).stdout
        if new:
            words = ("update-index", "--add", "--replace", "-z", "--stdin")
            git(*words, files=path, index=index, stdin=new)
        git("add", "--update", files=path, index=index)
        return
    # What the user's git ignores is not part of the source.
    ours = source.repository.folder / "info" / "exclude"
    text = theirs.excludes.read_bytes() if theirs.excludes.is_file() else b""
    if not ours.exists() or ours.read_bytes() != text:
        ours.write_bytes(text)
    git("add", "--all", files=path, index=index, settings=True)


def _tree_of(source: SourceTree, index: Path) -> str:
    """The tree of an index, remembered as long as git does not write the index again."""
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
    # write-tree may have written the index, with what it found out about its trees.
    status = index.stat()
    memory.write_text(f"{status.st_ino} {status.st_mtime_ns} {status.st_size}\n{tree}")
    return tree
