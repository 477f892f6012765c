# SPDX-License-Identifier: GPL-2.0-or-later
"""Read results back: files that `--json` wrote, and folders of evidence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from harness.contract.observation import SECTIONS, Observation, ObservationError
from harness.contract.observation_parser import parse_observation
from harness.contract.result import NotAResultError, RunResult, read_result
from harness.core.errors import UsageError
from harness.platform.firmware_state import FirmwareState
from harness.platform.hdm_decoders import DecoderSetting
from harness.platform.json_values import from_json

VERDICT = "verdict.json"
# More than any guest prints; a file of another kind must not fill the memory.
_MOST_BYTES = 64 << 20

_Part = TypeVar("_Part")


@dataclass(frozen=True)
class QemuFacts:
    """The QEMU of a run, from `kernel.json`."""

    version_text: str = ""


@dataclass(frozen=True)
class KernelFacts:
    """The kernel and its command line, from `kernel.json`."""

    identity: str = ""
    release: str = ""
    command_line: str = ""
    qemu: QemuFacts = QemuFacts()


@dataclass(frozen=True)
class SourceFacts:
    """The source that a kernel was built from; `dirty` if it had uncommitted changes."""

    origin: str = ""
    tree: str = ""
    commit: str | None = None
    dirty: bool = False


@dataclass(frozen=True)
class PatchFacts:
    """A patch that was applied."""

    name: str
    sha256: str


@dataclass(frozen=True)
class SeriesFacts:
    """A series that was applied."""

    path: str = ""
    patches: tuple[PatchFacts, ...] = ()


@dataclass(frozen=True)
class ToolchainFacts:
    """The lines that the compiler and the linker print about their versions."""

    version: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuildFacts:
    """A build, None without one."""

    seconds: float | None = None


@dataclass(frozen=True)
class Manifest:
    """Source and build of a stored kernel, from `kernel_manifest.json`."""

    source: SourceFacts | None = None
    series: SeriesFacts | None = None
    toolchain: ToolchainFacts = ToolchainFacts()
    build: BuildFacts = BuildFacts()
    packages: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class StoredRun:
    """A result and its evidence. Missing or damaged evidence has the default.

    Attributes:
        record: the result.
        folder: the evidence, None if it no longer exists.
        kernel: the kernel, its command line and QEMU.
        manifest: source, patches and toolchain; None for a kernel that was not built.
        state: the firmware state.
        decoders: the committed HDM decoders.
        sections: the texts of the observation.
        observation: the parsed sections, None if they are missing or damaged.
        argv: QEMU's command line.
        ended: when the verdict was written, in seconds since 1970, or None.
    """

    record: RunResult
    folder: Path | None = None
    kernel: KernelFacts = KernelFacts()
    manifest: Manifest | None = None
    state: FirmwareState | None = None
    decoders: tuple[DecoderSetting, ...] = ()
    sections: Mapping[str, str] = field(default_factory=dict)
    observation: Observation | None = None
    argv: str = ""
    ended: float | None = None

    @property
    def name(self) -> str:
        """The name of the evidence folder, of the scenario without one."""
        return Path(self.record.evidence).name or self.record.scenario


def load_runs(paths: Iterable[Path]) -> tuple[StoredRun, ...]:
    """Read results from files and, at any depth, from folders with a verdict.json.

    A run that is named both by a file and by its evidence is read once.

    Raises:
        UsageError: a path does not exist, or the harness did not write it, or it has no result.
    """
    found: list[StoredRun] = []
    seen: set[tuple[object, ...]] = set()
    for path in paths:
        for run in _runs_at(path):
            # Guests of one scenario differ in their folder. The combined result has the folder of
            # one of them, and more data.
            key = (run.record.scenario, run.record.evidence, bool(run.record.attempts))
            if run.record.evidence and key in seen:
                continue
            seen.add(key)
            found.append(run)
    return _without_guests(found)


def unfinished_runs(paths: Iterable[Path]) -> tuple[Path, ...]:
    """List the evidence below these folders of runs without a verdict: running, or killed."""
    found = {
        file.parent
        for path in paths
        if path.is_dir()
        for file in path.rglob("kernel.json")
        if not (file.parent / VERDICT).exists()
    }
    return tuple(sorted(found))


def _without_guests(runs: list[StoredRun]) -> tuple[StoredRun, ...]:
    """Leave out the guests that a combined result already counts."""
    counted = {
        Path(attempt.evidence).name
        for run in runs
        for attempt in run.record.attempts
        if attempt.evidence
    }
    return tuple(run for run in runs if run.record.attempts or run.name not in counted)


def _runs_at(path: Path) -> Iterator[StoredRun]:
    if path.is_dir():
        files = sorted(path.rglob(VERDICT))
        if not files:
            raise UsageError(
                f"there is no {VERDICT} in it or below it",
                where=str(path),
                hint="name evidence folders, a folder of them, or a file that --json wrote",
            )
        for file in files:
            yield _with_evidence(_record(_json(file), str(file)), file.parent)
        return
    if not path.exists():
        raise UsageError(
            "there is no such file or folder",
            where=str(path),
            hint="name a file that --json wrote, or evidence folders",
        )
    raw = _json(path)
    several = isinstance(raw, list)
    for number, one in enumerate(raw if several else [raw]):
        record = _record(one, f"{path}: result {number + 1}" if several else str(path))
        yield _with_evidence(record, _evidence_of(record, path))


def _evidence_of(record: RunResult, path: Path) -> Path | None:
    """The folder of a verdict.json; for other files, the stated folder or one next to them."""
    if path.name == VERDICT:
        return path.parent
    if not record.evidence:
        return None
    stated = Path(record.evidence)
    places = (stated, path.parent / stated.name)
    return next((one for one in places if (one / VERDICT).is_file()), None)


def _record(raw: Any, where: str) -> RunResult:
    try:
        return read_result(raw)
    except NotAResultError as error:
        raise UsageError(
            f"not the result of a run: {error}",
            where=where,
            hint="name a file that harness run --json wrote, or evidence folders",
        ) from None


def _json(path: Path) -> Any:
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"not JSON: {error}",
            where=str(path),
            hint="name a complete file that harness run --json wrote",
        ) from None


def read_text(path: Path) -> str:
    """Read a text file of a sensible size; invalid UTF-8 is replaced.

    Raises:
        UsageError: the file cannot be read, or is larger than any that the harness writes.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(
                f"larger than {_MOST_BYTES >> 20} MiB",
                where=str(path),
                hint="the harness writes no such file; name another one",
            )
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(
            f"cannot be read: {error.strerror}", where=str(path), hint="check its permissions"
        ) from None


