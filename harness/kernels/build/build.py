# SPDX-License-Identifier: GPL-2.0-or-later
"""Compile a kernel in a kept output folder, and copy the kernel out of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.core.deadline import Deadline
from harness.core.errors import NotConfigurableError, UnbuildableError, UsageError
from harness.core.process import run
from harness.core.progress import Progress
from harness.kernels.build.config import ConfigPlan, configure
from harness.kernels.build.make import MakeKilledError, run_make
from harness.kernels.build.sandbox import Sandbox, build_environment
from harness.kernels.build.toolchain import FoundToolchain, jobs
from harness.kernels.build.tree import SourceTree
from harness.kernels.build.untrusted_files import UntrustedFolder
from harness.kernels.image import read_release
from harness.kernels.modules import module_files
from harness.kernels.store import DECODERS, folder_in_use

_IMAGE = "arch/x86/boot/bzImage"
# The folder that a build can write to; the other files are the harness's, out of its reach.
_OBJECTS = "objects"
_UNFINISHED = "unfinished"
_CONFIGURED = "configured.json"
_ASKED = "asked.config"
_LOG = "harness-build.log"
_FILES = "files"
_STATISTICS = "ccache.log"
# Part of the name of an output folder: increase it when old folders cannot be used.
_FORM = 2
# The number of files that the base configuration of Linux 7.2 compiles.
_FILES_OF_BASE = 1200
_SYMBOLS_LIMIT = 100_000_000
_MODULE_LISTS = ("modules.order", "modules.builtin", "modules.builtin.modinfo")


@dataclass(frozen=True)
class BuildJob:
    """A kernel to compile.

    Attributes:
        source: its `files` are compiled.
        commit: the commit that is checked out in `files`.
        output: the folder that is kept for the next build, with the objects.
        ccache: the folder of the compiler's cache.
        what: the kernel, for messages.
    """

    source: SourceTree
    commit: str
    plan: ConfigPlan
    toolchain: FoundToolchain
    sandbox: Sandbox
    output: Path
    ccache: Path
    what: str

    @property
    def objects(self) -> Path:
        """The folder that make writes to."""
        return self.output / _OBJECTS


@dataclass(frozen=True)
class BuildReport:
    """The statistics of a build.

    Attributes:
        seconds: wall time.
        compiled: the number of files that make compiled.
        cache_hits: those that ccache had.
        cache_misses: those that ccache lacked.
    """

    seconds: float
    compiled: int
    cache_hits: int
    cache_misses: int


def build(job: BuildJob, progress: Progress) -> BuildReport:
    """Compile; the caller holds the source's `claimed`, and `files` is checked out.

    Raises:
        UnbuildableError: it cannot be configured, or does not compile.
        UsageError: a header or a newer toolchain is needed.
        OSError: the disk is full.
    """
    begin = time.monotonic()
    new = not job.output.exists()
    if new:
        _start_from_a_neighbour(job.output)
    job.objects.mkdir(parents=True, exist_ok=True)
    log, statistics = job.output / _LOG, job.output / _STATISTICS
    first = not os.path.lexists(job.objects / "vmlinux")
    estimate = _files_of_a_whole_build(job.output) if first else None
    log.unlink(missing_ok=True)
    statistics.write_text("")
    (job.output / _ASKED).write_text(job.plan.text)
    unfinished = job.output / _UNFINISHED
    _undo_unfinished(job.output, progress)
    unfinished.touch()
    try:
        with folder_in_use(job.ccache):
            _configure(job, log)
            with progress.compiling(job.what, estimate) as report:
                words = (f"-j{jobs()}", "bzImage", "modules")
                compiled = run_make(make_argv(job, words), log, report, hide=_hidden(job))
    except NotConfigurableError:
        if new:
            shutil.rmtree(job.output)  # useless, and as large as the neighbour's
        else:
            unfinished.unlink()
        raise
    except MakeKilledError:
        raise  # the next build removes incomplete files
    except (UnbuildableError, UsageError):
        # make has ended by itself, and removed the incomplete target.
        unfinished.unlink()
        raise
    unfinished.unlink()
    if first:
        (job.output / _FILES).write_text(str(compiled))
    hits, misses = cache_use(statistics)
    return BuildReport(time.monotonic() - begin, compiled, hits, misses)


def collect(job: BuildJob, into: Path) -> str:
    """Copy the kernel, its modules and the build's log to a folder.

    Returns:
        The kernel's release.

    Raises:
        UnbuildableError: the build has left no kernel, or links in the place of its files.
    """
    objects = UntrustedFolder(job.objects)
    parts = {"vmlinuz": _IMAGE, "config": ".config", "System.map": "System.map"}
    for name, made in parts.items():
        try:
            objects.copy(made, into / name)
        except FileNotFoundError:
            raise UnbuildableError(
                f"the build has left no {Path(made).name}",
                where=str(job.output / _LOG),
                hint="see the log; is it the source of an x86 kernel?",
            ) from None
    shutil.copyfile(job.output / _LOG, into / "build.log")
    with suppress(FileNotFoundError):
        if (job.objects / "vmlinux").lstat().st_size <= _SYMBOLS_LIMIT:
            objects.copy("vmlinux", into / "vmlinux")
    (into / "scripts").mkdir()
    for name in DECODERS:
        with suppress(FileNotFoundError):
            UntrustedFolder(job.source.files).copy(f"scripts/{name}", into / "scripts" / name)
    modules = into / "modules"
    modules.mkdir()
    for name in _MODULE_LISTS:
        with suppress(FileNotFoundError):
            objects.copy(name, modules / name)
    # modules.order is the build's, like the modules: their paths are untrusted too.
    for path in module_files(job.objects):
        place = path.relative_to(job.objects) if path.is_relative_to(job.objects) else path
        with objects.open(str(place)) as module:
            copy = modules / "kernel" / place
            copy.parent.mkdir(parents=True, exist_ok=True)
            with copy.open("wb") as stream:
                shutil.copyfileobj(module, stream)
    return read_release(into / "vmlinuz")


def cache_use(statistics: Path) -> tuple[int, int]:
    """Return the hits and misses in ccache's log, without the tests of Kconfig and make."""
    hits = misses = 0
    counts = False
    try:
        lines = statistics.read_text().splitlines()
    except FileNotFoundError:
        return 0, 0
    for line in lines:
        if line.startswith("#"):
            counts = line[1:].strip() not in ("", "-", "/dev/null")
        elif counts:
            hits += line in ("direct_cache_hit", "preprocessed_cache_hit")
            misses += line == "cache_miss"
    return hits, misses


