# SPDX-License-Identifier: GPL-2.0-or-later
"""Git repositories of the harness's own, which borrow the objects of the user's."""

from __future__ import annotations

from pathlib import Path

from harness.core.deadline import Deadline
from harness.core.process import Completed, find_program, run

_SECONDS = 1800.0
GIT_HINT = "install git; on Debian: apt-get install git"

# Commits made here depend on nothing but what goes into them.
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
    """A repository without a folder of files of its own.

    Args:
        folder: the repository's, made when it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self, alternate: Path | None = None) -> None:
        """Make the repository, or mend one whose making was cut short.

        Args:
            alternate: an object folder of another repository, which is only read.
        """
        for name in ("objects/info", "refs/heads", "info"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        wanted = {"config": _CONFIG, "HEAD": "ref: refs/heads/base\n"}
        if alternate is not None:
            wanted["objects/info/alternates"] = f"{alternate}\n"
        for name, text in wanted.items():
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
            words: the command.
            files: the folder of files that it works on.
            index: the index file that it uses.
            check: raise CommandError when it fails.
            stdin: for its standard input.
            settings: let the user's own settings count, for what is ignored.
            what: what is awaited, for the deadline.
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
        """What git prints, None when it fails."""
        done = self.git(*words, check=False)
        return done.stdout.strip() if done.status == 0 else None


def ask(folder: Path, *words: str, seconds: float = 60.0) -> Completed:
    """Ask the repository of a user something; nothing in it is written.

    Args:
        folder: the top of its tree.
        words: the command.
        seconds: how long that may take.
    """
    deadline = Deadline(seconds, f"git {words[0]} in {folder}", hint="is the disk very slow?")
    env = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    argv = [git_program(), "-C", str(folder), *words]
    return run(argv, deadline=deadline, env=env, check=False)


def git_program() -> str:
    """The git on PATH.

    Raises:
        UsageError: there is none.
    """
    return str(find_program("git", hint=GIT_HINT))
