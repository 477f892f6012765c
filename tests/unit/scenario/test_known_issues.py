# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from layouts import layout_of
from machines import HMEM, committed, firmware_state, scenario_of, span
from refusals import Row, differences

from harness.contract.oracle import DRIVER_OPTIONS, as_run
from harness.contract.result import RULES, Finding
from harness.runs.minimize import requested_load
from harness.scenario.issue_conditions import Circumstances, Conditions
from harness.scenario.known_issues import (
    KnownIssues,
    known_failures,
    load_known_issues,
)
from harness.scenario.module_load import Load
from harness.scenario.scenario_files import load_case, scenario_names
from harness.scenario.yaml_document import read_document

Values = dict[str, Any]

ISSUE: Values = {
    "name": "stranded",
    "rules": ["1"],
    "seen": "kmem dax2.0: could not reserve region",
    "why": "because another device holds a part of it",
}
WARNED: Values = {
    **ISSUE,
    "name": "warned",
    "rules": ["6"],
    "lines": [r"could not reserve", r"error -1\d$"],
}


def read(*issues: Values) -> KnownIssues:
    return read_document(json.dumps({"issues": list(issues)}), "known.yaml", KnownIssues).value


WINDOW = "110000000-18fffffff"


def case(policy: Any = "per_range", state: Any = None, **more: Any) -> Circumstances:
    """A range over a window with a region over its first half, and a range elsewhere."""
    state = state or firmware_state(
        {"sr0": WINDOW, "sr1": "200000000-20fffffff"},
        decoders=[committed("decoder0", "110000000-14fffffff")],
        windows=[WINDOW],
    )
    return Circumstances(scenario_of(**more).value, state, policy, {"sr0": HMEM, "sr1": HMEM})


def about(issue: Values, release: str, policy: Any = "per_range") -> bool:
    return bool(read(ISSUE | issue).about(case(policy), release))


VERSIONS = [
    ("", "", "5.0.0", True),
    ("7.1", "", "7.1.0-rc1", True),
    ("7.1", "", "7.1.13+deb14-cloud-amd64", True),
    ("7.1", "", "7.0.99", False),
    ("7.1", "", "7.10.1", True),
    ("7.1.5", "", "7.1.4", False),
    ("7.1.5", "", "7.1.5", True),
    ("7.9", "", "7.10", True),
    ("", "7.3", "7.2.99", True),
    ("", "7.3", "7.3", False),
    ("", "7.3", "7.3.0-rc1", False),
    ("7.1", "7.3", "7.2.1", True),
    ("7.1", "7.3", "6.18.0", False),
    ("7.1", "", "unknown", False),
]


def test_an_issue_is_known_from_since_up_to_but_not_in_until() -> None:
    known = [(*row[:3], about({"since": row[0], "until": row[1]}, row[2])) for row in VERSIONS]
    assert known == VERSIONS


def test_an_issue_is_known_under_its_policies_or_under_all() -> None:
    assert about({"policies": ["per_range"]}, "7.2")
    assert not about({"policies": ["per_range"]}, "7.2", "all_or_nothing")
    assert about({}, "7.2", "all_or_nothing")


CONFLICT = Finding("6", "x", kind="error", subject="kmem dax2.0: could not reserve")
STRANDED = Finding("1", "sr0: stranded", span("150000000-18fffffff"))
OTHER = Finding("6", "x", kind="warn", subject="WARNING: CPU: 0")


def explained(issues: list[Values], *findings: Finding, **more: Any) -> list[str | None]:
    found = read(*issues).explain(findings, case(**more), "7.2")
    return [issue.name if issue else None for issue in found]


def test_each_finding_is_known_by_itself() -> None:
    both = [ISSUE, WARNED]
    assert explained(both, STRANDED, CONFLICT) == ["stranded", "warned"]
    assert explained([ISSUE], STRANDED, CONFLICT) == ["stranded", None]
    assert explained(both, Finding("4", "dax3.0"), CONFLICT) == [None, "warned"]
    assert explained([], STRANDED) == [None]


def test_a_kernel_message_of_no_known_issue_is_new() -> None:
    assert explained([ISSUE, WARNED], STRANDED, OTHER) == ["stranded", None]


