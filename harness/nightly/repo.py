# SPDX-License-Identifier: GPL-2.0-or-later
"""Follow a branch in a git repository of the harness; the commits of all nights stay in it."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import InconclusiveError, UsageError
from harness.core.process import Completed
from harness.kernels.build.git import Repository, ask

FOLDER = "trees"
_URL = re.compile(r"[a-z][a-z0-9+.-]*://|[^/\s]+@?[^/\s:]*:(?!//)", re.I)
_NEAR = 5


@dataclass(frozen=True)
class NightTree:
    """A repository that follows a branch.

    Attributes:
        source: URL or path of the repository that is followed.
        folder: an empty working tree with the repository; `build:FOLDER@COMMIT` builds from it.
    """

    source: str
    folder: Path

    @property
    def _repository(self) -> Repository:
        return Repository(self.folder / ".git")

    def fetch(self, branch: str) -> tuple[str, str]:
        """Fetch a branch; its commit and the subject of that.

        Raises:
            UsageError: the repository or the branch does not exist.
            InconclusiveError: the repository is remote and cannot be reached.
        """
        alternate = None if is_url(self.source) else _objects_of(Path(self.source))
        self._repository.prepare(alternate)
        self._delete_broken_refs()
        ref = self._find(branch)
        # With the user's settings: a proxy, or a key for ssh.
        done = self._repository.git(
            *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", self.source),
            f"+{ref}:refs/heads/fetched",
            check=False,
            settings=True,
            what=f"git fetch from {self.source}",
        )
        if done.status != 0:
            raise self._error(done)
        commit = self._commit("refs/heads/fetched")
        if commit is None:
            raise UsageError(
                f"{branch} of {self.source} is not a commit",
                where="--branch",
                hint="name a branch",
            )
        return commit, self._line("log", "-1", "--no-show-signature", "--format=%s", commit) or ""

    def keep(self, night: int, commit: str) -> None:
        """Keep the commit of a night even if the branch drops it."""
        self._repository.git("update-ref", f"refs/nights/{night}", commit)

    def has(self, commit: str) -> bool:
        """True if a commit still exists."""
        return self._commit(commit) is not None

    def parent(self, commit: str) -> str | None:
        """The first parent of a commit, None for a root."""
        return self._commit(f"{commit}^1")

    def is_ancestor(self, old: str, new: str) -> bool:
        """True if `old` is in the history of `new`."""
        done = self._repository.git("merge-base", "--is-ancestor", old, new, check=False)
        return done.status == 0

    def count(self, old: str, new: str) -> int:
        """The number of commits in the history of `new` that are not in that of `old`."""
        return int(self._line("rev-list", "--count", new, "--not", old) or 0)

    def _delete_broken_refs(self) -> None:
        """Delete refs to missing commits, with which git fetch fails.

        The objects of a local repository are borrowed, and its owner may have pruned them.
        """
        git = self._repository.git
        refs = git("for-each-ref", "--format=%(objectname) %(refname)", check=False).stdout
        for commit, name in (line.split(" ", 1) for line in refs.splitlines()):
            if not self.has(commit):
                git("update-ref", "-d", name)

    def _find(self, branch: str) -> str:
        """The full name of a branch in the repository that is followed."""
        done = self._repository.git(
            *("ls-remote", "--quiet", "--refs", self.source),
            check=False,
            settings=True,
            what=f"git ls-remote of {self.source}",
        )
        if done.status != 0:
            raise self._error(done)
        refs = [line.split("\t", 1)[1] for line in done.stdout.splitlines() if "\t" in line]
        for prefix in ("refs/heads/", "refs/remotes/", "refs/tags/", ""):
            if prefix + branch in refs:
                return prefix + branch
        names = [re.sub(r"^refs/(heads|remotes|tags)/", "", ref) for ref in refs]
        near = difflib.get_close_matches(branch, names, _NEAR, 0.3) or sorted(names)[:_NEAR]
        raise UsageError(
            f"there is no branch {branch} in {self.source}",
            where="--branch",
            hint=f"branches there: {', '.join(near)}" if near else "it has no branches",
        )

    def _commit(self, name: str) -> str | None:
        return self._line("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")

    def _line(self, *words: str) -> str | None:
        return self._repository.line(*words)

    def _error(self, done: Completed) -> InconclusiveError | UsageError:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        fatal = next((line for line in lines if line.startswith("fatal:")), "") or "".join(
            lines[:1]
        )
        message = fatal.removeprefix("fatal: ") or f"exit status {done.status}"
        if is_url(self.source):
            return InconclusiveError(
                f"git cannot fetch: {message}",
                where=self.source,
                hint="check the network, and try git ls-remote by hand",
            )
        return UsageError(
            f"git cannot read it: {message}", where=self.source, hint="try git ls-remote by hand"
        )


def night_tree(state: Path, source: str) -> NightTree:
    """The repository below the state folder that follows a repository.

    Raises:
        UsageError: the source is neither a URL nor a folder.
    """
    if not is_url(source):
        path = Path(source).expanduser().absolute()
        if not path.is_dir():
            raise UsageError(
                f"there is no folder {path}",
                where="--tree",
                hint="name a git tree of Linux, or a URL such as https://HOST/PATH.git",
            )
        source = str(path.resolve())
    name = hashlib.sha256(source.encode()).hexdigest()[:16]
    return NightTree(source, state / FOLDER / name)


def is_url(source: str) -> bool:
    """True if a repository is a URL, or HOST:PATH as ssh has it, and not a local path."""
    return _URL.match(source) is not None and not Path(source).expanduser().exists()


def note_rebase(tree: NightTree, old: str, new: str, note: Callable[[str], None]) -> None:
    """Print a note if the branch no longer contains the commit of the last night."""
    if old == new or tree.is_ancestor(old, new):
        return
    if tree.has(old):
        note(
            f"the branch was rebased: it no longer contains {old[:12]} of the last night. "
            "Regressions are bisected from the merge base"
        )
    else:
        note(
            f"the branch was rebased, and {old[:12]} of the last night is gone from {tree.source}: "
            "results are compared with that night, but not bisected from it"
        )


def _objects_of(path: Path) -> Path:
    """The folder of objects of a user's repository."""
    done = ask(path, "rev-parse", "--path-format=absolute", "--git-path", "objects")
    if done.status != 0:
        lines = done.stderr.strip().splitlines()
        raise UsageError(
            f"not a git tree: {lines[0] if lines else f'exit status {done.status}'}",
            where=str(path),
            hint="name a git tree of Linux, or a URL",
        )
    return Path(done.stdout.strip())
