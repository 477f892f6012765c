# SPDX-License-Identifier: GPL-2.0-or-later
"""A drawn layout as a checked case, and as files for `harness run`."""

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
        case: with the owners that the oracle expects.
        machine: the address map of the profile in QEMU.
        state: the firmware state, with addresses.
        texts: the contents of the profile and the scenario file.
    """

    layout: Layout
    case: Case
    machine: MachineLayout
    state: FirmwareState
    texts: tuple[str, str]

    def save(self, folder: Path, comment: Sequence[str]) -> Path:
        """Write the scenario and its profile, and return the scenario file.

        Args:
            folder: created if it does not exist.
            comment: lines for the head of the scenario file.

        Raises:
            UsageError: the files cannot be written.
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
                f"the layout cannot be written: {error.strerror}",
                where=str(folder),
                hint="name another folder with --save",
            ) from None
        return file


def case_of(
    layout: Layout, name: str, address_map: Callable[[Profile], MachineLayout]
) -> DrawnCase:
    """Make a scenario of a layout, with the owners that the oracle expects.

    Args:
        name: of the scenario.
        address_map: the address map of a profile in QEMU.

    Raises:
        UsageError: the layout is not valid in scenario files.
    """
    profile_text = _yaml(layout.profile)
    profile = read_profile(profile_text, f"{name}.profile.yaml").value
    machine = address_map(profile)
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
    """Write no anchors, which are not allowed in scenario files."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
