# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading results back: files that `--json` wrote, and folders of evidence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.contract.observation import SECTIONS, Observation, ObservationError
from harness.contract.observation_parser import parse_observation
from harness.contract.result_record import NotAResultError, RunRecord, read_record
from harness.core.errors import UsageError

VERDICT = "verdict.json"
# More than any guest prints; a file of another kind must not fill the memory.
_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class StoredRun:
    """A result, with what its evidence has.

    Attributes:
        record: the result.
        folder: the evidence, or None where it is not there any more.
        kernel: `kernel.json`: identity, command line, QEMU; empty when it is missing.
        manifest: `kernel_manifest.json`: source, patches, toolchain; empty when it is missing.
        state: `firmware_state.json`; empty when it is missing.
        decoders: `firmware.json`.
        sections: the texts of the observation.
        observation: the same, read; None when there is none or it cannot be read.
        argv: QEMU's command line.
        ended: when the verdict was written, in seconds since 1970, or None.
    """

    record: RunRecord
    folder: Path | None = None
    kernel: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    decoders: tuple[dict[str, Any], ...] = ()
    sections: dict[str, str] = field(default_factory=dict)
    observation: Observation | None = None
    argv: str = ""
    ended: float | None = None

    @property
    def name(self) -> str:
        """The name of the evidence folder, or what stands for it."""
        return Path(self.record.evidence).name or self.record.scenario


def load_runs(paths: Iterable[Path]) -> tuple[StoredRun, ...]:
    """Read results from files and, at any depth, from folders with a verdict.json.

    A run that is named twice, by a file and by its evidence, is read once.

    Raises:
        UsageError: a path does not exist, or is not what the harness wrote, or holds no result.
    """
    found: list[StoredRun] = []
    seen: set[tuple[object, ...]] = set()
    for path in paths:
        for run in _runs_at(path):
            # Guests of one scenario share everything but their folder; the combined result has
            # the folder of one of them, and says more.
            key = (run.record.scenario, run.record.evidence, bool(run.record.attempts))
            if run.record.evidence and key in seen:
                continue
            seen.add(key)
            found.append(run)
    return _without_guests(found)


def unfinished_runs(paths: Iterable[Path]) -> tuple[Path, ...]:
    """The evidence below these folders of runs that have no verdict: under way, or killed."""
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


def _evidence_of(record: RunRecord, path: Path) -> Path | None:
    """The evidence around a verdict.json; of other files, where they say, or beside them."""
    if path.name == VERDICT:
        return path.parent
    if not record.evidence:
        return None
    said = Path(record.evidence)
    return next((one for one in (said, path.parent / said.name) if (one / VERDICT).is_file()), None)


def _record(raw: Any, where: str) -> RunRecord:
    try:
        return read_record(raw)
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
            hint="name a file that harness run --json wrote; was its writing cut short?",
        ) from None


def read_text(path: Path) -> str:
    """A text file of a sensible size; what is not UTF-8 in it is replaced.

    Raises:
        UsageError: it cannot be read, or is too large to be one of ours.
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


def _with_evidence(record: RunRecord, folder: Path | None) -> StoredRun:
    if folder is None:
        return StoredRun(record)
    sections = {
        name: read_text(folder / "observation" / name)
        for name in SECTIONS
        if (folder / "observation" / name).is_file()
    }
    decoders = _optional(folder / "firmware.json", list)
    return StoredRun(
        record=record,
        folder=folder,
        kernel=_optional(folder / "kernel.json", dict),
        manifest=_optional(folder / "kernel_manifest.json", dict),
        state=_optional(folder / "firmware_state.json", dict),
        decoders=tuple(one for one in decoders if isinstance(one, dict)),
        sections=sections,
        observation=_observation(sections),
        argv=read_text(folder / "qemu.argv") if (folder / "qemu.argv").is_file() else "",
        ended=(folder / VERDICT).stat().st_mtime,
    )


def _observation(sections: dict[str, str]) -> Observation | None:
    try:
        return parse_observation(sections)
    except ObservationError:
        return None  # the report shows the verdict all the same


def _optional(path: Path, kind: type[Any]) -> Any:
    """What a JSON file of the evidence has, or nothing of that kind."""
    if not path.is_file():
        return kind()
    try:
        raw = json.loads(read_text(path))
    except (ValueError, RecursionError):
        return kind()
    return raw if isinstance(raw, kind) else kind()
