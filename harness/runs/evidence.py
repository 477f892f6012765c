# SPDX-License-Identifier: GPL-2.0-or-later
"""The evidence of a run: a folder with its inputs and actions, and the seconds of its phases."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.core.errors import UsageError
from harness.platform.acpi_tables import AcpiTableError, FixedWindow, HostBridgeBlock, parse_srat
from harness.platform.address_map import MachineLayout
from harness.platform.memory_range import MemoryRange
from harness.runs.prepare import Prepared

SCENARIO = "scenario.yaml"
PROFILE = "profile.yaml"
LAYOUT = "layout.json"
STATE = "firmware_state.json"
KERNEL_MANIFEST = "kernel_manifest.json"
JUDGING = "judging.json"


class Evidence:
    """The folder of one run, which exists and is empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """The path of the file with this name."""
        return self.folder / name

    def text(self, name: str, content: str) -> None:
        """Write a text file atomically."""
        path = self.path(name)
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_text(content, errors="replace")
        part.replace(path)

    def json(self, name: str, content: Any) -> None:
        """Write a JSON file atomically."""
        self.text(name, json.dumps(content, indent=2, default=str) + "\n")

    def command(self, name: str, argv: Sequence[str]) -> None:
        """Write a shell command that can be pasted, one option per line."""
        words = [shlex.quote(word) for word in argv]
        lines: list[str] = []
        for word in words:
            if word.startswith("-") or not lines:
                lines.append(word)
            else:
                lines[-1] += f" {word}"
        self.text(name, " \\\n  ".join(lines) + "\n")


def new_evidence(root: Path, scenario: str, release: str) -> Evidence:
    """Create a new folder below `root`, named by time, scenario and kernel.

    Raises:
        UsageError: the folder cannot be created.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    folder = root / f"{stamp}-{scenario}-{release}-{secrets.token_hex(3)}"
    try:
        folder.mkdir(parents=True, mode=0o755)
    except OSError as error:
        raise UsageError(
            f"evidence cannot be written: {os.strerror(error.errno or 0)}",
            where=str(root),
            hint="free some space, or name another folder with --evidence or HARNESS_EVIDENCE",
        ) from None
    return Evidence(folder)


class Timings:
    """Seconds by phase, in the order in which the phases ended.

    Args:
        before: phases that ended earlier and count in the total.
    """

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self._seconds: dict[str, float] = dict(before or {})
        self._begin = time.monotonic() - sum(self._seconds.values())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block as this phase, also when it raises."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - begin

    def seconds(self) -> dict[str, float]:
        """The phases so far, and the time since the beginning as `total`."""
        return {**self._seconds, "total": time.monotonic() - self._begin}


def write_inputs(evidence: Evidence, prepared: Prepared) -> None:
    """Write everything that a later judgement or replay needs.

    These are the texts of scenario and profile, the address map, the firmware state, and the
    manifest of a stored kernel with its source commit and patches.
    """
    evidence.text(SCENARIO, prepared.case.document.text)
    evidence.text(PROFILE, prepared.case.profile_text)
    evidence.json(LAYOUT, layout_as_json(prepared.layout))
    evidence.json(STATE, asdict(prepared.state))
    manifest = prepared.bootable.kernel.image.parent / "manifest.json"
    try:
        evidence.json(KERNEL_MANIFEST, json.loads(manifest.read_text()))
    except (OSError, ValueError):
        return  # only kernels of the store have a manifest


def layout_as_json(layout: MachineLayout) -> dict[str, Any]:
    """An address map for JSON, with its tables in hexadecimal."""
    return {
        "bridges": [{"uid": one.uid, "registers": str(one.registers)} for one in layout.bridges],
        "windows": [
            {
                "range": str(one.range),
                "targets": list(one.targets),
                "granularity": one.granularity,
            }
            for one in layout.windows
        ],
        "SRAT": layout.srat.hex(),
        "CEDT": layout.cedt.hex() if layout.cedt is not None else None,
    }


def layout_from_json(raw: Mapping[str, Any], where: str) -> MachineLayout:
    """Read what `layout_as_json` wrote.

    Args:
        raw: the JSON object.
        where: the file, for error messages.

    Raises:
        UsageError: the object is not an address map.
    """
    try:
        srat = bytes.fromhex(raw["SRAT"])
        return MachineLayout(
            bridges=tuple(
                HostBridgeBlock(int(bridge["uid"]), MemoryRange.parse(bridge["registers"]))
                for bridge in raw["bridges"]
            ),
            windows=tuple(
                FixedWindow(
                    MemoryRange.parse(window["range"]),
                    tuple(int(target) for target in window["targets"]),
                    int(window["granularity"]),
                )
                for window in raw["windows"]
            ),
            memory=parse_srat(srat),
            srat=srat,
            cedt=bytes.fromhex(raw["CEDT"]) if raw["CEDT"] is not None else None,
        )
    except (AcpiTableError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"not an address map: {type(error).__name__}: {error}",
            where=where,
            hint="the file was edited, or written by another version of the harness",
        ) from None
