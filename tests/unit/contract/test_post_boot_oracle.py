# SPDX-License-Identifier: GPL-2.0-or-later
"""The expectations of the steps of every scenario, compared with the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from machines import CXL, HMEM, NOBODY, committed, firmware_state, scenario_of

from harness.contract.post_boot_oracle import owners_after_steps
from harness.platform.firmware_state import FirmwareState
from harness.scenario.owner import Ownership
from harness.scenario.post_boot_steps import GuestStep

WINDOW = "110000000-18fffffff"
OUTSIDE = "1c0000000-1ffffffff"
OURS = firmware_state({"sr0": WINDOW}, decoders=[committed("decoder0", WINDOW)], windows=[WINDOW])
THEIRS = firmware_state({"sr0": WINDOW}, windows=[WINDOW])
BIND = {"bus": "platform", "driver": "hmem_platform", "device": "hmem_platform.0"}
OFFLINE = Ownership(owner="dax_cxl", use="offline")
DEVDAX = Ownership(owner="dax_cxl", use="devdax")
NO_USE = Ownership(owner="dax_cxl")


def after(
    state: FirmwareState, *steps: Mapping[str, Any], load: tuple[str, ...] | None = None
) -> list[Ownership]:
    document = scenario_of({}, load=load) if load is not None else scenario_of({})
    scenario = document.value
    then = tuple(msgspec.convert(step, GuestStep) for step in steps)
    guest = msgspec.structs.replace(scenario.guest, then=then)
    lived = owners_after_steps(msgspec.structs.replace(scenario, guest=guest), state, "per_range")
    return [owners["sr0"] for owners in lived]


def test_what_a_step_takes_away_nobody_else_may_take() -> None:
    for module in ("dax_cxl", "cxl_acpi", "cxl_mem"):
        assert after(OURS, {"unload": module}, {"load": module}) == [NOBODY, CXL]
    assert after(OURS, {"unload": "dax_hmem"}) == [CXL]
    assert after(THEIRS, {"unload": "dax_hmem"}, {"load": "dax_hmem"}) == [NOBODY, HMEM]
    assert after(THEIRS, {"unload": "dax_cxl"}) == [HMEM]


def test_without_kmem_the_owner_is_the_same_without_a_use() -> None:
    assert after(OURS, {"unload": "kmem"}, {"load": "kmem"}) == [NO_USE, CXL]


def test_the_use_changes_back_with_a_new_device_or_driver() -> None:
    away: list[dict[str, Any]] = [
        {"offline": "sr0"},
        {"reconfigure": "sr0", "mode": "devdax"},
    ]
    back: list[dict[str, Any]] = [
        {"online": "sr0"},
        {"reconfigure": "sr0", "mode": "system-ram"},
        {"reload": ["kmem"]},
        {"reload_every_order": ["dax_cxl"]},
    ]
    for one, changed in zip(away, (OFFLINE, DEVDAX), strict=True):
        for other in back:
            assert after(OURS, one, other) == [changed, CXL]
    assert after(OURS, away[0], {"load": "device_dax"}) == [OFFLINE, OFFLINE]


@pytest.mark.parametrize(
    ("gone", "back"), [("destroy_region", "create_region"), ("decommit", "commit")]
)
def test_a_range_without_its_region_is_nobodys(gone: str, back: str) -> None:
    lived = after(OURS, {"offline": "sr0"}, {gone: "decoder0"}, {back: "decoder0"})
    assert lived == [OFFLINE, NOBODY, CXL]


def test_a_step_that_must_fail_changes_nothing() -> None:
    assert after(OURS, {"decommit": "decoder0", "fails": "EPERM"}) == [CXL]
    assert after(OURS, {"unload": "dax_cxl", "fails": "EAGAIN"}) == [CXL]


def test_hmem_platform_without_its_driver_gives_nothing_to_dax_hmem() -> None:
    assert after(THEIRS, {"unbind": BIND}, {"bind": BIND}) == [NOBODY, HMEM]
    assert after(OURS, {"unbind": BIND}) == [CXL]
    steps = [{"unbind": BIND}, {"bind": BIND, "fails": "EBUSY"}]
    assert after(THEIRS, {"while_pending": steps}, {"bind": BIND}) == [NOBODY, HMEM]


def test_a_module_that_only_a_step_loads_counts_from_then_on() -> None:
    load = ("cxl_acpi", "cxl_pci", "cxl_mem", "kmem", "dax_cxl")
    assert after(THEIRS, {"load": "device_dax"}, {"load": "dax_hmem"}, load=load) == [
        NOBODY,
        HMEM,
    ]
    unbound = ({"load_unbound": "dax_hmem"}, {"bind": BIND})
    assert after(THEIRS, *unbound, load=load) == [NOBODY, HMEM]