def _with_evidence(record: RunResult, folder: Path | None) -> StoredRun:
    if folder is None:
        return StoredRun(record)
    sections = {
        name: read_text(folder / "observation" / name)
        for name in SECTIONS
        if (folder / "observation" / name).is_file()
    }
    return StoredRun(
        record=record,
        folder=folder,
        kernel=read_kernel(folder),
        manifest=_part(folder / "kernel_manifest.json", Manifest),
        state=_part(folder / "firmware_state.json", FirmwareState),
        decoders=_part(folder / "firmware.json", tuple[DecoderSetting, ...]) or (),
        sections=sections,
        observation=_observation(sections),
        argv=read_text(folder / "qemu.argv") if (folder / "qemu.argv").is_file() else "",
        ended=(folder / VERDICT).stat().st_mtime,
    )


def read_kernel(folder: Path) -> KernelFacts:
    """Read `kernel.json` of an evidence folder."""
    return _part(folder / "kernel.json", KernelFacts) or KernelFacts()


def _observation(sections: dict[str, str]) -> Observation | None:
    try:
        return parse_observation(sections)
    except ObservationError:
        return None  # the report shows the verdict without it


def _part(path: Path, kind: type[_Part]) -> _Part | None:
    """Read a JSON file of the evidence; None if it is missing or damaged."""
    if not path.is_file():
        return None
    try:
        return from_json(json.loads(read_text(path)), kind)
    except (ValueError, RecursionError):  # FormatError included
        return None
