# SPDX-License-Identifier: GPL-2.0-or-later
"""The commits to bisect over: those between two of a git tree, or the patches of a series."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.progress import Progress
from harness.kernels.build.apply_series import series_commit
from harness.kernels.build.series import Series, read_series, subject_of
from harness.kernels.build.tree import SourceState, SourceTree, look
from harness.kernels.debian.source import debian_source
from harness.kernels.spec import KernelSpec
from harness.scenario.kernel_request import KernelRequest

_DISTRIBUTION = "debian:"
_SHORT = 12
_TAG = re.compile(r"^\[[^\]]*\]\s*")


@dataclass(frozen=True)
class RangeOptions:
    """The ends of a bisection, as a user names them.

    Attributes:
        tree: path of a git tree; with a series also `debian:VERSION`.
        good: a REF, or None.
        bad: a REF, or None.
        kernel: the configurations, series and compiler of every build; its SPEC is not used.
        first_good: look for the fix; `bad` is the older end.
    """

    tree: str
    good: str | None
    bad: str | None
    kernel: KernelRequest
    first_good: bool = False


@dataclass(frozen=True)
class Commit:
    """A commit of a git tree, or a source with the first patches of a series.

    Attributes:
        hash: of the commit, in the store's repository of the source.
        short: its name for people, such as `3f2a91c04b7d` or `patch 3 of 8`.
        subject: the first line of its message.
        patches: the number of patches applied; None for a commit of the user's tree.
    """

    hash: str
    short: str
    subject: str
    patches: int | None = None

    @property
    def name(self) -> str:
        """The whole hash, or the number of patches."""
        return self.hash if self.patches is None else str(self.patches)


@dataclass(frozen=True)
class CommitRange:
    """Two commits, and the repository that has all commits between them.

    Attributes:
        good: the good end.
        bad: the bad end.
        first_good: the bad end is the older one, and its fix is looked for.
        source: the store's copy of the source; its repository has the commits.
        tree: the user's git tree, or None.
        request: the kernel of every commit, apart from its REF or its number of patches.
        series: the commits of a series by hash.
    """

    good: Commit
    bad: Commit
    first_good: bool
    source: SourceTree
    tree: Path | None
    request: KernelRequest
    series: Mapping[str, Commit] = field(default_factory=dict)

    @property
    def old(self) -> Commit:
        """The older end."""
        return self.bad if self.first_good else self.good

    @property
    def new(self) -> Commit:
        """The newer end, which has the change that is looked for."""
        return self.good if self.first_good else self.bad

    def commit(self, name: str) -> Commit:
        """The commit with this hash."""
        return self.series.get(name) or _commit(self.source, name)

    def kernel(self, commit: Commit) -> KernelRequest:
        """The kernel of a commit."""
        if commit.patches is not None:
            return replace(self.request, upto=commit.patches)
        return replace(self.request, spec=f"build:{self.tree}@{commit.hash}")


def find_range(options: RangeOptions, store: Store, progress: Progress) -> CommitRange:
    """Find both ends, and apply the series if there is one.

    Raises:
        UsageError: the tree, a commit or the series does not exist, or an end is not given.
        UnbuildableError: a patch does not apply.
    """
    if options.kernel.series is not None:
        return _series_range(options, read_series(options.kernel.series), store, progress)
    if _is_distribution(options.tree):
        hint = "name a git tree, or the patches to bisect over with --series"
        raise UsageError(f"{options.tree} has no history", where="--tree", hint=hint)
    for option, ref in (("--good", options.good), ("--bad", options.bad)):
        if ref is None:
            hint = "name a commit that is good and one that is bad, with --good and --bad"
            raise UsageError(f"{option} is not given", hint=hint)
    path = _folder(options.tree)
    source, at_good = look(f"{path}@{options.good}", store, progress, f"--good {options.good}")
    _, at_bad = look(f"{path}@{options.bad}", store, progress, f"--bad {options.bad}")
    good, bad = (_commit(source, str(state.commit)) for state in (at_good, at_bad))
    return CommitRange(good, bad, options.first_good, source, path, options.kernel)


def _series_range(
    options: RangeOptions, series: Series, store: Store, progress: Progress
) -> CommitRange:
    """Make a commit of each patch, on top of the older end."""
    ends = (("--good", options.good), ("--bad", options.bad))
    (older, base), (newer, tip) = reversed(ends) if options.first_good else ends
    if tip is not None:
        raise UsageError(
            f"{newer} is the source with the whole series, and cannot be given",
            where=f"{newer} {tip}",
            hint=f"leave it out; {older} names the commit that the series is for",
        )
    if _is_distribution(options.tree):
        if base is not None:
            hint = f"leave {older} out: the patches go on top of the distribution's source"
            raise UsageError(f"{options.tree} has no commits", where=f"{older} {base}", hint=hint)
        name = KernelSpec("build:debian", options.tree.removeprefix(_DISTRIBUTION))
        source, state = debian_source(name, store, progress)
        spec, subject = str(name), options.tree
    else:
        path = _folder(options.tree)
        where = f"{older} {base}" if base else "--tree"
        source, state = look(f"{path}@{base or 'HEAD'}", store, progress, where)
        spec = f"build:{path}@{state.commit}"
        subject = _commit(source, str(state.commit)).subject
    request = replace(options.kernel, spec=spec, upto=None)
    with source.looked_at(store, progress):
        commits = _series_commits(source, state, series, subject, progress)
    good, bad = commits[0], commits[-1]
    if options.first_good:
        good, bad = bad, good
    # A patch that changes nothing has the commit of the one before it.
    by_hash = {commit.hash: commit for commit in reversed(commits)}
    return CommitRange(good, bad, options.first_good, source, None, request, by_hash)


def _series_commits(
    source: SourceTree, state: SourceState, series: Series, subject: str, progress: Progress
) -> list[Commit]:
    """The commits of the base and of every patch."""
    count = len(series.patches)
    series_commit(source, state, series, progress)
    names = [series_commit(source, state, series.upto(n), progress) for n in range(count + 1)]
    base, *tips = names
    return [
        Commit(base, "the base", subject, 0),
        *(
            Commit(name, f"patch {number} of {count}", _TAG.sub("", subject_of(patch)), number)
            for number, (name, patch) in enumerate(zip(tips, series.patches, strict=True), start=1)
        ),
    ]


def _commit(source: SourceTree, name: str) -> Commit:
    words = ("log", "--no-walk", "--no-show-signature", "--format=%s", name)
    return Commit(name, name[:_SHORT], source.repository.line(*words) or "")


def _is_distribution(tree: str) -> bool:
    return tree.startswith(_DISTRIBUTION) and not Path(tree).exists()


def _folder(tree: str) -> Path:
    path = Path(tree).expanduser().absolute()
    if not path.is_dir():
        hint = "name a git tree of Linux"
        raise UsageError(f"there is no folder {path}", where="--tree", hint=hint)
    return path.resolve()
