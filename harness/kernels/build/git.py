# SPDX-License-Identifier: GPL-2.0-or-later
"""Private git repositories, which borrow the objects of the user's."""

from __future__ import annotations

from pathlib import Path

from harness.core.deadline import Deadline
from harness.core.process import Completed, find_program, run

_SECONDS = 1800.0
GIT_HINT = "install git; on Debian: apt-get install git"

# Commits made here have the same hash for the same content.
_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_AUTHOR_NAME": "harness",
    "GIT_AUTHOR_EMAIL": "harness@localhost",
    "GIT_AUTHOR_DATE": "1000000000 +0000",
    "GIT_COMMITTER_NAME": "harness",
    "GIT_COMMITTER_EMAIL": "harness@localhost",
    "GIT_COMMITTER_DATE": "1000000000 +0000",
}
_NO_SETTINGS = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
_CONFIG = """\
[core]
\trepositoryformatversion = 0
\tbare = false
\thooksPath = /dev/null
\tautocrlf = false
\tlooseCompression = 1
[gc]
\tauto = 0
[advice]
\tdetachedHead = false
\tmergeConflict = false
\tamWorkDir = false
[am]
\tthreeWay = true
"""


class Repository:
    """A repository without a work tree."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self, alternate: Path | None = None) -> None:
        """Create the repository, or repair one whose creation was interrupted.

        Args:
            alternate: an object folder of another repository, which is only read.
        """
        for name in ("objects/info", "refs/heads", "info"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        texts = {"config": _CONFIG, "HEAD": "ref: refs/heads/base\n"}
        if alternate is not None:
            texts["objects/info/alternates"] = f"{alternate}\n"
        for name, text in texts.items():
            path = self.folder / name
            if not path.exists() or (name != "HEAD" and path.read_text() != text):
                path.write_text(text)

    def git(
        self,
        *words: str,
        files: Path | None = None,
        index: Path | None = None,
        check: bool = True,
        stdin: str | bytes | None = None,
        settings: bool = False,
        what: str = "git",
    ) -> Completed:
        """Run git here.

        Args:
            files: the work tree.
            index: the index file.
            check: raise CommandError when it fails.
            settings: use the user's settings, for ignored files.
            what: the awaited event, for the deadline.
        """
        env = _ENVIRONMENT | {"GIT_DIR": str(self.folder)} | ({} if settings else _NO_SETTINGS)
        if files is not None:
            env["GIT_WORK_TREE"] = str(files)
        if index is not None:
            env["GIT_INDEX_FILE"] = str(index)
        argv = [git_program(), *words]
        deadline = Deadline(_SECONDS, what, hint="is the disk very slow?")
        return run(argv, deadline=deadline, env=env, cwd=files, stdin=stdin, check=check)

    def line(self, *words: str) -> str | None:
        """Return the output of git, None when it fails."""
        done = self.git(*words, check=False)
        return done.stdout.strip() if done.status == 0 else None


def ask(folder: Path, *words: str, seconds: float = 60.0) -> Completed:
    """Run a git command in a repository of the user's; nothing in it is written.

    Args:
        folder: the top of its tree.
        seconds: the most time that it may take.
    """
    deadline = Deadline(seconds, f"git {words[0]} in {folder}", hint="is the disk very slow?")
    env = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    argv = [git_program(), "-C", str(folder), *words]
    return run(argv, deadline=deadline, env=env, check=False)


def git_program() -> str:
    """Return the git on PATH.

    Raises:
        UsageError: git is not installed.
    """
    return str(find_program("git", hint=GIT_HINT))
