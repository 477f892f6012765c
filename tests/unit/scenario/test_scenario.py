# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
import pytest

from harness.core.errors import UsageError
from harness.scenario import known_issues, profile
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


def refused(values: Values) -> UsageError:
    with pytest.raises(UsageError) as caught:
        read(values)
    return caught.value


STRUCTS = [
    one
    for module in (scenario_module, profile, known_issues)
    for one in vars(module).values()
    if isinstance(one, type) and issubclass(one, msgspec.Struct) and one is not msgspec.Struct
]


@pytest.mark.parametrize("kind", STRUCTS)
def test_every_value_of_a_file_is_frozen_and_refuses_what_it_does_not_know(
    kind: type[msgspec.Struct],
) -> None:
    config = kind.__struct_config__
    assert config.frozen
    assert config.forbid_unknown_fields


def test_the_policies_are_those_that_a_file_can_name() -> None:
    assert get_args(Policy) == POLICIES == ("per_range", "all_or_nothing")


def test_what_is_not_written_is_nothing() -> None:
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
    assert scenario.guest.load == ("cxl_acpi", "nd-pmem")
    assert scenario.expect.dmesg[0].pattern == r"rc:-\d"


def test_each_policy_has_its_own_owners() -> None:
    values = smallest()
    values["expect"]["per_range"] = {"sr0": {"owner": "dax_hmem", "use": "devdax"}}
    values["expect"]["all_or_nothing"] = {"sr0": {"owner": "dax_cxl"}}
    expect = read(values).expect
    assert expect.owners("per_range") == {"sr0": Ownership(owner="dax_hmem", use="devdax")}
    assert expect.owners("all_or_nothing") == {"sr0": Ownership(owner="dax_cxl", use="none")}


@pytest.mark.parametrize(
    ("owner", "text"),
    [
        (Ownership(owner="dax_cxl", use="system_ram"), "dax_cxl/system_ram"),
        (Ownership(owner="dax_hmem", use="devdax"), "dax_hmem/devdax"),
        (Ownership(owner="nobody"), "nobody"),
    ],
)
def test_an_owner_prints_with_its_use_when_there_is_one(owner: Ownership, text: str) -> None:
    assert str(owner) == text


@pytest.mark.parametrize("key", ["summary", "source", "profile", "guest"])
def test_what_every_scenario_must_say_is_missed(key: str) -> None:
    values = smallest()
    del values[key]
    assert refused(values).message == f"the key {key!r} is missing"


@pytest.mark.parametrize(
    ("owner", "where"),
    [
        ({"owner": "kmem"}, "expect.per_range.sr0.owner"),
        ({"owner": "dax_cxl", "use": "ram"}, "expect.per_range.sr0.use"),
        ({"owner": "dax_cxl", "user": "x"}, "expect.per_range.sr0.user"),
    ],
)
def test_only_the_words_of_the_contract_name_owners(owner: Values, where: str) -> None:
    values = smallest()
    values["expect"]["per_range"] = {"sr0": owner}
    assert str(refused(values).where).endswith(f": {where}")


def test_an_expected_line_is_a_regular_expression() -> None:
    values = smallest()
    line = {"pattern": "cxl [root", "reason": "it is expected here"}
    values["expect"]["dmesg"] = [{**line, "pattern": "fine"}, line]
    error = refused(values)
    assert "not a regular expression" in error.message
    assert str(error.where).endswith(": expect.dmesg[1].pattern")


def test_an_expected_line_gives_a_reason() -> None:
    values = smallest()
    values["expect"]["dmesg"] = [{"pattern": "x", "reason": "so"}]
    assert str(refused(values).where).endswith(": expect.dmesg[0].reason")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cmdline", ["two words"]),
        ("cmdline", [""]),
        ("cmdline", ["tab\t"]),
        ("cmdline", ["new\nline"]),
        ("config", {"cxl_region": "y"}),
        ("config", {"CONFIG-X": "y"}),
        ("config", {"CXL_REGION": "maybe"}),
    ],
)
def test_what_a_kernel_must_be_is_written_in_its_own_words(field: str, value: Any) -> None:
    refused(smallest() | {"kernel": {field: value}})


def test_nothing_of_a_scenario_ends_with_a_newline_that_its_pattern_overlooks() -> None:
    # QEMU's command line is made one option a line: the next word would be an option.
    refused(smallest() | {"kernel": {"cmdline": ["quiet\n", "-monitor"]}})


@pytest.mark.parametrize("module", ["", "-r", "a b", "a;b", "../x", "a" * 65])
def test_a_module_is_named_by_a_word_that_no_shell_or_option_parser_reads(module: str) -> None:
    assert "guest.load[0]" in str(refused(smallest() | {"guest": {"load": [module]}}).where)


@pytest.mark.parametrize("node", [-1, 256])
def test_an_srat_entry_names_a_proximity_domain_of_8_bits(node: int) -> None:
    error = refused(smallest() | {"firmware": {"acpi": {"srat": [{"window": 0, "node": node}]}}})
    assert str(error.where).endswith(": firmware.acpi.srat[0].node")


def test_an_option_may_be_asked_to_be_enabled_in_any_way() -> None:
    text = ALL.replace("CXL_REGION: y", "CXL_REGION: enabled")
    assert read_scenario(text, "s.yaml").value.kernel.config["CXL_REGION"] == "enabled"


@pytest.mark.parametrize("pattern", ["", ".", ".*failed", "error"])
def test_an_expected_line_must_not_match_just_anything(pattern: str) -> None:
    line = {"pattern": pattern, "reason": "because it must be so"}
    values = smallest()
    values["expect"] = values["expect"] | {"dmesg": [line]}
    assert str(refused(values).where).endswith(": expect.dmesg[0].pattern")
