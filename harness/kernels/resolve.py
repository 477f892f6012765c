# SPDX-License-Identifier: GPL-2.0-or-later
"""From a SPEC to a kernel that can be booted."""

from __future__ import annotations

from harness.kernels.kernel_spec import parse_kernel_spec
from harness.kernels.stored import KIND, read_stored
from harness.model.kernel import Kernel
from harness.progress import Progress
from harness.store import Store


def resolve_kernel(spec: str, store: Store, progress: Progress, refresh: bool = False) -> Kernel:
    """The kernel that a SPEC names, fetched first when the store does not have it.

    A version of Debian that was resolved once keeps standing for the same kernel, without any
    network, until `refresh` asks again.

    Args:
        spec: `debian:VERSION` or `image:PATH`.
        store: where fetched kernels are kept.
        progress: hears of downloads and of waits for other processes.
        refresh: look for a newer kernel of the version.

    Raises:
        UsageError: the SPEC is wrong, names nothing that exists, or cannot be had on this machine.
        CommandError: a download failed.
    """
    parsed = parse_kernel_spec(spec)
    if parsed.source == "image":
        from harness.kernels.image import find_image

        return find_image(parsed)
    entry = None if refresh else store.find_alias(KIND, str(parsed))
    if entry is None:
        from harness.kernels.debian import fetch_debian_kernel  # the way of a second use is short

        entry = fetch_debian_kernel(parsed, store, progress, refresh=refresh)
    return read_stored(str(parsed), entry)
