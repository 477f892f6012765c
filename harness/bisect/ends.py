# SPDX-License-Identifier: GPL-2.0-or-later
"""What a bisection is asked: the ends and what lies between, before anything is built."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from harness.bisect.probe import Flakiness
from harness.bisect.range import GitHistory, SeriesHistory
from harness.bisect.record import question_key
from harness.bisect.run import Ends, History
from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.progress import Progress
from harness.core.version import harness_version
from harness.kernels.build.config import plan_config
from harness.kernels.build.series import read_series
from harness.kernels.build.tree import look, source_of
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario import Policy
from harness.scenario.scenario_files import Case

_DISTRIBUTION = "debian:"


@dataclass(frozen=True)
class Asked:
    """A bisection as a user asks for it.

    Attributes:
        tree: path of a git tree; for a series also `debian:VERSION`.
        good: a REF, or None.
        bad: a REF, or None.
        kernel: what shapes every build; its SPEC is not looked at. With a series, the patches are
            what is bisected over, on top of the older end.
        first_good: look for the fix, the bad end is the older one.
    """

    tree: str
    good: str | None
    bad: str | None
    kernel: KernelRequest
    first_good: bool = False


@dataclass(frozen=True)
class Opened:
    """A bisection whose ends exist.

    Attributes:
        ends: good and bad.
        history: what lies between them.
        source: names the source tree; one bisection of it at a time.
        identity: what the ends and all between are made from, for `key`.
    """

    ends: Ends
    history: History
    source: str
    identity: tuple[str, ...]

    def key(self, cases: Sequence[Case], policy: Policy, flakiness: Flakiness, machine: str) -> str:
        """The name of the record: other scenarios, configurations or machines ask otherwise.

        Another harness may judge otherwise: its steps do not count for this one.

        Args:
            cases: the scenarios, with their profiles.
            policy: whose rules are judged.
            flakiness: how many runs each commit gets.
            machine: the identity of the QEMU.
        """
        return question_key(
            (
                *self.identity,
                harness_version(),
                *(str(one) for one in (self.ends.first_good, flakiness, policy, machine)),
                *(_text_of(one) for case in cases for one in (case.name, case.scenario)),
                *(_text_of(case.profile) for case in cases),
            )
        )


def open_bisection(asked: Asked, store: Store, progress: Progress) -> Opened:
    """Find the ends.

    Raises:
        UsageError: there is no such tree, commit or series, or an end is not named.
    """
    if asked.kernel.series is not None:
        return _open_series(asked, asked.kernel.series, store, progress)
    if _is_distribution(asked.tree):
        raise UsageError(
            f"{asked.tree} has no history",
            where="--tree",
            hint="name a git tree, or the patches to bisect over with --series",
        )
    for option, ref in (("--good", asked.good), ("--bad", asked.bad)):
        if ref is None:
            raise UsageError(
                f"{option} is not given",
                hint="name a commit that is good and one that is bad, with --good and --bad",
            )
    path = _folder(asked.tree)
    history = GitHistory(path, asked.kernel)
    good, bad = (
        history.commit(_find(path, ref, option, store, progress))
        for option, ref in (("--good", asked.good), ("--bad", asked.bad))
    )
    return Opened(
        Ends(good, bad, asked.first_good),
        history,
        source_of(path, store).name,
        (str(path), good.name, bad.name, *_builds(asked.kernel)),
    )


def _open_series(asked: Asked, folder: Path, store: Store, progress: Progress) -> Opened:
    series = read_series(folder)
    older, newer = ("--bad", "--good") if asked.first_good else ("--good", "--bad")
    base, rest = (asked.bad, asked.good) if asked.first_good else (asked.good, asked.bad)
    if rest is not None:
        raise UsageError(
            f"{newer} is the source with the whole series, and cannot be given",
            where=f"{newer} {rest}",
            hint=f"leave it out; {older} names the commit that the series is for",
        )
    if _is_distribution(asked.tree):
        if base is not None:
            hint = f"leave {older} out: the patches go on top of the distribution's source"
            raise UsageError(f"{asked.tree} has no commits", where=f"{older} {base}", hint=hint)
        spec, shown, name = f"build:{asked.tree}", asked.tree, asked.tree
    else:
        path = _folder(asked.tree)
        commit = _find(path, base or "HEAD", older if base else "--tree", store, progress)
        spec, name = f"build:{path}@{commit}", source_of(path, store).name
        shown = GitHistory(path, asked.kernel).commit(commit).subject
    history = SeriesHistory(series, shown, replace(asked.kernel, spec=spec, upto=None))
    first, last = history.commit("0"), history.commit(str(len(series.patches)))
    good, bad = (last, first) if asked.first_good else (first, last)
    return Opened(
        Ends(good, bad, asked.first_good),
        history,
        hashlib.sha256(name.encode()).hexdigest()[:16],
        (spec, series.digest, *_builds(asked.kernel)),
    )


def _is_distribution(tree: str) -> bool:
    return tree.startswith(_DISTRIBUTION) and not Path(tree).exists()


def _folder(tree: str) -> Path:
    path = Path(tree).expanduser().absolute()
    if not path.is_dir():
        raise UsageError(
            f"there is no folder {path}", where="--tree", hint="name a git tree of Linux"
        )
    return path.resolve()


def _find(path: Path, ref: str | None, option: str, store: Store, progress: Progress) -> str:
    _, state = look(f"{path}@{ref}", store, progress, f"{option} {ref}")
    assert state.commit is not None
    return state.commit


def _builds(request: KernelRequest) -> tuple[str, str]:
    return plan_config(request.configs).text, request.toolchain


def _text_of(value: object) -> str:
    """The same text for the same value in every process."""
    return msgspec.json.encode(value, enc_hook=repr, order="deterministic").decode()
