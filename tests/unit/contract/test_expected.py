# SPDX-License-Identifier: GPL-2.0-or-later
"""Owners that a scenario states, compared with the contract's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from machines import CXL, HMEM, NOBODY, committed, firmware_state, scenario_of

from harness.contract.expected import check_stated, expectations
from harness.contract.oracle import as_run
from harness.core.errors import UsageError
from harness.platform.memory_range import MemoryRange
from harness.platform.target_node import NodeRange
from harness.scenario.scenario import Ownership

ALL = ("cxl_acpi", "cxl_pci", "cxl_mem", "dax_hmem", "kmem", "dax_cxl")
WINDOW = "110000000-18fffffff"
STATE = firmware_state({"sr0": WINDOW}, decoders=[committed("r0", WINDOW)], windows=[WINDOW])
BY_CXL = {"owner": "dax_cxl", "use": "system_ram"}
BY_HMEM = {"owner": "dax_hmem", "use": "system_ram"}
REASON = "the reviewers want it so, see their mail"
OFFLINE = {"owner": "dax_cxl", "use": "offline"}


def stated(*, load: tuple[str, ...] = ALL, then: Any = (), **expect: Any) -> Any:
    guest = {"load": list(load), "then": list(then)}
    return scenario_of({"soft_reserved": {"sr0": {"window": 0}}}, guest=guest, expect=expect)


def test_an_owner_against_the_contract_is_refused_with_both_and_the_rule() -> None:
    with pytest.raises(UsageError) as caught:
        check_stated(stated(per_range={"sr0": BY_HMEM}), STATE)
    assert caught.value.message == (
        "sr0 is stated as dax_hmem/system_ram; the contract's owner is dax_cxl/system_ram "
        "(rule 2 or 5)"
    )
    assert str(caught.value.where).endswith(": expect.per_range.sr0")


def test_a_node_is_stated_only_where_the_contract_has_one() -> None:
    in_node = {"sr0": BY_CXL | {"node": 1}}
    with pytest.raises(UsageError, match="sr0 is stated as dax_cxl/system_ram in node 1"):
        check_stated(stated(per_range=in_node), STATE)
    nodes = (NodeRange(MemoryRange.parse(WINDOW), 1, 1),)
    check_stated(stated(per_range=in_node), replace(STATE, nodes=nodes))


@pytest.mark.parametrize("name", ["sr0[7]", "sr1"])
def test_a_statement_about_what_is_not_there_is_refused(name: str) -> None:
    # A reason does not help: nothing would be judged.
    document = stated(per_range={name: BY_CXL}, why_not_the_contract=REASON)
    with pytest.raises(UsageError) as caught:
        check_stated(document, STATE)
    assert caught.value.message == f"no range or region is called '{name}' on this machine"
    assert caught.value.hint == "names: sr0, r0"


def test_the_owner_of_what_a_range_covers_is_the_ranges() -> None:
    with pytest.raises(UsageError, match="no region without a Soft Reserved range is"):
        check_stated(stated(per_range={"r0": BY_CXL}), STATE)


def test_a_node_is_named_where_an_owner_is_refused() -> None:
    with pytest.raises(UsageError, match="sr0 is stated as dax_hmem/system_ram in node 1; the"):
        check_stated(stated(per_range={"sr0": BY_HMEM | {"node": 1}}), STATE)


def test_a_stranded_range_cannot_be_stated_away() -> None:
    with pytest.raises(UsageError, match="sr0 is stated as nobody"):
        check_stated(stated(all_or_nothing={"sr0": {"owner": "nobody"}}), STATE)


def test_with_a_reason_the_statement_replaces_the_contract_and_is_named() -> None:
    document = stated(per_range={"sr0": BY_HMEM}, why_not_the_contract=REASON)
    check_stated(document, STATE)
    (first,) = expectations(document.value, STATE, "per_range")
    assert (first.owners["sr0"], first.stated_at) == (HMEM, {"sr0": "expect.per_range.sr0"})
    (other,) = expectations(document.value, STATE, "all_or_nothing")
    assert (other.owners["sr0"], other.stated_at) == (CXL, {})
    (loaded_otherwise,) = expectations(document.value, STATE, "per_range", as_stated=False)
    assert loaded_otherwise.owners["sr0"] == CXL


def test_what_is_not_stated_is_as_the_contract_has_it() -> None:
    check_stated(stated(), STATE)
    (first,) = expectations(stated().value, STATE, "per_range")
    assert first.owners == {"sr0": CXL}


def test_what_a_step_states_lasts_until_another_states_otherwise() -> None:
    away = {"offline": "sr0", "expect": {"sr0": OFFLINE}}
    still = {"unload": "device_dax", "fails": "ENOENT"}
    check_stated(stated(then=[away, still]), STATE)
    with pytest.raises(UsageError) as caught:
        check_stated(stated(then=[away, {"online": "sr0"}]), STATE)
    assert "by guest.then[0].expect.sr0, which lasts" in caught.value.message
    assert str(caught.value.where).endswith(": guest.then[1].expect")
    check_stated(stated(then=[away, {"online": "sr0", "expect": {"sr0": BY_CXL}}]), STATE)


@pytest.mark.parametrize("owner", [BY_CXL, BY_HMEM])
def test_where_the_kernel_decides_what_is_loaded_either_owner_may_be_stated(
    owner: dict[str, str],
) -> None:
    # dax_hmem_init() asks for cxl_pci since Linux 7.1, and not before.
    load = tuple(name for name in ALL if name not in ("cxl_pci", "cxl_mem"))
    check_stated(stated(load=load, per_range={"sr0": owner}), STATE)


@pytest.mark.parametrize(
    ("named", "found", "kernel", "owner"),
    [
        (["cxl_acpi", "dax_hmem", "kmem", "dax_cxl"], ALL, {}, CXL),
        (["dax_hmem", "kmem", "dax_cxl"], ["dax_hmem", "kmem", "dax_cxl"], {}, HMEM),
        (ALL, ALL, {"CXL_REGION": "n"}, HMEM),
        (["cxl_acpi", "cxl_pci", "cxl_mem", "dax_hmem", "kmem"], [*ALL[:5]], {}, NOBODY),
        (["dax_hmem", "kmem"], ["dax_hmem", "kmem"], dict.fromkeys(
            ("CXL_ACPI", "CXL_PCI", "CXL_MEM", "DEV_DAX_CXL"), "y"), CXL),
    ],
)  # fmt: skip
def test_owners_follow_from_what_the_guest_really_has(
    named: list[str], found: list[str], kernel: dict[str, Any], owner: Ownership
) -> None:
    scenario = as_run(stated(load=tuple(named)).value, found, kernel)
    (first,) = expectations(scenario, STATE, "per_range")
    assert first.owners["sr0"] == owner


@pytest.mark.parametrize(
    "keeping_out",
    [
        {"guest": {"missing": ["cxl_acpi"]}},
        {"kernel": {"cmdline": ["module_blacklist=cxl_acpi"]}},
        {"kernel": {"cmdline": ["modprobe.blacklist=cxl_acpi"]}},
    ],
)
def test_a_module_that_is_kept_out_is_not_expected_although_it_came(
    keeping_out: dict[str, Any],
) -> None:
    guest = {"load": [name for name in ALL if name != "cxl_acpi"], **keeping_out.get("guest", {})}
    rest = {key: value for key, value in keeping_out.items() if key != "guest"}
    scenario = scenario_of({}, guest=guest, **rest).value
    (first,) = expectations(as_run(scenario, ALL, {}), STATE, "per_range")
    assert first.owners["sr0"] == HMEM


@pytest.mark.parametrize(
    ("since", "release", "owner"),
    [("7.1", "", CXL), ("", "7.2.13", CXL), ("", "6.18.15", HMEM), ("6.18", "", HMEM)],
)
def test_a_kernel_that_no_longer_asks_for_cxl_does_not_pass_for_it(
    since: str, release: str, owner: Ownership
) -> None:
    guest = {"load": ["cxl_acpi", "dax_hmem", "kmem", "dax_cxl"]}
    scenario = scenario_of({}, guest=guest, kernel={"since": since}).value
    ran = as_run(scenario, guest["load"], {}, release)
    (first,) = expectations(ran, STATE, "per_range")
    assert first.owners["sr0"] == owner
