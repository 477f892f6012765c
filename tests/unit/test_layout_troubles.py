# SPDX-License-Identifier: GPL-2.0-or-later
"""What is special about layouts, and which findings it explains; what failures have in common."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from machines import committed, firmware_state, span

from harness.model.acpi_tables import MemoryAffinity
from harness.model.known_issues import KnownIssues, read_known_issues
from harness.model.layout_troubles import troubled
from harness.model.signature import signature
from harness.model.verdict import Finding

WINDOW = "110000000-18fffffff"
ISSUE = {
    "scenario": "partial_region",
    "where": "covered_in_part",
    "since": "7.1",
    "rules": ["1", "6"],
    "lines": ["could not reserve region"],
    "seen": "kmem dax2.0: could not reserve region",
    "why": "because somebody else holds a part of it",
}
EVERYWHERE = {"scenario": "*", "rules": ["6"], "lines": ["linear cache"]}
PART = firmware_state(
    {"sr0": WINDOW, "sr1": "200000000-20fffffff"},
    decoders=[committed("decoder0", "110000000-14fffffff")],
    windows=[WINDOW],
)


def cut(reserved: str, *, decoder: str = "", window: str = WINDOW) -> list[str]:
    state = firmware_state(
        {"sr0": reserved},
        decoders=[committed("decoder0", decoder)] if decoder else [],
        windows=[window] if window else [],
    )
    return [str(one) for one in troubled("covered_in_part", state, ())]


def test_a_region_or_window_over_a_part_of_a_range_is_a_trouble() -> None:
    half, more = "110000000-14fffffff", "110000000-1cfffffff"
    assert cut(WINDOW, decoder=half) == [WINDOW]
    assert cut(more) == [more]
    assert cut(half, decoder=WINDOW) == []
    assert cut(WINDOW, decoder=WINDOW) == []
    assert cut(WINDOW) == []
    assert cut("200000000-20fffffff", decoder=WINDOW) == []


def test_all_of_a_region_that_cuts_a_range_is_drawn_in() -> None:
    assert cut("120000000-18fffffff", decoder="110000000-14fffffff") == [WINDOW]


def test_a_region_that_is_given_up_is_in_the_way_as_well() -> None:
    decoder = replace(committed("decoder0", "110000000-14fffffff"), ports_range=span(WINDOW))
    state = firmware_state({"sr0": WINDOW}, decoders=[decoder], windows=[WINDOW])
    assert state.regions() == ()
    assert [str(one) for one in troubled("covered_in_part", state, ())] == [WINDOW]
    hidden = firmware_state({"sr0": WINDOW}, decoders=[replace(decoder, hidden=True)])
    assert troubled("covered_in_part", hidden, ()) == ()


def test_an_entry_of_the_srat_that_is_no_range_is_a_trouble() -> None:
    state = firmware_state({"sr0": "120000000-12fffffff"})

    def entries(*texts: str) -> list[str]:
        described = [MemoryAffinity(span(text), 1, hotplug=False) for text in texts]
        return [str(one) for one in troubled("srat_entry_differs", state, described)]

    assert entries("110000000-12fffffff") == ["110000000-12fffffff"]
    assert entries("120000000-127ffffff") == ["120000000-12fffffff"]
    assert entries("120000000-12fffffff", "130000000-13fffffff") == []
    assert entries() == []


def unexplained(*findings: Finding, release: str = "7.2.1", issue: object = ISSUE) -> list[str]:
    values = {"issues": [issue, ISSUE | EVERYWHERE | {"where": None}]}
    known: KnownIssues = read_known_issues(json.dumps(values), "known.yaml").value
    left = known.unexplained(findings, release, "per_range", PART, ())
    return [one.text for one in left]


def test_an_issue_explains_what_lies_where_it_says() -> None:
    inside = Finding("1", "inside", span("150000000-18fffffff"))
    assert unexplained(inside) == []
    assert unexplained(inside, release="6.18") == ["inside"]
    assert unexplained(inside, issue={**ISSUE, "where": None}) == ["inside"]
    assert unexplained(Finding("1", "other", span("200000000-20fffffff"))) == ["other"]
    assert unexplained(Finding("1", "beyond", span("150000000-19fffffff"))) == ["beyond"]
    assert unexplained(Finding("2", "owner", span("150000000-18fffffff"))) == ["owner"]
    assert unexplained(Finding("1", "nowhere")) == ["nowhere"]


def test_an_issue_explains_its_kernel_messages_only_where_there_is_its_trouble() -> None:
    said = Finding("6", "a warning: kmem dax2.0: could not reserve region")
    assert unexplained(said) == []
    assert unexplained(said, issue={**ISSUE, "where": "srat_entry_differs"}) == [said.text]
    assert unexplained(Finding("6", "a WARN: cxl")) == ["a WARN: cxl"]


def test_an_issue_of_every_scenario_is_one_of_every_layout() -> None:
    assert unexplained(Finding("6", "a warning: linear cache")) == []


@pytest.mark.parametrize(
    ("rule", "one", "other"),
    [
        ("1", "sr0: expected dax_hmem, found nobody, by x", "sr1: expected dax_hmem, found nobody"),
        (
            "2",
            "sr0: expected dax_cxl/system_ram, found dax_hmem/system_ram, by hmem.2 > dax2.0",
            "sr10: expected dax_cxl, found dax_hmem, by hmem.1 > dax1.0",
        ),
        (
            "6",
            "an error: kmem dax2.0: mapping0: 0x110000000-0x18fffffff failed with error -16",
            "an error: kmem dax0.0: mapping1: 0x1-0x2 failed with error -16 (during modprobe kmem)",
        ),
    ],
)
def test_failures_are_alike_whatever_their_names_and_numbers(
    rule: str, one: str, other: str
) -> None:
    assert signature([Finding(rule, one)]) == signature([Finding(rule, other)])


def test_failures_differ_by_rule_owner_and_error() -> None:
    texts = [
        ("1", "sr0: expected dax_hmem, found nobody"),
        ("2", "sr0: expected dax_hmem, found nobody"),
        ("1", "sr0: expected dax_cxl, found nobody"),
        ("use", "sr0: expected dax_cxl/system_ram, found dax_cxl/offline"),
        ("use", "sr0: expected dax_cxl/system_ram, found dax_cxl"),
        ("6", "an error: kmem dax0.0: error -12"),
        ("6", "an error: kmem dax0.0: error -16"),
    ]
    assert len(signature(Finding(rule, text) for rule, text in texts)) == len(texts)
