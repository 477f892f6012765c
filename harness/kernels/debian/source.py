# SPDX-License-Identifier: GPL-2.0-or-later
"""`build:debian:VERSION`: a kernel's source of Debian, unpacked once and kept as a git tree.

A few versions have a package `linux-source-X.Y` (with Debian's patches); of every other version
there is the source package, whose upstream tarball is taken as it is.
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
from harness.core.process import CommandError, run
from harness.core.progress import Progress
from harness.debian.apt import Apt, SourcePackage, open_apt, unpack
from harness.kernels.build.tree import FOLDER, SOURCE_BYTES, SourceState, SourceTree
from harness.kernels.debian.mirror_files import AnyPackage, files_on_mirror
from harness.kernels.debian.versions import newest_of_each, version_key
from harness.kernels.spec import KernelSpec

_READY_MADE = r"linux-source-\d+\.\d+"
_PACKAGE = "linux"
_STATE = "state.json"
_OLD_SECONDS = 6 * 3600.0
_NOT_THERE = "404 "
_MOST_TRIES = 5
_UNPACK_SECONDS = 1800.0


def debian_source(
    spec: KernelSpec, store: Store, progress: Progress, *, refresh: bool = False
) -> tuple[SourceTree, SourceState]:
    """The source of a kernel, fetched and unpacked first when the store lacks it.

    A version that was resolved once keeps standing for the same package until `refresh`.

    Args:
        spec: of the source `build:debian`.
        store: where it is kept.
        progress: hears of downloads.
        refresh: look for a newer package of the version.

    Raises:
        UsageError: there is no such package, the mirror does not have what it lists, there is no
            mirror, or no room.
        CommandError: the mirror cannot be read.
    """
    folder = None if refresh else store.find_alias(FOLDER, str(spec))
    if folder is not None:
        source = SourceTree(folder, folder.name)
        source.mark_used(store, progress)
        if (known := _read_state(folder)) is not None:
            return source, known
    first, *older = _choose(spec, store, progress, 0.0 if refresh else None)
    try:
        return _unpacked(spec, first, store, progress)
    except CommandError as error:
        # The archive replaces versions: one in lists of yesterday may be gone today.
        again = _choose(spec, store, progress, 0.0)
        missing = error
    if again[0] == first:
        again = tuple(older) if _NOT_THERE in missing.message else ()
    # Lists also name what the archive does not have any more, or not yet.
    for package in again[:_MOST_TRIES]:
        progress.note(f"the mirror lacks a source that it lists; taking Linux {upstream(package)}")
        try:
            return _unpacked(spec, package, store, progress)
        except CommandError as error:
            missing = error
            if _NOT_THERE not in error.message:
                break
    if _NOT_THERE not in missing.message:
        raise missing
    raise UsageError(
        f"the mirror lists sources of Linux {spec.value} and has none that was asked for",
        where=str(spec),
        hint=f"{_to_be_had(store, progress)}; or name a tree with build:PATH",
    ) from missing


def choose_source(packages: Sequence[AnyPackage], version: str) -> tuple[AnyPackage, ...]:
    """The packages of a version, such as `7.2`, `7.2.12` or `7.3-rc7`, the newest first.

    Of several with the same upstream source only the newest.
    """
    asked = version.replace("~rc", "-rc")
    found = [
        one
        for one in packages
        if one.version == version
        or upstream(one) == asked
        or upstream(one).startswith((f"{asked}.", f"{asked}-rc"))
    ]
    ordered = sorted(found, key=lambda one: version_key(one.version), reverse=True)
    return tuple({upstream(one): one for one in reversed(ordered)}.values())[::-1]


def upstream(package: AnyPackage) -> str:
    """The kernel's own version, such as `7.2.13` or `7.3-rc7`."""
    return package.version.rpartition("-")[0].replace("~rc", "-rc")


def _choose(
    spec: KernelSpec, store: Store, progress: Progress, max_age: float | None
) -> tuple[AnyPackage, ...]:
    """The packages of a version; lists are fetched anew where they are old and have none."""
    for sources in (False, True):
        with open_apt(store, progress, sources=sources) as apt:
            if max_age is not None:
                apt.refresh(max_age)
            for _ in range(2):
                listed = _listed(apt, sources)
                chosen = choose_source(listed, spec.value)
                if chosen:
                    return chosen
                if not sources or not apt.refresh(_OLD_SECONDS):
                    break
    raise UsageError(
        f"Debian's archive has no source of Linux {spec.value}",
        where=str(spec),
        hint=_to_be_had(store, progress),
    )


def _listed(apt: Apt, sources: bool) -> Sequence[AnyPackage]:
    return apt.source_versions(_PACKAGE) if sources else apt.search(_READY_MADE)


def _to_be_had(store: Store, progress: Progress) -> str:
    """A hint with the newest source of each series that the mirror really has."""
    progress.note("asking the mirror which sources it has")
    found: list[AnyPackage] = []
    for sources in (False, True):
        with open_apt(store, progress, sources=sources) as apt:
            listed = sorted(_listed(apt, sources), key=lambda one: version_key(one.version))
            found += newest_of_each(listed, _series, files_on_mirror(apt, listed))
    ordered = sorted(found, key=lambda one: version_key(one.version))
    newest = {_series(one): upstream(one) for one in ordered}
    return f"the newest of each series are {', '.join(newest.values()) or 'none'}"


def _series(package: AnyPackage) -> str:
    return ".".join(upstream(package).split("-")[0].split(".")[:2])


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
    if state is None:  # else nothing is written, and a build from it may go on
        with source.claimed(store, progress):
            state = _read_state(source.folder) or _import(package, source, store, progress)
    store.set_alias(FOLDER, str(spec), name)
    return source, state


def _import(
    package: AnyPackage, source: SourceTree, store: Store, progress: Progress
) -> SourceState:
    what = f"the source of Linux {upstream(package)}"
    if source.folder.exists():
        progress.note(f"removing what an interrupted harness left of {what}")
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
    # Every file goes straight into a pack: half the time and half the room of loose objects.
    packing = ("-c", "core.bigFileThreshold=1")
    git(*packing, "add", "--all", "--force", files=source.files, index=source.index)
    tree = git("write-tree", index=source.index).stdout.strip()
    git("-c", "pack.window=0", "repack", "-d", "-q", index=source.index)
    origin = f"Debian's {package.name} {package.version}"
    if isinstance(package, SourcePackage):
        origin += ", upstream's tarball without Debian's patches"
    state = SourceState(tree, None, False, origin)
    (source.folder / "origin").write_text(f"{origin}\n")
    partial = source.folder / "state.new"
    partial.write_text(json.dumps(asdict(state)))
    partial.rename(source.folder / _STATE)
    return state


def _fetch(package: AnyPackage, fetched: Path, what: str, store: Store, progress: Progress) -> Path:
    """The tarball of the source."""
    if isinstance(package, SourcePackage):
        with open_apt(store, progress, sources=True) as apt:
            return apt.download_source(package, fetched, what)
    with open_apt(store, progress) as apt:
        (file,) = apt.download((package,), fetched, what)
    unpack(file, fetched)
    found = sorted(fetched.glob("usr/src/linux-source-*.tar.*"))
    if not found:
        raise UsageError(
            f"the package {package.name} {package.version} has no source where it is expected",
            where=str(file),
            hint="unpack it by hand and name the folder with build:PATH",
        )
    return found[0]