def output_name(source: str, toolchain: FoundToolchain, sandbox: Sandbox, plan: ConfigPlan) -> str:
    """Return the name of an output folder: source, toolchain and sandbox, configuration."""
    # Objects contain the paths at which they were built.
    kind = f"{_FORM}\n{toolchain.version}\n{toolchain.ccache}\n{sandbox.bwrap is not None}"
    parts = (hashlib.sha256(text.encode()).hexdigest()[:12] for text in (kind, plan.text))
    return "-".join((source, *parts))


def source_of_output(name: str) -> str:
    """Return the name of the source of an output folder."""
    return name.rsplit("-", 2)[0]


def _start_from_a_neighbour(output: Path) -> None:
    """Copy the objects of another configuration of the same source.

    make compiles the files again that a changed option affects, as in a folder whose configuration
    changes.
    """
    others = [
        path.parent
        for path in output.parent.glob(f"{output.name.rpartition('-')[0]}-*/{_CONFIGURED}")
        if os.path.lexists(path.parent / _OBJECTS / "vmlinux")
        and not (path.parent / _UNFINISHED).exists()
    ]
    if not others:
        return
    newest = max(others, key=lambda folder: (folder / _LOG).stat().st_mtime)
    partial = output.with_name(f"{output.name}.part")
    if partial.exists():
        shutil.rmtree(partial)
    deadline = Deadline(600, f"a copy of {newest}", hint="is the disk very slow?")
    partial.mkdir()
    words = ("cp", "--archive", "--reflink=auto")
    run([*words, newest / _OBJECTS, partial / _OBJECTS], deadline=deadline)
    partial.rename(output)


