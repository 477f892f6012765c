# SPDX-License-Identifier: GPL-2.0-or-later
"""Build `build:...`: a kernel from its source, unless the store has it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.progress import Progress
from harness.kernels.build.config import ConfigPlan, plan_config
from harness.kernels.build.toolchain import FoundToolchain, find_toolchain
from harness.kernels.build.tree import SOURCE_BYTES, SourceState, SourceTree, look
from harness.kernels.spec import KernelSpec
from harness.kernels.store import KIND
from harness.scenario.kernel_request import KernelRequest

if TYPE_CHECKING:
    from harness.kernels.build.build import BuildReport
    from harness.kernels.build.sandbox import Sandbox
    from harness.kernels.build.series import Series

OUTPUTS = "outputs"
CCACHE = "ccache"
_ARCHITECTURE = "x86_64"
# Part of the key: increase it when the same inputs give another kernel.
_FORM = 1


def build_from_source(
    request: KernelRequest,
    spec: KernelSpec,
    store: Store,
    progress: Progress,
    *,
    refresh: bool = False,
) -> Path:
    """Return the store entry of a kernel; compile it first when the store lacks it.

    Args:
        spec: the SPEC of the request, of the source `build` or `build:debian`.
        refresh: look for a newer source package.

    Raises:
        UsageError: a part of the request does not exist, or this host lacks a program.
        UnbuildableError: a patch does not apply, or the kernel does not build.
        CommandError: a download, or git, failed.
    """
    plan = plan_config(request.configs)
    series = _series(request)
    if series is not None and series.left_out:
        progress.note(f"{series.path.name}: {series.left_out}")
    toolchain = find_toolchain(request.toolchain)
    if spec.source == "build:debian":
        from harness.kernels.debian.source import debian_source

        source, state = debian_source(spec, store, progress, refresh=refresh)
    else:
        source, state = look(spec.value, store, progress, str(spec))
    key = kernel_key(state, series, plan, toolchain)
    found = store.find(KIND, key)
    if found is not None:
        return found
    from harness.kernels.build.apply_series import series_commit

    # Before the wait for another build: a series that does not apply is reported early.
    with source.looked_at(store, progress):
        commit = series_commit(source, state, series, progress)
    inputs = _Inputs(request, source, state, commit, series, plan, toolchain)
    return store.build(
        KIND,
        key,
        lambda folder: _make(inputs, folder, store, progress),
        what=f"building {request}",
        progress=progress,
    )


@dataclass(frozen=True)
class _Inputs:
    """All inputs of a kernel."""

    request: KernelRequest
    source: SourceTree
    state: SourceState
    commit: str
    series: Series | None
    plan: ConfigPlan
    toolchain: FoundToolchain


def _series(request: KernelRequest) -> Series | None:
    if request.series is None:
        if request.upto is not None:
            hint = "name it with --series"
            raise UsageError("--upto needs a series", where=str(request), hint=hint)
        return None
    from harness.kernels.build.series import read_series

    series = read_series(request.series).upto(request.upto)
    return series if series.patches else None


def _make(inputs: _Inputs, folder: Path, store: Store, progress: Progress) -> None:
    """Fill a store entry."""
    # Imported late: not needed when the store has the kernel.
    from harness.kernels.build.build import BuildJob, build, collect, output_name
    from harness.kernels.build.sandbox import find_sandbox

    sandbox = find_sandbox()
    if sandbox.note:
        progress.note(sandbox.note)
    source, plan, toolchain = inputs.source, inputs.plan, inputs.toolchain
    if not source.files.exists():
        store.require_space(SOURCE_BYTES, "a copy of the source tree")
    name = output_name(source.name, toolchain, sandbox, plan)
    with source.claimed(store, progress):
        if not source.repository.folder.is_dir():
            raise UsageError(
                "the source was removed from the store",
                where=str(inputs.request),
                hint="start again: the source is then read again",
            )
        source.check_out(inputs.commit, progress)
        job = BuildJob(
            source=source,
            commit=inputs.commit,
            plan=plan,
            toolchain=toolchain,
            sandbox=sandbox,
            output=store.folder(OUTPUTS) / name,
            ccache=store.folder(CCACHE),
            what=str(inputs.request),
        )
        report = build(job, progress)
        release = collect(job, folder)
    manifest = _describe(inputs, release, sandbox, report)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    progress.note(_summary(release, report))


def kernel_key(
    state: SourceState, series: Series | None, plan: ConfigPlan, toolchain: FoundToolchain
) -> str:
    """Return the store key of a kernel: a hash of all its inputs."""
    parts = (
        *(_FORM, _ARCHITECTURE, state.tree, series.digest if series and series.patches else ""),
        *(hashlib.sha256(plan.text.encode()).hexdigest(), toolchain.kind, toolchain.version),
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _describe(
    inputs: _Inputs, release: str, sandbox: Sandbox, report: BuildReport
) -> dict[str, Any]:
    """Return the content of the manifest: the inputs of a kernel and the build."""
    state, series, plan = inputs.state, inputs.series, inputs.plan
    toolchain = inputs.toolchain
    patches = series.patches if series else ()
    return {
        "spec": str(inputs.request),
        "release": release,
        "source": {
            "origin": state.origin,
            "tree": state.tree,
            "commit": state.commit,
            "dirty": state.dirty,
        },
        "series": None
        if series is None
        else {
            "path": str(series.path),
            "policy": series.policy,
            "patches": [
                {"name": patch.name, "sha256": hashlib.sha256(patch.data).hexdigest()}
                for patch in patches
            ],
        },
        "configs": list(plan.names),
        "asked_config_sha256": hashlib.sha256(plan.text.encode()).hexdigest(),
        "toolchain": {"kind": toolchain.kind, "version": toolchain.version.split("\n")},
        "architecture": _ARCHITECTURE,
        "sandboxed": sandbox.bwrap is not None,
        "build": {
            "seconds": round(report.seconds, 2),
            "compiled": report.compiled,
            "cache_hits": report.cache_hits,
            "cache_misses": report.cache_misses,
        },
    }


def _summary(release: str, report: BuildReport) -> str:
    """Return one line about a finished build."""
    cached = report.cache_hits + report.cache_misses
    share = f", {report.cache_hits} of {cached} from the compiler's cache" if cached else ""
    return f"built Linux {release} in {report.seconds:.1f} s ({report.compiled} files{share})"
