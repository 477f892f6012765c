# SPDX-License-Identifier: GPL-2.0-or-later
"""Observations of real guests, in tests/data/observations."""

from __future__ import annotations

import json
from pathlib import Path

from harness.contract.observation_parser import split_sections
from harness.machine.address_probe import machine_layout
from harness.machine.qemu_binary import QemuBinary
from harness.platform.address_map import MachineLayout
from harness.scenario.scenario_files import Case

CORPUS = Path(__file__).parents[1] / "data" / "observations"


def sections_of(name: str) -> dict[str, str]:
    return split_sections((CORPUS / name / "sections").read_text(), "captured")


def layout_from(name: str, case: Case) -> MachineLayout:
    """The layout as the harness makes it from the tables that QEMU gave."""
    qemu = QemuBinary(Path("qemu"), (10, 0, 2), "10.0.2", "0" * 64, True, ())
    kept = json.loads((CORPUS / name / "layout.json").read_text())
    return machine_layout(qemu, case.profile, lambda _key, _ask: kept)