def _configure(job: BuildJob, log: Path) -> None:
    """Configure, unless no input of Kconfig has changed since this folder was configured."""
    path = job.output / _CONFIGURED
    digest = hashlib.sha256(job.plan.text.encode() + job.toolchain.version.encode()).hexdigest()
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    if known.get("asked") == digest and not _kconfig_changed(job, known["commit"]):
        return
    path.unlink(missing_ok=True)

    def make(words: Sequence[str]) -> None:
        run_make(
            make_argv(job, words), log, lambda count: None, hide=_hidden(job),
            what="the configuration of the kernel",
        )  # fmt: skip

    request = job.sandbox.place(job.output / _ASKED, _ASKED)
    configure(job.plan, UntrustedFolder(job.objects), request, job.source.files, make)
    path.write_text(json.dumps({"asked": digest, "commit": job.commit}))


def _kconfig_changed(job: BuildJob, before: str) -> bool:
    if before == job.commit:
        return False
    changed = job.source.repository.line("diff-tree", "-r", "--name-only", before, job.commit)
    if changed is None:
        return True
    names = (line.rpartition("/") for line in changed.splitlines())
    return any(
        name.startswith("Kconfig") or folder.startswith("scripts") or not folder
        for folder, _, name in names
    )


def make_argv(job: BuildJob, words: Sequence[str]) -> tuple[str, ...]:
    """Return the command line that runs make in the sandbox, with these words added."""
    source, output, ccache = job.source.files, job.objects, job.ccache
    places = job.sandbox.places(source, output, ccache)
    request, statistics = job.output / _ASKED, job.output / _STATISTICS
    place = job.sandbox.place
    make = ("make", "-C", str(places.source), f"O={places.output}", "ARCH=x86_64", "LOCALVERSION=")
    return job.sandbox.argv(
        (*make, *job.toolchain.make_words, *words),
        env=build_environment(places) | {"CCACHE_STATSLOG": str(place(statistics, _STATISTICS))},
        read_only={source: places.source, request: place(request, _ASKED)},
        writable={
            output: places.output,
            ccache: places.ccache,
            statistics: place(statistics, _STATISTICS),
        },
        cwd=places.output,
    )


def _hidden(job: BuildJob) -> tuple[Path, ...]:
    places = job.sandbox.places(job.source.files, job.objects, job.ccache)
    return places.source, places.output


def _files_of_a_whole_build(output: Path) -> int:
    """Return how many files another full build has compiled, as an estimate."""
    others = sorted(output.parent.glob(f"*/{_FILES}"), key=lambda path: path.stat().st_mtime)
    return max((int(path.read_text()) for path in others), default=_FILES_OF_BASE)


def _undo_unfinished(output: Path, progress: Progress) -> None:
    """Remove files that a killed build may have left incomplete: everything newer than its start.

    Files below include/config stay: they are empty, their times tell when an option last changed,
    and Kconfig touches them again as needed.
    """
    try:
        begin = (output / _UNFINISHED).stat().st_mtime_ns
    except FileNotFoundError:
        return
    progress.note("the last build here was interrupted; keeping its finished files")
    (output / _CONFIGURED).unlink(missing_ok=True)
    objects = output / _OBJECTS
    kept = objects / "include" / "config"
    for parent, _, names in os.walk(objects):
        folder = Path(parent)
        if folder == kept or kept in folder.parents:
            continue
        for name in names:
            path = folder / name
            if path.lstat().st_mtime_ns >= begin:
                path.unlink()
