# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run was made of, in its evidence: enough to judge it again, or to run it elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from harness.core.errors import UsageError
from harness.platform.acpi_tables import AcpiTableError, FixedWindow, HostBridgeBlock, parse_srat
from harness.platform.address_map import MachineLayout
from harness.platform.memory_range import MemoryRange
from harness.runs.evidence import Evidence
from harness.runs.prepare import Prepared

SCENARIO = "scenario.yaml"
PROFILE = "profile.yaml"
LAYOUT = "layout.json"
STATE = "firmware_state.json"
KERNEL_MANIFEST = "kernel_manifest.json"
JUDGING = "judging.json"


def write_inputs(evidence: Evidence, prepared: Prepared) -> None:
    """Write the scenario and profile as they were read, the machine's layout, and its state.

    The manifest that a stored kernel has, with its source commit and patches, is copied beside.
    """
    evidence.text(SCENARIO, prepared.case.document.text)
    evidence.text(PROFILE, prepared.case.profile_text)
    evidence.json(LAYOUT, layout_as_json(prepared.layout))
    evidence.json(STATE, asdict(prepared.state))
    manifest = prepared.bootable.kernel.image.parent / "manifest.json"
    try:
        evidence.json(KERNEL_MANIFEST, json.loads(manifest.read_text()))
    except (OSError, ValueError):
        return  # a kernel that the store did not make has none


def layout_as_json(layout: MachineLayout) -> dict[str, Any]:
    """A layout as JSON can hold it; tables in hexadecimal."""
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
    """The layout that `layout_as_json` wrote.

    Raises:
        UsageError: it is something else; `where` names the file.
    """
    try:
        srat = bytes.fromhex(raw["SRAT"])
        return MachineLayout(
            bridges=tuple(
                HostBridgeBlock(int(one["uid"]), MemoryRange.parse(one["registers"]))
                for one in raw["bridges"]
            ),
            windows=tuple(
                FixedWindow(
                    MemoryRange.parse(one["range"]),
                    tuple(int(target) for target in one["targets"]),
                    int(one["granularity"]),
                )
                for one in raw["windows"]
            ),
            memory=parse_srat(srat),
            srat=srat,
            cedt=bytes.fromhex(raw["CEDT"]) if raw["CEDT"] is not None else None,
        )
    except (AcpiTableError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"not the layout of a machine: {type(error).__name__}: {error}",
            where=where,
            hint="the file was changed, or another version of the harness wrote it",
        ) from None
