# SPDX-License-Identifier: GPL-2.0-or-later
"""Resolve a SPEC to a kernel that can be booted."""

from __future__ import annotations

from pathlib import Path

from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.files import made_again
from harness.core.kernel import Kernel
from harness.core.progress import Progress
from harness.kernels.spec import KernelSpec, parse_kernel_spec
from harness.kernels.store import KIND, discard_damaged, read_stored
from harness.scenario.kernel_request import KernelRequest, as_request


def resolve_kernel(
    spec: str | KernelRequest, store: Store, progress: Progress, refresh: bool = False
) -> Kernel:
    """Return the requested kernel; fetch or build it first when the store lacks it.

    A version of Debian means the same kernel, without any network, until `refresh`. A kernel that
    is damaged in the store is made again.

    Args:
        spec: a SPEC, or a SPEC with the options of a build.
        progress: reports downloads, builds and waits for other processes.
        refresh: look for a newer kernel of the version.

    Raises:
        UsageError: the SPEC is wrong, names a kernel that does not exist, or this host lacks
            something to fetch or build it.
        UnbuildableError: the kernel does not build, or a patch does not apply.
        CommandError: a download failed.
    """
    request = as_request(spec)
    parsed = parse_kernel_spec(request.spec)

    def resolve() -> Kernel:
        return _resolve(request, parsed, store, progress, refresh)

    return made_again(resolve, lambda error: discard_damaged(error, store, progress))


def _resolve(
    request: KernelRequest, parsed: KernelSpec, store: Store, progress: Progress, refresh: bool
) -> Kernel:
    if request.stored is not None:
        return read_stored(str(request), _stored(request.stored, store))
    if parsed.source.startswith("build"):
        from harness.kernels.build.from_source import build_from_source

        entry = build_from_source(request, parsed, store, progress, refresh=refresh)
        return read_stored(str(request), entry)
    if request.shapes_build:
        raise UsageError(
            "--config, --series, --upto and --llvm are for kernels that are built",
            where=str(request),
            hint=f"write build:debian:VERSION or build:PATH instead of {request.spec}",
        )
    if parsed.source == "image":
        from harness.kernels.image import find_image

        return find_image(parsed)
    entry_or_none = None if refresh else store.find_alias(KIND, str(parsed))
    if entry_or_none is None:
        # Imported late: a kernel that the store has is found quickly.
        from harness.kernels.debian.packages import fetch_debian_kernel

        entry_or_none = fetch_debian_kernel(parsed, store, progress, refresh=refresh)
    return read_stored(str(parsed), entry_or_none)


def _stored(key: str, store: Store) -> Path:
    found = store.find(KIND, key)
    if found is None:
        raise UsageError(
            f"the store has no kernel {key}",
            where=str(store.root),
            hint="it was removed meanwhile: start again, and it is sent again",
        )
    return found