def test_a_kernel_message_is_known_by_its_kind_and_its_first_line() -> None:
    failed = Finding("6", "x", kind="error", subject="it failed with error -12")
    assert explained([WARNED], failed) == ["warned"]
    assert explained([WARNED], replace(failed, subject=f"{failed.subject}0")) == [None]
    of_kind = WARNED | {"lines": ["^warn: it failed"]}
    assert explained([of_kind], failed) == [None]
    assert explained([of_kind], replace(failed, kind="warn")) == ["warned"]


def test_an_issue_of_other_kernels_explains_nothing() -> None:
    assert explained([ISSUE | {"until": "7.2"}], STRANDED) == [None]


def test_findings_must_lie_at_the_addresses_of_the_issue() -> None:
    issue = {**ISSUE, "where": {"addresses": "covered_in_part"}}
    assert explained([issue], STRANDED) == ["stranded"]
    assert explained([issue], Finding("1", "x", span("200000000-20fffffff"))) == [None]
    assert explained([issue], Finding("1", "x", span("150000000-19fffffff"))) == [None]
    assert explained([issue], Finding("1", "nowhere")) == [None]
    exact = firmware_state({"sr0": WINDOW}, windows=[WINDOW])
    assert explained([issue], STRANDED, state=exact) == [None]


CONDITIONS: list[tuple[Values, Values, bool]] = [
    ({"config": {"CXL_REGION": "n"}}, {"config": {"CXL_REGION": "n"}}, True),
    ({"config": {"CXL_REGION": "n"}}, {}, False),
    ({"config": {"CXL_REGION": "enabled"}}, {}, True),
    ({"drivers": ["kmem"]}, {}, True),
    ({"drivers": ["kmem"]}, {"load": ["dax_hmem"]}, False),
    ({"drivers": ["kmem"]}, {"load": [], "config": {"DEV_DAX_KMEM": "y"}}, True),
    ({"order": {"first": "kmem", "before": ["dax_hmem"]}}, {}, False),
    ({"order": {"first": "dax_hmem", "before": ["kmem"]}}, {}, True),
    ({"order": {"first": "kmem", "before": ["cxl_acpi", "dax_cxl"]}}, {}, True),
    (
        {"order": {"first": "kmem", "before": ["cxl_acpi", "dax_cxl"]}},
        {"load": ["kmem", "cxl_acpi"]},
        False,
    ),
    ({"load": "at_once"}, {}, False),
    ({"load": "at_once"}, {"guest": {"load": {"parallel": ["kmem", "dax_hmem"]}}}, True),
    ({"cmdline": ["quiet"]}, {}, False),
    ({"cmdline": ["quiet"]}, {"kernel": {"cmdline": ["quiet"]}}, True),
    ({"cmdline_lacks": ["quiet"]}, {"kernel": {"cmdline": ["quiet"]}}, False),
    ({"steps": [{"reload": "kmem"}]}, {}, False),
    (
        {"steps": [{"reload": "kmem"}]},
        {"guest": {"load": [], "then": [{"load": "kmem"}, {"reload": ["kmem", "dax_cxl"]}]}},
        True,
    ),
    (
        {"steps": [{"load": "*"}, {"unload": "*"}]},
        {"guest": {"load": [], "then": [{"unload": "kmem"}, {"load": "kmem"}]}},
        False,
    ),
]


def test_conditions() -> None:
    wrong = [
        (where, more)
        for where, more, holds in CONDITIONS
        if bool(read({**ISSUE, "where": where}).about(case(**more), "7.2")) is not holds
    ]
    assert wrong == []


VERSION_ERROR = "is not a kernel version"
LINES_ERROR = "rule 6 and lines go together"
# A change of an issue, and the place and message of its error.
CHANGES: list[Row] = [
    *(
        ({field: version}, f"[1].{field}", VERSION_ERROR)
        for field in ("since", "until")
        for version in ("7", "v7.1", "7.1-rc1", "7.1.2.3", "mainline", "7.1\n")
    ),
    ({"since": 7.10}, "[1].since", "expected `str`, got `float`"),
    ({"rules": []}, "[1].rules", "length"),
    ({"rules": "1"}, "[1].rules", "expected `array`"),
    ({"rules": ["11"]}, "[1].rules[0]", "'11'"),
    ({"seen": "short"}, "[1].seen", "length"),
    ({"why": "short"}, "[1].why", "length"),
    ({"policies": ["mine"]}, "[1].policies[0]", "'mine'"),
    ({"rules": ["6"]}, "[1].lines", LINES_ERROR),
    ({"lines": ["x"]}, "[1].lines", LINES_ERROR),
    ({"rules": ["6"], "lines": ["fine", "(open"]}, "[1].lines[1]", "not a regular expression"),
    ({"rules": ["6"], "lines": ["fine", "driver"]}, "[1].lines[1]", "matches unrelated"),
    ({"name": "stranded"}, "[1].name", "duplicate issue 'stranded'"),
    ({"where": {"steps": [{"relaod": "kmem"}]}}, "[1].where.steps[0]", "is not a step"),
    ({"where": {"steps": [{"load": "a", "unload": "b"}]}}, "[1].where.steps[0]", "is not a step"),
    ({"where": {"layout": "covered_in_part"}}, "[1].where.layout", "unknown key 'layout'"),
    ({"where": {"addresses": "covered"}}, "[1].where.addresses", "'covered'"),
]


