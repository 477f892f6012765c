# SPDX-License-Identifier: GPL-2.0-or-later
"""Drawn layouts are valid and of all kinds, are shrunk, and their files can be run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from layouts import layout_of

from harness.contract.oracle import expected_owners
from harness.core.errors import UsageError
from harness.fuzz.campaign import draw_layouts, shrink_layout
from harness.fuzz.draw import Layout, layouts
from harness.fuzz.files import DrawnCase, case_of
from harness.platform.firmware_state import place_firmware
from harness.platform.hdm_decoders import plan_decoders
from harness.platform.memory_range import GIB
from harness.scenario.scenario import POLICIES
from harness.scenario.scenario_files import load_case


def drawn(rounds: int) -> list[Layout]:
    return [layout for number in range(rounds) for layout in draw_layouts(7, number)]


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(layouts())
def test_every_layout_is_valid(layout: Layout) -> None:
    case = case_of(layout, "drawn", layout_of)
    plan_decoders(case.case.profile, case.state)
    assert sum(one.range.size for one in case.state.decoders) <= 3 * GIB
    assert 1 <= len(case.case.profile.windows) <= 3


def test_an_invalid_layout_is_refused() -> None:
    layout = drawn(1)[0]
    wrong = {**layout.scenario, "firmware": {"soft_reserved": {"sr0": {"window": 7}}}}
    with pytest.raises(UsageError, match="no window 7"):
        case_of(Layout(layout.profile, wrong), "drawn", layout_of)


def kinds_of(case: DrawnCase) -> set[str]:
    """The kinds of layouts that a layout is one of."""
    state, profile, scenario = case.state, case.case.profile, case.case.scenario
    reserved = sorted(one.range for one in state.soft_reserved)
    regions = [one.range for one in state.regions()]
    owners = scenario.expect.per_range
    kinds: dict[str, Callable[[], bool]] = {
        "interleaved window": lambda: any(len(one.targets) > 1 for one in profile.windows),
        "four ways": lambda: any(len(one.devices) == 4 for one in state.decoders),
        "switch": lambda: any(
            port.switch for bridge in profile.host_bridges for port in bridge.ports
        ),
        "hidden window": lambda: any(one.hidden for one in profile.windows),
        "hidden part": lambda: any(one.parts for one in profile.windows),
        "no range": lambda: not reserved,
        "range over windows": lambda: any(
            one.last_window is not None for one in scenario.firmware.soft_reserved.values()
        ),
        "range over RAM": lambda: any(one.overlaps(ram) for one in reserved for ram in state.ram),
        "adjacent ranges": lambda: any(
            one.end + 1 == other.start for one in reserved for other in reserved
        ),
        "exact cover": lambda: any(one in regions for one in reserved),
        "part of a region": lambda: any(
            one != region and region.contains(one) for one in reserved for region in regions
        ),
        "region in part": lambda: any(
            one != region and one.contains(region) for one in reserved for region in regions
        ),
        "region without a range": lambda: any(name.startswith("decoder") for name in owners),
        "decoders disagree": lambda: any(one.ports_range != one.range for one in state.decoders),
        "hotplug room": lambda: bool(state.hotplug_room),
        "HMAT": lambda: bool(profile.hmat),
        "SRAT": lambda: bool(state.srat),
        "missing module": lambda: bool(scenario.guest.missing),
        "dax_hmem first": lambda: scenario.guest.modules[0] == "dax_hmem",
        "dax_cxl owns": lambda: any(one.owner == "dax_cxl" for one in owners.values()),
        "dax_hmem owns": lambda: any(one.owner == "dax_hmem" for one in owners.values()),
    }
    return {name for name, is_so in kinds.items() if is_so()}


def test_layouts_of_all_kinds_are_drawn() -> None:
    count = Counter(kind for one in drawn(12) for kind in kinds_of(case_of(one, "x", layout_of)))
    assert len(count) == 21, sorted(count)
    assert min(count.values()) >= 2, count


def test_a_seed_repeats_its_layouts_and_rounds_differ() -> None:
    first, again = draw_layouts(3, 0), draw_layouts(3, 0)
    assert [one.key for one in first] == [one.key for one in again]
    assert len({one.key for one in first}) == len(first) > 5
    for other in (draw_layouts(3, 1), draw_layouts(4, 0)):
        assert len({one.key for one in other} - {one.key for one in first}) > 5


def test_a_saved_layout_is_a_scenario_that_harness_run_reads(tmp_path: Path) -> None:
    for number, layout in enumerate(drawn(1)):
        case = case_of(layout, f"fuzz_{number}", layout_of)
        file = case.save(tmp_path / "found", ["harness fuzz --seed 7", "", "rule 1"])
        assert file.read_text().startswith("# SPDX")
        assert "# harness fuzz --seed 7\n#\n# rule 1\n" in file.read_text()
        read = load_case(str(file))
        assert (read.scenario, read.profile) == (case.case.scenario, case.case.profile)
        state = place_firmware(read.document, read.profile, layout_of(read.profile))
        for policy in POLICIES:
            assert read.scenario.expect.owners(policy) == expected_owners(
                read.scenario, state, policy
            )


def test_a_missing_profile_is_reported(tmp_path: Path) -> None:
    file = case_of(drawn(1)[0], "lone", layout_of).save(tmp_path, [])
    (tmp_path / "lone.profile.yaml").unlink()
    with pytest.raises(UsageError, match="there is no profile file") as caught:
        load_case(str(file))
    assert "lone.yaml:2: profile" in str(caught.value)


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "found").write_text("a file")
    with pytest.raises(UsageError, match="cannot be written"):
        case_of(drawn(1)[0], "lone", layout_of).save(tmp_path / "found", [])


def test_a_failing_layout_is_shrunk_as_far_as_it_fails() -> None:
    def fails(layout: Layout) -> bool:
        return "region in part" in kinds_of(case_of(layout, "x", layout_of))

    number, failing = next(
        (number, one) for number in range(20) for one in draw_layouts(7, number) if fails(one)
    )
    smallest = shrink_layout(7, number, failing, fails)
    assert fails(smallest)
    assert len(smallest.key) < len(failing.key)
    scenario = smallest.scenario
    assert (len(scenario["firmware"]["soft_reserved"]), len(smallest.profile["windows"])) == (1, 1)
    assert scenario["guest"]["load"][0] == "cxl_acpi"
    assert "hmat" not in smallest.profile


def test_a_layout_without_a_smaller_failure_stays() -> None:
    failing = draw_layouts(7, 2)[-1]
    tried: list[str] = []

    def fails(layout: Layout) -> bool:
        tried.append(layout.key)
        return layout.key == failing.key

    assert shrink_layout(7, 2, failing, fails).key == failing.key
    assert tried[0] == failing.key, "no guest runs for the layouts before"
