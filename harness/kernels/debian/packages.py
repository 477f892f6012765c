# SPDX-License-Identifier: GPL-2.0-or-later
"""`debian:VERSION`: a prebuilt kernel of Debian, unpacked into the store, never installed."""

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
from harness.debian.apt import Apt, open_apt, unpack
from harness.kernels.debian.mirror_files import files_on_mirror
from harness.kernels.debian.versions import PACKAGES, DebianKernel, choose_kernel, list_kernels
from harness.kernels.image import read_release
from harness.kernels.spec import KernelSpec
from harness.kernels.store import KIND, write_manifest

_OLD_SECONDS = 6 * 3600.0
_MODULE_LISTS = ("modules.order", "modules.builtin", "modules.builtin.modinfo")


def fetch_debian_kernel(
    spec: KernelSpec, store: Store, progress: Progress, *, refresh: bool = False
) -> Path:
    """Fetch the newest kernel of a version into the store, and remember it under the SPEC.

    Args:
        spec: of the source `debian`.
        store: where it is kept.
        progress: hears of the downloads.
        refresh: fetch the package lists first, however young they are.

    Returns:
        The store entry: vmlinuz, config, System.map, modules/ and manifest.json.

    Raises:
        UsageError: there is no such kernel, no mirror, or no room.
        CommandError: the mirror did not give what it lists.
    """
    kernel = _choose(spec, store, progress, max_age=0.0 if refresh else None)
    try:
        key = _build(spec, kernel, store, progress)
    except CommandError:
        # The archive replaces versions: one in lists of yesterday may be gone today.
        again = _choose(spec, store, progress, max_age=0.0)
        if again == kernel:
            raise
        kernel = again
        key = _build(spec, kernel, store, progress)
    store.set_alias(KIND, str(spec), key)
    return store.build(KIND, key, _never)


def kernel_key(kernel: DebianKernel) -> str:
    """The store key of a kernel: a hash of its packages' names, versions and hashes."""
    parts = sorted((one.name, one.version, one.sha256) for one in kernel.packages)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def arrange(unpacked: Path, release: str, into: Path) -> None:
    """Move a kernel's files from unpacked packages, of either layout, to where the store has them.

    Args:
        unpacked: a folder with `boot/` and `usr/lib/modules/` or `lib/modules/`.
        release: the kernel's.
        into: the folder to fill, on the same file system.

    Raises:
        UsageError: the image or the modules are not there.
    """
    folders = [unpacked / "usr/lib/modules" / release, unpacked / "lib/modules" / release]
    installed = next((one for one in folders if one.is_dir()), folders[0])
    for name, required in (("vmlinuz", True), ("config", True), ("System.map", False)):
        places = (unpacked / "boot" / f"{name}-{release}", installed / name)
        found = next((one for one in places if one.is_file()), None)
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
        progress.note("asking the mirror which kernels it has")
        is_there = files_on_mirror(apt, [one for kernel in kernels for one in kernel.packages])
        return choose_kernel(kernels, spec.value, lambda one: all(map(is_there, one.packages)))


def _listed(apt: Apt) -> tuple[DebianKernel, ...]:
    return list_kernels(apt.search(PACKAGES))


def _build(spec: KernelSpec, kernel: DebianKernel, store: Store, progress: Progress) -> str:
    key = kernel_key(kernel)
    what = f"Linux {kernel.release}"

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

    store.build(KIND, key, make, what=f"fetching {what}", progress=progress)
    return key


def _never(folder: Path) -> None:
    raise AssertionError(f"{folder.name} was there a moment ago")


def _incomplete(release: str, what: str) -> UsageError:
    return UsageError(
        f"Debian's packages of Linux {release} have no {what} where it is expected",
        hint="try another version, or unpack it by hand and name it with image:PATH",
    )