def test_wrong_issues_are_refused_with_their_place() -> None:
    rows = [(value, f"issues{at}", text) for value, at, text in CHANGES]
    assert differences(lambda one: read(ISSUE, ISSUE | {"name": "other"} | one), rows) == []


def test_the_projects_issues_name_rules_that_exist() -> None:
    for issue in load_known_issues().issues:
        assert set(issue.rules) <= set(RULES)


def test_the_projects_issues_use_options_that_every_run_reads() -> None:
    for issue in load_known_issues().issues:
        assert set(issue.where.config) <= {"CXL_REGION", *DRIVER_OPTIONS.values()}


LEFT, PART = "range_left_to_cxl", "range_covered_in_part"
STRANDED_PARTS = {
    "partial_region": (LEFT, PART),
    "partial_region_middle": (LEFT, PART),
    "partial_region_second_half": (LEFT, PART),
    "two_regions_under_range": (LEFT, PART),
    "two_regions_with_gap": (LEFT, PART),
    "range_over_ram_and_window": (LEFT, PART),
    "range_over_window_and_hole": (LEFT, PART),
    "range_over_window_and_half": (LEFT, PART),
    "range_over_two_windows": (LEFT, PART),
    "three_ranges": (LEFT, PART),
    "range_over_failed_region": (f"region_ends_in_range {LEFT}", PART),
    "range_beside_partial_region": (f"region_ends_in_range {LEFT}", PART),
}
# By scenario: what applies on 6.18 and on 7.2, and on 6.12 where that is something else.
ISSUES: dict[str, tuple[str, ...]] = {
    **STRANDED_PARTS,
    **{
        name: (LEFT, "")
        for name in (
            *("partial_region_without_kmem", "three_ranges_full_size", "decoders_disagree"),
            *("no_region", "no_cxl_mem", "no_dax_cxl", "builtin_no_dax_cxl", "no_kmem_no_region"),
            *("reconfigure_devdax_hmem", "reload_beside_dax_hmem"),
            "claimed_and_unclaimed_ranges",
        )
    },
    "reload_dax_hmem": (LEFT, "reload_forgets_range"),
    "rebind_hmem_platform": (LEFT, "rebind_forgets_range"),
    "exact_cover_async": ("dax_hmem_before_cxl", ""),
    "exact_cover_async_pci": ("dax_hmem_before_cxl", ""),
    "exact_cover_all_orders": ("dax_hmem_before_cxl", ""),
    "hmem_builtin_cxl_module": ("dax_hmem_before_cxl", ""),
    "exact_cover_parallel": ("parallel_before_series", "parallel_race"),
    "region_larger": ("region_larger_than_range", ""),
    "two_ranges_in_region": ("region_larger_than_range", ""),
    "decoder_outside_windows": ("region_larger_than_range", ""),
    "range_in_part_of_node": ("node_left_alone whole_entry_taken", "whole_node_taken"),
    "range_over_ram_and_window_hmat": ("range_beyond_srat", "range_beyond_srat"),
    "cxl_acpi_denied_to_modprobe": ("deny_list_bypassed", "deny_list_bypassed"),
    "no_cxl_region_cxl_first": ("windows_cut_range", "windows_cut_range"),
    "no_cxl_region_all_orders": ("windows_cut_range", "windows_cut_range"),
    "no_cxl": ("", "no_node_without_cxl"),
    "builtin": ("", "builtin_race"),
    "reload_cxl_acpi_unlocked": ("reload_resets_decoders", "reload_resets_decoders"),
    "decommit_locked_region": ("decommit_locked_resets", "", "decommit_locked_warns"),
    "reload_modules": ("reload_cxl_acpi_warns", ""),
    "recreate_region": ("no_room_for_region", ""),
    "interleave_host_bridges_16k": ("interleave_above_16k_stranded", "interleave_above_16k"),
    "destroy_failed_region": ("destroy_failed_region", "destroy_failed_region", ""),
    "partial_region_dax_cxl_first": (LEFT, "flush_before_work"),
    "rebind_memdev": ("no_room_for_region", ""),
    "range_off_alignment": (f"{LEFT} lost_to_memory_blocks", "lost_to_memory_blocks"),
}


