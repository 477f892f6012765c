# SPDX-License-Identifier: GPL-2.0-or-later
"""Get the guest's programs (busybox, dropbear, kmod, cxl, daxctl) from one Debian suite."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.progress import Progress

if TYPE_CHECKING:
    from harness.debian.apt import Package

PACKAGES = ("busybox-static", "cxl", "daxctl", "dropbear-bin", "kmod", "util-linux")

# The first has the newest cxl among the stable ones; the others are for mirrors that lack it.
_SUITES = ("trixie", "bookworm", "sid")
# Change it when the content of an entry changes: older entries are then no longer found.
_KIND = "userland"
_MERGED = ("bin", "sbin", "lib", "lib64")
_PROGRAM_FOLDERS = ("usr/bin", "usr/sbin", "bin", "sbin")
# Where Debian's dynamic loader looks without a cache file, in its order.
_LIBRARY_FOLDERS = (
    "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64", "lib", "usr/lib",
)  # fmt: skip
# Tags of a dynamic section, and the attributes of pyelftools with their strings.
_TAGS = {"DT_NEEDED": "needed", "DT_RPATH": "rpath", "DT_RUNPATH": "runpath"}
_BROKEN_HINT = "delete its store entry, and it is fetched again"


def userland(store: Store, progress: Progress, refresh: bool = False) -> Path:
    """The folder with the guest's unpacked programs and their libraries.

    Its `bin`, `sbin`, `lib` and `lib64` are links into `usr`; no link leads out of it. The name of
    its parent folder changes with its content.

    Args:
        store: where it is stored.
        progress: gets reports of downloads and of waits for other processes.
        refresh: look for newer packages.

    Raises:
        UsageError: no mirror, or no suite of it has all programs.
        CommandError: a download failed.
    """
    name = "+".join(PACKAGES)
    entry = None if refresh else store.find_alias(_KIND, name)
    if entry is None:
        packages = _choose(store, progress, refresh)
        parts = sorted((one.name, one.version, one.sha256) for one in packages)
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        entry = store.build(
            _KIND,
            key,
            lambda folder: _make(folder, packages, store, progress),
            what="fetching the guest's programs",
            progress=progress,
        )
        store.set_alias(_KIND, name, key)
    return entry / "root"


def find_program(root: Path, name: str) -> Path:
    """The path of a program in an unpacked root.

    Raises:
        UsageError: no such program.
    """
    for folder in _PROGRAM_FOLDERS:
        if (path := root / folder / name).is_file():
            return path
    raise UsageError(
        f"the guest has no program {name}",
        where=str(root),
        hint=f"it must come from one of {', '.join(PACKAGES)}",
    )


def library_closure(root: Path, programs: Iterable[str]) -> tuple[Path, ...]:
    """The ELF interpreter and shared libraries of programs, with the libraries' own libraries.

    Each is the path below `root` at which the kernel or the dynamic loader opens it, possibly a
    link. Libraries that a program loads by itself at run time are not included.

    Args:
        root: an unpacked root.
        programs: names such as `cxl`, or paths relative to the root.

    Raises:
        UsageError: a program or library is missing in the root, or is no ELF file.
    """
    found: dict[Path, None] = {}
    todo = [root / name if "/" in name else find_program(root, name) for name in programs]
    while todo:
        path = todo.pop(0)
        for needed in _needed(root, path):
            if needed not in found:
                found[needed] = None
                todo.append(needed)
    return tuple(found)


def _needed(root: Path, path: Path) -> Iterator[Path]:
    from elftools.common.exceptions import ELFError
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import InterpSegment

    found: dict[str, list[str]] = {attribute: [] for attribute in _TAGS.values()}
    try:
        with path.open("rb") as stream:
            for segment in ELFFile(stream).iter_segments():
                if isinstance(segment, InterpSegment):
                    yield root / segment.get_interp_name().lstrip("/")
                if isinstance(segment, DynamicSegment):
                    for tag in segment.iter_tags():
                        if attribute := _TAGS.get(tag.entry.d_tag):
                            found[attribute].append(str(getattr(tag, attribute)))
    except (ELFError, OSError) as error:
        raise UsageError(
            f"not a program or library: {error}", where=str(path), hint=_BROKEN_HINT
        ) from error
    origin = "/" + path.parent.relative_to(root).as_posix()
    own = [
        folder.replace("${ORIGIN}", "$ORIGIN").replace("$ORIGIN", origin)
        for value in (*found["rpath"], *found["runpath"])
        for folder in value.split(":")
    ]
    for name in found["needed"]:
        yield _library(root, name, own, path)


def _library(root: Path, name: str, own: list[str], user: Path) -> Path:
    for folder in (*own, *_LIBRARY_FOLDERS):
        path = root / os.path.normpath(PurePosixPath(folder.lstrip("/"), name))
        if path.is_file():
            return path
    raise UsageError(
        f"no library {name}, which {user.name} needs",
        where=str(root),
        hint=_BROKEN_HINT,
    )


def _choose(store: Store, progress: Progress, refresh: bool) -> tuple[Package, ...]:
    from harness.debian.apt import open_apt

    refused: list[str] = []
    with open_apt(store, progress) as apt:
        if refresh:
            apt.refresh(0.0)
        for suite in _SUITES:
            try:
                packages = apt.closure(PACKAGES, suite)
            except UsageError as error:
                refused.append(error.message)
                progress.note(f"no guest programs from {suite}: {error.message}")
            else:
                return packages
    raise UsageError(
        "no suite of Debian has the guest's programs: " + "; ".join(refused),
        hint="use a mirror with one of " + ", ".join(_SUITES),
    )


def _make(folder: Path, packages: tuple[Package, ...], store: Store, progress: Progress) -> None:
    from harness.debian.apt import open_apt, unpack

    fetched, root = folder / "fetched", folder / "root"
    fetched.mkdir()
    root.mkdir()
    with open_apt(store, progress) as apt:
        files = apt.download(packages, fetched, "the guest's programs")
    for file in files:
        unpack(file, root)
    shutil.rmtree(fetched)
    tidy(root)
    listed = [{"name": one.name, "version": one.version, "suite": one.suite} for one in packages]
    (folder / "manifest.json").write_text(json.dumps({"packages": listed}, indent=1) + "\n")


def tidy(root: Path) -> None:
    """Make an unpacked root self-contained: `/usr` merged, no documentation, relative links."""
    for name in _MERGED:
        _merge(root, name)
    shutil.rmtree(root / "usr" / "share", ignore_errors=True)
    for parent, folders, files in os.walk(root):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and (target := path.readlink()).is_absolute():
                inside = root / target.relative_to("/")
                path.unlink()
                path.symlink_to(os.path.relpath(inside, path.parent))


def _merge(root: Path, name: str) -> None:
    """Replace `/NAME` with a link to `/usr/NAME`, as on every Debian system since bookworm."""
    old, new = root / name, root / "usr" / name
    new.mkdir(parents=True, exist_ok=True)
    if old.is_symlink():
        return
    if old.is_dir():
        shutil.copytree(old, new, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(old)
    old.symlink_to(Path("usr", name))
