# SPDX-License-Identifier: GPL-2.0-or-later
"""A drawn layout as a checked case, and as the files from which `harness run` runs it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from harness.contract.oracle import expected_owners
from harness.core.errors import UsageError
from harness.fuzz.draw import Layout
from harness.platform.address_map import MachineLayout
from harness.platform.firmware_state import FirmwareState, place_firmware
from harness.scenario.checks import check_scenario
from harness.scenario.profile import Profile, read_profile
from harness.scenario.scenario import POLICIES, read_scenario
from harness.scenario.scenario_files import Case

_LICENCE = "# SPDX-License-Identifier: GPL-2.0-or-later\n"


@dataclass(frozen=True)
class DrawnCase:
    """A layout that can be run.

    Attributes:
        layout: as it was drawn.
        case: with the owners that the oracle expects.
        machine: where QEMU puts things.
        state: what the firmware leaves, at real addresses.
        texts: the profile's and the scenario's file.
    """

    layout: Layout
    case: Case
    machine: MachineLayout
    state: FirmwareState
    texts: tuple[str, str]

    def save(self, folder: Path, comment: Sequence[str]) -> Path:
        """Write scenario and profile, and give the scenario's file.

        Args:
            folder: is made if it is not there.
            comment: lines for the scenario's head.

        Raises:
            UsageError: they cannot be written.
        """
        name = self.case.name
        profile, scenario = self.texts
        head = "".join(f"# {line}".rstrip() + "\n" for line in comment)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.profile.yaml").write_text(_LICENCE + profile)
            file = folder / f"{name}.yaml"
            file.write_text(_LICENCE + head + scenario)
        except OSError as error:
            raise UsageError(
                f"cannot be written: {error.strerror}",
                where=str(folder),
                hint="name another folder with --save",
            ) from None
        return file


def case_of(
    layout: Layout, name: str, ask_machine: Callable[[Profile], MachineLayout]
) -> DrawnCase:
    """Read a layout as if it stood in files, and let the oracle state the owners.

    Args:
        layout: as it was drawn.
        name: of the scenario.
        ask_machine: where QEMU puts a profile's parts.

    Raises:
        UsageError: the layout is one that scenario files may not have.
    """
    profile_text = _yaml(layout.profile)
    profile = read_profile(profile_text, f"{name}.profile.yaml").value
    machine = ask_machine(profile)
    unjudged = read_scenario(_scenario(layout, name, {}), name)
    check_scenario(unjudged, profile)
    state = place_firmware(unjudged, profile, machine)
    owners = {
        policy: msgspec.to_builtins(expected_owners(unjudged.value, state, policy))
        for policy in POLICIES
    }
    text = _scenario(layout, name, owners)
    document = read_scenario(text, f"{name}.yaml")
    check_scenario(document, profile)
    case = Case(name, document, profile, profile_text=profile_text)
    return DrawnCase(layout, case, machine, state, (profile_text, text))


def _scenario(layout: Layout, name: str, owners: dict[Any, Any]) -> str:
    fields = {"profile": f"./{name}.profile.yaml", **layout.scenario}
    return _yaml(fields | {"expect": {**owners, **layout.scenario["expect"]}})


def _yaml(values: dict[str, Any]) -> str:
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=100, default_flow_style=None)


class _Dumper(yaml.SafeDumper):
    """Writes no anchors, which scenario files may not have."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
