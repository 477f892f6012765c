# SPDX-License-Identifier: GPL-2.0-or-later
"""The branch that nights look at, in a repository of the harness's own."""

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
    """A repository that follows a branch; the commits of all nights stay in it.

    Attributes:
        source: URL or path of the repository that is followed.
        folder: of files that nobody needs; git takes it for a tree.
    """

    source: str
    folder: Path

    @property
    def _repository(self) -> Repository:
        return Repository(self.folder / ".git")

    def fetch(self, branch: str) -> tuple[str, str]:
        """Get what the branch has now.

        Returns:
            The commit, and its subject.

        Raises:
            UsageError: there is no such repository or branch.
            InconclusiveError: the repository is elsewhere, and cannot be reached.
        """
        alternate = None
        if not is_url(self.source):
            alternate = _objects_of(Path(self.source))
        self._repository.prepare(alternate)
        self._forget_what_is_gone()
        ref = self._find(branch)
        # The user's own settings: a proxy, or a key for ssh.
        done = self._repository.git(
            *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", self.source),
            f"+{ref}:refs/heads/fetched",
            check=False,
            settings=True,
            what=f"{self.source} to be fetched",
        )
        if done.status != 0:
            raise self._error(done)
        commit = self._line("rev-parse", "--verify", "--quiet", "refs/heads/fetched^{commit}")
        if commit is None:
            raise UsageError(
                f"{branch} of {self.source} is no commit", where="--branch", hint="name a branch"
            )
        return commit, self._line("log", "-1", "--no-show-signature", "--format=%s", commit) or ""

    def keep(self, night: int, commit: str) -> None:
        """Keep the commit of a night, whatever becomes of the branch."""
        self._repository.git("update-ref", f"refs/nights/{night}", commit)

    def has(self, commit: str) -> bool:
        """Whether a commit is still there."""
        return self._line("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}") is not None

    def parent(self, commit: str) -> str | None:
        """The first parent of a commit, None where it has none."""
        return self._line("rev-parse", "--verify", "--quiet", f"{commit}^1")

    def is_ancestor(self, old: str, new: str) -> bool:
        """Whether the history of `new` has `old`."""
        done = self._repository.git("merge-base", "--is-ancestor", old, new, check=False)
        return done.status == 0

    def count(self, old: str, new: str) -> int:
        """How many commits `new` has that `old` has not."""
        return int(self._line("rev-list", "--count", new, "--not", old) or 0)

    def _forget_what_is_gone(self) -> None:
        """Drop names of commits that are no more: git fetches nothing beside them.

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
            "ls-remote", "--quiet", "--refs", self.source, check=False, settings=True,
            what=f"{self.source} to answer",
        )  # fmt: skip
        if done.status != 0:
            raise self._error(done)
        refs = [line.split("\t", 1)[1] for line in done.stdout.splitlines() if "\t" in line]
        for prefix in ("refs/heads/", "refs/remotes/", "refs/tags/", ""):
            if prefix + branch in refs:
                return prefix + branch
        names = [re.sub(r"^refs/(heads|remotes|tags)/", "", one) for one in refs]
        near = difflib.get_close_matches(branch, names, _NEAR, 0.3) or sorted(names)[:_NEAR]
        raise UsageError(
            f"there is no branch {branch} in {self.source}",
            where="--branch",
            hint="it has, among others: " + ", ".join(near) if near else "it has no branches",
        )

    def _line(self, *words: str) -> str | None:
        return self._repository.line(*words)

    def _error(self, done: Completed) -> InconclusiveError | UsageError:
        lines = [one.strip() for one in done.stderr.splitlines() if one.strip()]
        said = next((one for one in lines if one.startswith("fatal:")), "") or "".join(lines[:1])
        said = said.removeprefix("fatal: ") or f"it ended with {done.status}"
        if is_url(self.source):
            return InconclusiveError(
                f"git cannot fetch: {said}",
                where=self.source,
                hint="try it by hand with git ls-remote; is the network up?",
            )
        return UsageError(
            f"git cannot read it: {said}", where=self.source, hint="try it with git ls-remote"
        )


def night_tree(state: Path, source: str) -> NightTree:
    """The repository below a folder that follows a repository.

    Raises:
        UsageError: it is neither a URL nor a folder.
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
    """Whether a repository is somewhere else: a URL, or HOST:PATH as ssh has it."""
    return _URL.match(source) is not None and not Path(source).expanduser().exists()


def rebased(tree: NightTree, old: str, new: str, note: Callable[[str], None]) -> None:
    """Say when the branch does not have an earlier night's commit any more."""
    if old == new or tree.is_ancestor(old, new):
        return
    if tree.has(old):
        note(
            f"the branch was rebased: {old[:12]} of the last night is not in it any more. "
            "Regressions are looked for from where the two part"
        )
    else:
        note(
            f"the branch was rebased, and {old[:12]} of the last night is gone from {tree.source}: "
            "what it passed can be compared with, but not bisected from"
        )


def _objects_of(path: Path) -> Path:
    """The folder of objects of a user's repository."""
    done = ask(path, "rev-parse", "--path-format=absolute", "--git-path", "objects")
    if done.status != 0:
        said = done.stderr.strip().splitlines()
        raise UsageError(
            f"it is no git tree: {said[0] if said else 'git says nothing'}",
            where=str(path),
            hint="name a git tree of Linux, or a URL",
        )
    return Path(done.stdout.strip())
