# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel of a recorded run, and the differences of a new run from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.bundle.judge import Recording, read_json
from harness.bundle.pack import SERIES
from harness.contract.result import RunResult
from harness.core.errors import UsageError
from harness.kernels.build.tree import split_ref
from harness.kernels.spec import parse_kernel_spec
from harness.runs.evidence import LAYOUT, STATE
from harness.scenario.kernel_request import KernelRequest

_COMPARED = (
    ("kernel release", "kernel.json", ("release",)),
    ("kernel", "kernel.json", ("identity",)),
    ("kernel command line", "kernel.json", ("command_line",)),
    ("QEMU", "kernel.json", ("qemu", "version_text")),
    ("address map", LAYOUT, ()),
    ("firmware state", STATE, ()),
)
_HINT = "get the kernel and name it with --kernel, or judge the recorded observation: harness judge"


def request_of(recording: Recording) -> KernelRequest:
    """The recorded kernel, with the series of the bundle.

    Raises:
        UsageError: the kernel or its series is not on this machine; describes it.
    """
    request = recording.run.record.request
    spec = parse_kernel_spec(request.spec)
    path = split_ref(spec.value)[0] if spec.source == "build" else Path(spec.value).expanduser()
    if spec.source in ("image", "build") and not path.exists():
        raise UsageError(
            f"the kernel {request.spec} is not on this machine: {_description(recording)}",
            where=recording.run.record.scenario,
            hint=_HINT,
        )
    packed = recording.folder / SERIES
    if request.series is None:
        return request
    if packed.is_dir():
        # The bundle has the patches up to the recorded --upto, and no others.
        return replace(request, series=packed, upto=None)
    if request.series.expanduser().exists():
        return request
    raise UsageError(
        f"the series {request.series} is neither on this machine nor in the bundle",
        where=recording.run.record.scenario,
        hint="get the series, and name kernel and series with --kernel and --series",
    )


def _description(recording: Recording) -> str:
    """The source, commit and configuration of the recorded kernel."""
    kernel, manifest = recording.run.record.kernel, recording.run.manifest
    words = [f"Linux {kernel.release or 'of unknown version'}"]
    if manifest is not None and manifest.source is not None:
        source = manifest.source
        words.append(f"of {source.origin}")
        if source.commit:
            changed = ", with uncommitted changes" if source.dirty else ""
            words.append(f"commit {source.commit}{changed}")
    if kernel.config_sha256:
        words.append(f"with the config of SHA-256 {kernel.config_sha256}")
    return " ".join(words)


def run_differences(recording: Recording, result: RunResult) -> Iterator[str]:
    """The differences of a new run in kernel, QEMU, machine and firmware, one line each."""
    for part, name, keys in _COMPARED:
        before, after = (
            _value(folder / name, keys) for folder in (recording.folder, Path(result.evidence))
        )
        if before != after:
            values = f": recorded {before}, now {after}" if keys else ""
            yield f"another {part}{values}; compare {name} of both runs"


def _value(path: Path, keys: Sequence[str]) -> object:
    value: Any = read_json(path)
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
