# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetch `build:debian:VERSION`: a kernel source of Debian, unpacked once and kept as a git tree.

A few versions have a package `linux-source-X.Y` (with Debian's patches). For all other versions
the upstream tarball of the source package is used, without patches.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from harness.core.cache import Store
from harness.core.deadline import Deadline
from harness.core.errors import UsageError
from harness.core.files import write_atomic
from harness.core.process import CommandError, run
from harness.core.progress import Progress
from harness.debian.apt import AnyPackage, Apt, SourcePackage, files_on_mirror, open_apt, unpack
from harness.kernels.build.tree import FOLDER, SOURCE_BYTES, SourceState, SourceTree
from harness.kernels.debian.versions import (
    MOST_TRIES,
    by_version,
    matches_version,
    newest_of_each,
    series_of,
    upstream_version,
)
from harness.kernels.spec import KernelSpec

_READY_MADE = r"linux-source-\d+\.\d+"
_PACKAGE = "linux"
_STATE = "state.json"
_OLD_SECONDS = 6 * 3600.0
_NOT_THERE = "404 "
_UNPACK_SECONDS = 1800.0


def debian_source(
    spec: KernelSpec, store: Store, progress: Progress, *, refresh: bool = False
) -> tuple[SourceTree, SourceState]:
    """Return the source of a kernel; fetch and unpack it first when the store lacks it.

    A version means the same package until `refresh`.

    Args:
        spec: of the source `build:debian`.
        refresh: look for a newer package of the version.

    Raises:
        UsageError: there is no such package, the mirror lacks the packages that it lists, there is
            no mirror, or the disk is too full.
        CommandError: the mirror cannot be read.
    """
    folder = None if refresh else store.find_alias(FOLDER, str(spec))
    if folder is not None:
        source = SourceTree(folder, folder.name)
        source.mark_used(store, progress)
        if (known := _read_state(folder)) is not None:
            return source, known
    first = _choose(spec, store, progress, 0.0 if refresh else None)[0]
    try:
        return _unpacked(spec, first, store, progress)
    except CommandError as error:
        missing = error
    # The archive replaces versions: old lists name packages that are deleted, new lists some that
    # have not arrived.
    again = _choose(spec, store, progress, 0.0)
    if again[0] == first and _NOT_THERE not in missing.message:
        raise missing
    for package in [package for package in again if package != first][:MOST_TRIES]:
        version = upstream_version(package.version)
        progress.note(f"the mirror lacks a source that it lists; taking Linux {version}")
        try:
            return _unpacked(spec, package, store, progress)
        except CommandError as error:
            if _NOT_THERE not in error.message:
                raise
    raise UsageError(
        f"the mirror lists sources of Linux {spec.value}, and lacks those that were tried",
        where=str(spec),
        hint=f"{_available_hint(store, progress)}; or name a tree with build:PATH",
    ) from missing


def choose_source(packages: Sequence[AnyPackage], version: str) -> tuple[AnyPackage, ...]:
    """Return the packages of a version, such as `7.2`, `7.2.12` or `7.3-rc7`, the newest first.

    Of several with the same upstream source only the newest is returned.
    """
    matching = [package for package in packages if matches_version(package.version, version)]
    newest = {upstream_version(package.version): package for package in by_version(matching)}
    return tuple(newest.values())[::-1]


def _choose(
    spec: KernelSpec, store: Store, progress: Progress, max_age: float | None
) -> tuple[AnyPackage, ...]:
    """Return the packages of a version; old lists that lack it are refreshed."""
    for sources in (False, True):
        with open_apt(store, progress, sources=sources) as apt:
            if max_age is not None:
                apt.refresh(max_age)
            chosen = choose_source(_listed(apt, sources), spec.value)
            if not chosen and sources and apt.refresh(_OLD_SECONDS):
                chosen = choose_source(_listed(apt, sources), spec.value)
            if chosen:
                return chosen
    raise UsageError(
        f"Debian's archive has no source of Linux {spec.value}",
        where=str(spec),
        hint=_available_hint(store, progress),
    )


def _listed(apt: Apt, sources: bool) -> Sequence[AnyPackage]:
    return apt.source_versions(_PACKAGE) if sources else apt.search(_READY_MADE)


def _available_hint(store: Store, progress: Progress) -> str:
    """Return a hint with the newest source of each series that the mirror really has."""
    progress.note("querying the mirror for its sources")
    found: list[AnyPackage] = []
    for sources in (False, True):
        with open_apt(store, progress, sources=sources) as apt:
            listed = by_version(_listed(apt, sources))
            found += newest_of_each(listed, _series, files_on_mirror(apt, listed))
    newest = {_series(one): upstream_version(one.version) for one in by_version(found)}
    return f"the newest of each series are {', '.join(newest.values()) or 'none'}"


def _series(package: AnyPackage) -> str:
    return series_of(package.version)


def _read_state(folder: Path) -> SourceState | None:
    try:
        return SourceState(**json.loads((folder / _STATE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _unpacked(
    spec: KernelSpec, package: AnyPackage, store: Store, progress: Progress
) -> tuple[SourceTree, SourceState]:
    name = f"debian-{package.sha256[:16]}"
    source = SourceTree(store.folder(FOLDER) / name, name)
    state = _read_state(source.folder)
    if state is None:  # otherwise nothing is written, so that builds from it can continue
        with source.claimed(store, progress):
            state = _read_state(source.folder) or _import(package, source, store, progress)
    store.set_alias(FOLDER, str(spec), name)
    return source, state


def _import(
    package: AnyPackage, source: SourceTree, store: Store, progress: Progress
) -> SourceState:
    what = f"the source of Linux {upstream_version(package.version)}"
    if source.folder.exists():
        progress.note(f"removing the incomplete {what} that an interrupted harness left")
        shutil.rmtree(source.folder)
    store.require_space(SOURCE_BYTES, what)
    fetched = source.folder / "fetched"
    fetched.mkdir(parents=True)
    tarball = _fetch(package, fetched, what, store, progress)
    progress.note(f"unpacking {what}")
    source.files.mkdir()
    deadline = Deadline(_UNPACK_SECONDS, f"{what} to be unpacked", hint="is the disk very slow?")
    words = ("--extract", "--no-same-owner", "--no-same-permissions", "--strip-components=1")
    run(["tar", *words, f"--directory={source.files}", f"--file={tarball}"], deadline=deadline)
    shutil.rmtree(fetched)
    progress.note(f"making a git tree of {what}")
    source.repository.prepare()
    git = source.repository.git
    # Write all files into a pack: half the time and half the size of loose objects.
    packing = ("-c", "core.bigFileThreshold=1")
    git(*packing, "add", "--all", "--force", files=source.files, index=source.index)
    tree = git("write-tree", index=source.index).stdout.strip()
    git("-c", "pack.window=0", "repack", "-d", "-q", index=source.index)
    origin = f"Debian's {package.name} {package.version}"
    if isinstance(package, SourcePackage):
        origin += ", upstream's tarball without Debian's patches"
    state = SourceState(tree, None, False, origin)
    (source.folder / "origin").write_text(f"{origin}\n")
    write_atomic(source.folder / _STATE, json.dumps(asdict(state)))
    return state


def _fetch(package: AnyPackage, fetched: Path, what: str, store: Store, progress: Progress) -> Path:
    """Fetch the tarball of the source."""
    if isinstance(package, SourcePackage):
        with open_apt(store, progress, sources=True) as apt:
            return apt.download_source(package, fetched, what)
    with open_apt(store, progress) as apt:
        (file,) = apt.download((package,), fetched, what)
    unpack(file, fetched)
    found = sorted(fetched.glob("usr/src/linux-source-*.tar.*"))
    if not found:
        raise UsageError(
            f"the package {package.name} {package.version} has no source in the usual place",
            where=str(file),
            hint="unpack it by hand and name the folder with build:PATH",
        )
    return found[0]