def applying(name: str) -> tuple[str, ...]:
    """The issues of a scenario on 6.18, on 7.2, and on 6.12."""
    found = load_case(name)
    layout = layout_of(found.profile)
    return tuple(
        " ".join(
            issue.name
            for issue in known_failures(found, layout, release, "per_range")
            if issue.where != Conditions()
        )
        for release in ("6.18.15", "7.2.13", "6.12.117")
    )


def test_the_issues_of_every_scenario_on_kernels_of_each_era() -> None:
    expected = {}
    for name in scenario_names():
        before, after, *oldest = ISSUES.get(name, ("", ""))
        expected[name] = (before, after, *(oldest or [before]))
    assert set(ISSUES) <= set(expected)
    assert {name: applying(name) for name in scenario_names()} == expected


def test_before_the_series_a_range_is_left_to_cxl_whichever_module_is_named_first() -> None:
    case = requested_load(load_case("no_region"), "dax_hmem,kmem,cxl_acpi")
    for release, issues in (("6.18.15", ["range_left_to_cxl_by_softdep"]), ("7.2.13", [])):
        failures = known_failures(case, layout_of(case.profile), release, "per_range")
        assert [one.name for one in failures if one.where != Conditions()] == issues


def test_a_line_that_prints_a_range_is_known_only_at_the_addresses_of_the_issue() -> None:
    issue = {**WARNED, "where": {"addresses": "covered_in_part"}}

    def finding(message: str) -> Finding:
        return Finding("6", "x", kind="error", subject=message)

    there = "kmem dax2.0: mapping0: 0x150000000-0x18fffffff could not reserve region"
    elsewhere = "kmem dax3.0: mapping0: 0x200000000-0x20fffffff could not reserve region"
    mem = "dax_region resource conflict for [mem 0x200000000-0x20fffffff flags 0x200]: error -12"
    assert explained([issue], finding(there)) == ["warned"]
    assert explained([issue], finding(elsewhere)) == [None]
    assert explained([issue], finding(mem)) == [None]
    assert explained([issue], finding("kmem dax3.0: could not reserve region")) == ["warned"]
    assert explained([WARNED], finding(elsewhere)) == ["warned"]
    # Not a range: the end is below the start.
    assert explained([issue], finding("kmem 0x2-0x1 could not reserve region")) == ["warned"]


def test_a_known_line_inside_a_trace_does_not_explain_the_trace() -> None:
    trace = ("WARNING: CPU: 0", "kmem dax2.0: could not reserve region", "---[ end trace 0 ]---")
    splat = replace(OTHER, dmesg=("\n".join(trace),))
    crash = Finding("6", "x", dmesg=trace, kind="panic", subject="Fatal exception")
    for finding in (splat, crash):
        assert explained([WARNED], finding) == [None]
    line = Finding("6", "x", dmesg=trace[1:2], kind="error", subject=trace[1])
    assert explained([WARNED], line) == ["warned"]


def test_a_driver_that_dax_hmem_loads_runs_too() -> None:
    issues = read(ISSUE | {"where": {"drivers": ["cxl_acpi", "cxl_pci", "dax_hmem"]}})
    for load, release, concerned in (
        (("cxl_acpi", "dax_hmem", "kmem", "dax_cxl"), "7.2.13", True),
        (("dax_hmem", "kmem", "dax_cxl"), "7.2.13", True),
        (("dax_hmem", "kmem"), "6.18.15", False),
        (("kmem",), "7.2.13", False),
    ):
        ran = as_run(scenario_of(load=load).value, load, {}, release)
        circumstances = replace(case("per_range"), scenario=ran, load=Load("in_order", load))
        assert bool(issues.about(circumstances, "7.2.13")) is concerned, (load, release)
