# SPDX-License-Identifier: GPL-2.0-or-later
"""What lies between two commits of a user's git tree, or between the patches of a series.

The user's repository is only asked; nothing in it is written, no ref, no index, no bisect state.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.bisect.search import Commit
from harness.core.errors import UsageError
from harness.kernels.build.git import ask
from harness.kernels.build.series import Series, subject_of
from harness.kernels.build.tree import commit_of
from harness.scenario.kernel_request import KernelRequest

# The history of Linux from one long-term release to the next has more than 100,000 commits.
_SECONDS = 600.0
_SHORT = 12


@dataclass(frozen=True)
class GitHistory:
    """The history of a git tree.

    Attributes:
        path: the user's tree.
        request: what is asked of the kernels besides where they come from.
    """

    path: Path
    request: KernelRequest

    def find(self, ref: str, option: str) -> Commit:
        """The commit that a REF stands for now.

        Args:
            ref: as the user names it.
            option: that it was named with, for messages.

        Raises:
            UsageError: there is none.
        """
        return self.commit(commit_of(self.path, ref, option))

    def commit(self, name: str) -> Commit:
        """A commit with its subject."""
        done = ask(self.path, "log", "-1", "--no-show-signature", "--format=%s", name)
        subject = done.stdout.strip() if done.status == 0 else ""
        return Commit(name, name[:_SHORT], subject)

    def kernel(self, commit: Commit) -> KernelRequest:
        """The kernel of a commit."""
        return replace(self.request, spec=f"build:{self.path}@{commit.name}")

    def merge_bases(self, one: Commit, other: Commit) -> tuple[str, ...]:
        """The names of the best common ancestors of two commits; none of unrelated ones."""
        done = ask(self.path, "merge-base", "--all", one.name, other.name, seconds=_SECONDS)
        if done.status not in (0, 1):
            raise self._error(done.stderr)
        return tuple(done.stdout.split())

    def order(self, new: str, olds: Sequence[str]) -> tuple[str, ...]:
        """The names of the commits of `new` that none of `olds` has, as `choose` wants them."""
        names = self._list("--bisect-all", new, "--not", *olds)
        # At a distance of 0 there may be others beside it.
        return (*(name for name in names if name != new), new)

    def oldest_first(self, new: str, olds: Sequence[str]) -> tuple[str, ...]:
        """The same commits as of `order`, each behind its ancestors."""
        return self._list("--topo-order", "--reverse", new, "--not", *olds)

    def _list(self, *words: str) -> tuple[str, ...]:
        done = ask(self.path, "rev-list", *words, seconds=_SECONDS)
        if done.status != 0:
            raise self._error(done.stderr)
        return tuple(line.split()[0] for line in done.stdout.splitlines())

    def _error(self, said: str) -> UsageError:
        line = next((one for one in said.splitlines() if one.strip()), "git failed")
        return UsageError(
            f"git cannot read the history: {line}",
            where=str(self.path),
            hint="see git fsck; a shallow clone needs git fetch --unshallow",
        )


@dataclass(frozen=True)
class SeriesHistory:
    """The states of a source with more and more patches of a series.

    Attributes:
        series: the patches.
        base: the source without them, for people.
        request: the kernel with all of them.
    """

    series: Series
    base: str
    request: KernelRequest

    def commit(self, name: str) -> Commit:
        """The state with this many patches."""
        number = int(name)
        if number == 0:
            return Commit(name, "the base", self.base)
        short = f"patch {number} of {len(self.series.patches)}"
        return Commit(name, short, _without_tag(subject_of(self.series.patches[number - 1])))

    def kernel(self, commit: Commit) -> KernelRequest:
        """The kernel of a state."""
        return replace(self.request, upto=int(commit.name))

    def merge_bases(self, one: Commit, other: Commit) -> tuple[str, ...]:
        """The earlier of two states."""
        return (min(one.name, other.name, key=int),)

    def order(self, new: str, olds: Sequence[str]) -> tuple[str, ...]:
        """The names of the states up to `new` and behind `olds`, as `choose` wants them."""
        first, last = max(map(int, olds)) + 1, int(new)
        inner = sorted(range(first, last), key=lambda one: -min(one - first + 1, last - one))
        return (*map(str, inner), new)

    def oldest_first(self, new: str, olds: Sequence[str]) -> tuple[str, ...]:
        """The same states as of `order`, in their order."""
        return tuple(map(str, range(max(map(int, olds)) + 1, int(new) + 1)))


def _without_tag(subject: str) -> str:
    return re.sub(r"^\[[^\]]*\]\s*", "", subject)
