# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
from refusals import DELETE, Row, changed, differences

from harness.scenario import (
    allowed_messages,
    issue_conditions,
    known_issues,
    post_boot_steps,
    profile,
)
from harness.scenario import scenario as scenario_module
from harness.scenario.scenario import (
    POLICIES,
    Ownership,
    Policy,
    Position,
    Scenario,
    decoder_name,
    read_scenario,
)

Values = dict[str, Any]

ALL = r"""
summary: All.
source: a test
profile: one_window
firmware:
  soft_reserved:
    sr0: {window: 0, offset: 256M, size: 512M}
    sr1: {node: 1}
    sr2: {start: 0x180000000, end: 0x1bfffffff}
    sr3: {window: 0, last_window: 1}
  decoders:
    - {window: 0, offset: 1G, size: 512M, devices: [mem0, mem1], granularity: 1024}
    - {name: second, window: 1, size: 1G, devices: [mem0]}
  acpi: {srat: [{window: 0, node: 2, hotplug: true}]}
kernel: {config: {CXL_REGION: y, DEV_DAX_CXL: n, CXL_MEM: m}, cmdline: [quiet, a.b=c]}
guest: {load: [cxl_acpi, nd-pmem]}
expect:
  per_range: {sr0: {owner: dax_hmem, use: devdax}}
  all_or_nothing: {sr0: {owner: nobody}}
  dmesg: [{pattern: 'rc:-\d', reason: because it must be}]
"""


def smallest() -> Values:
    return {
        "summary": "Nothing.",
        "source": "a test",
        "profile": "one_window",
        "guest": {},
        "expect": {"per_range": {}, "all_or_nothing": {}},
    }


def read(values: Values) -> Scenario:
    return read_scenario(json.dumps(values), "s.yaml").value


STRUCTS = [
    one
    for module in (
        allowed_messages,
        issue_conditions,
        known_issues,
        post_boot_steps,
        profile,
        scenario_module,
    )
    for one in vars(module).values()
    if isinstance(one, type) and issubclass(one, msgspec.Struct) and one is not msgspec.Struct
]


def test_every_value_of_a_file_is_frozen_and_refuses_unknown_keys() -> None:
    configs = {one.__name__: one.__struct_config__ for one in STRUCTS}
    assert [name for name, one in configs.items() if not one.frozen] == []
    assert [name for name, one in configs.items() if not one.forbid_unknown_fields] == []


def test_the_policies_are_those_that_a_file_can_name() -> None:
    assert get_args(Policy) == POLICIES == ("per_range", "all_or_nothing")


def test_absent_fields_are_empty() -> None:
    scenario = read(smallest())
    assert scenario.firmware.soft_reserved == {}
    assert scenario.firmware.decoders == ()
    assert scenario.firmware.acpi.srat == ()
    assert scenario.kernel.config == {}
    assert scenario.kernel.cmdline == ()
    assert scenario.guest.load == ()
    assert scenario.expect.dmesg == ()


def test_a_scenario_is_read_whole() -> None:
    scenario = read_scenario(ALL, "s.yaml").value
    reserved = scenario.firmware.soft_reserved
    assert list(reserved) == ["sr0", "sr1", "sr2", "sr3"]
    assert (reserved["sr0"].offset, reserved["sr0"].size) == (256 << 20, 512 << 20)
    assert (reserved["sr2"].start, reserved["sr2"].end) == (0x180000000, 0x1BFFFFFFF)
    assert reserved["sr3"] == Position(window=0, last_window=1)
    assert (reserved["sr3"].offset, scenario.firmware.decoders[1].offset) == (0, 0)
    assert scenario.firmware.decoders[0].granularity == 1024
    assert [decoder_name(scenario, index) for index in (0, 1)] == ["decoder0", "second"]
    assert scenario.firmware.acpi.srat[0].hotplug is True
    assert scenario.kernel.config == {"CXL_REGION": "y", "DEV_DAX_CXL": "n", "CXL_MEM": "m"}
    assert scenario.guest.load == ("cxl_acpi", "nd_pmem")
    assert scenario.expect.dmesg[0].pattern.pattern == r"rc:-\d"


def test_each_policy_has_its_own_owners() -> None:
    values = smallest()
    values["expect"]["per_range"] = {"sr0": {"owner": "dax_hmem", "use": "devdax"}}
    values["expect"]["all_or_nothing"] = {"sr0": {"owner": "dax_cxl"}}
    expect = read(values).expect
    assert expect.owners("per_range") == {"sr0": Ownership(owner="dax_hmem", use="devdax")}
    assert expect.owners("all_or_nothing") == {"sr0": Ownership(owner="dax_cxl", use="none")}


def test_an_owner_prints_with_its_use_when_there_is_one() -> None:
    assert str(Ownership(owner="dax_cxl", use="system_ram")) == "dax_cxl/system_ram"
    assert str(Ownership(owner="dax_hmem", use="devdax")) == "dax_hmem/devdax"
    assert str(Ownership(owner="nobody")) == "nobody"


LINE = {"pattern": "fine", "reason": "it is expected here"}
# A change of one field, and the place and message of its error.
CHANGES: list[Row] = [
    *(((key, DELETE), "", f"the key {key!r} is missing") for key in ("summary", "source")),
    *(((key, DELETE), "", f"the key {key!r} is missing") for key in ("profile", "guest")),
    (("expect.per_range", {"sr0": {"owner": "kmem"}}), "expect.per_range.sr0.owner", "'kmem'"),
    (
        ("expect.per_range", {"sr0": {"owner": "dax_cxl", "use": "ram"}}),
        "expect.per_range.sr0.use",
        "'ram'",
    ),
    (
        ("expect.per_range", {"sr0": {"owner": "dax_cxl", "user": "x"}}),
        "expect.per_range.sr0.user",
        "did you mean use?",
    ),
    (
        ("expect.dmesg", [LINE, {**LINE, "pattern": "cxl [root"}]),
        "expect.dmesg[1].pattern",
        "not a regular expression",
    ),
    *(
        (
            ("expect.dmesg", [{**LINE, "pattern": pattern}]),
            "expect.dmesg[0].pattern",
            "matches unrelated kernel messages",
        )
        for pattern in ("", ".", ".*failed", "error")
    ),
    (("expect.dmesg", [{**LINE, "reason": "so"}]), "expect.dmesg[0].reason", "length"),
    # QEMU's command line is written one option a line: a newline would begin another option.
    *(
        (("kernel", {"cmdline": [parameter]}), "kernel.cmdline[0]", "regex")
        for parameter in ("two words", "", "tab\t", "new\nline", "quiet\n")
    ),
    (("kernel", {"config": {"cxl_region": "y"}}), "kernel.config", "regex"),
    (("kernel", {"config": {"CONFIG-X": "y"}}), "kernel.config", "regex"),
    (("kernel", {"config": {"CXL_REGION": "maybe"}}), "kernel.config.CXL_REGION", "'maybe'"),
    (("kernel", {"since": "7"}), "kernel.since", "regex"),
]


def test_wrong_fields_are_refused_with_their_place() -> None:
    assert differences(lambda one: read(changed(smallest(), *one)), CHANGES) == []


def test_an_option_may_be_required_as_enabled() -> None:
    text = ALL.replace("CXL_REGION: y", "CXL_REGION: enabled")
    assert read_scenario(text, "s.yaml").value.kernel.config["CXL_REGION"] == "enabled"
