# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetch `debian:VERSION`: a prebuilt kernel of Debian, unpacked into the store."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path

from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.process import CommandError
from harness.core.progress import Progress
from harness.debian.apt import Apt, files_on_mirror, open_apt, unpack
from harness.kernels.debian.versions import PACKAGES, DebianKernel, choose_kernel, list_kernels
from harness.kernels.image import read_release
from harness.kernels.spec import KernelSpec
from harness.kernels.store import KIND, write_manifest

_OLD_SECONDS = 6 * 3600.0
_MODULE_LISTS = ("modules.order", "modules.builtin", "modules.builtin.modinfo")


def fetch_debian_kernel(
    spec: KernelSpec, store: Store, progress: Progress, *, refresh: bool = False
) -> Path:
    """Fetch the newest kernel of a version into the store, and set an alias for the SPEC.

    Args:
        spec: of the source `debian`.
        refresh: fetch the package lists first, even if they are new.

    Returns:
        The store entry: vmlinuz, config, System.map, modules/ and manifest.json.

    Raises:
        UsageError: there is no such kernel, no mirror, or the disk is too full.
        CommandError: the mirror lacks a package that it lists.
    """
    kernel = _choose(spec, store, progress, max_age=0.0 if refresh else None)
    try:
        entry = _build(spec, kernel, store, progress)
    except CommandError:
        # The archive replaces versions: old lists name packages that are deleted.
        again = _choose(spec, store, progress, max_age=0.0)
        if again == kernel:
            raise
        entry = _build(spec, again, store, progress)
    store.set_alias(KIND, str(spec), entry.name)
    return entry


def kernel_key(kernel: DebianKernel) -> str:
    """Return the store key of a kernel: a hash of its packages' names, versions and hashes."""
    parts = sorted((package.name, package.version, package.sha256) for package in kernel.packages)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def arrange(unpacked: Path, release: str, into: Path) -> None:
    """Move a kernel's files from unpacked packages to their places in a store entry.

    Args:
        unpacked: a folder with `boot/` and `usr/lib/modules/` or `lib/modules/`.
        into: the folder to fill, on the same file system.

    Raises:
        UsageError: the image, the configuration or the modules are missing.
    """
    folders = [unpacked / "usr/lib/modules" / release, unpacked / "lib/modules" / release]
    installed = next((folder for folder in folders if folder.is_dir()), folders[0])
    for name, required in (("vmlinuz", True), ("config", True), ("System.map", False)):
        places = (unpacked / "boot" / f"{name}-{release}", installed / name)
        found = next((path for path in places if path.is_file()), None)
        if found is not None:
            found.rename(into / name)
        elif required:
            raise _incomplete(release, name)
    modules = into / "modules"
    modules.mkdir()
    if not (installed / "kernel").is_dir():
        raise _incomplete(release, "modules")
    (installed / "kernel").rename(modules / "kernel")
    for name in _MODULE_LISTS:
        if (installed / name).is_file():
            (installed / name).rename(modules / name)


def _choose(
    spec: KernelSpec, store: Store, progress: Progress, *, max_age: float | None
) -> DebianKernel:
    with open_apt(store, progress) as apt:
        if max_age is not None:
            apt.refresh(max_age)
        with suppress(UsageError):
            return choose_kernel(_listed(apt), spec.value)
        apt.refresh(_OLD_SECONDS)
        kernels = _listed(apt)
        progress.note("querying the mirror for its kernels")
        packages = [package for kernel in kernels for package in kernel.packages]
        available = files_on_mirror(apt, packages)
        return choose_kernel(
            kernels, spec.value, lambda kernel: all(map(available, kernel.packages))
        )


def _listed(apt: Apt) -> tuple[DebianKernel, ...]:
    return list_kernels(apt.search(PACKAGES))


def _build(spec: KernelSpec, kernel: DebianKernel, store: Store, progress: Progress) -> Path:
    key, what = kernel_key(kernel), f"Linux {kernel.release}"

    def make(folder: Path) -> None:
        fetched, unpacked = folder / "fetched", folder / "unpacked"
        fetched.mkdir()
        unpacked.mkdir()
        with open_apt(store, progress) as apt:
            packages = apt.download(kernel.packages, fetched, what)
        progress.note(f"unpacking {what}")
        for package in packages:
            unpack(package, unpacked)
        arrange(unpacked, kernel.release, folder)
        shutil.rmtree(fetched)
        shutil.rmtree(unpacked)
        release = read_release(folder / "vmlinuz")
        write_manifest(folder, spec=str(spec), release=release, packages=kernel.packages)

    return store.build(KIND, key, make, what=f"fetching {what}", progress=progress)


def _incomplete(release: str, what: str) -> UsageError:
    return UsageError(
        f"Debian's packages of Linux {release} have no {what} in the usual place",
        hint="try another version, or unpack it by hand and name it with image:PATH",
    )
