# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
from typing import Any

import pytest

from harness.errors import UsageError
from harness.model.known_issues import KnownIssues, read_known_issues
from harness.model.verdict import RULES, Finding
from harness.runs.catalogue import load_known_issues, scenario_names

Values = dict[str, Any]

ISSUE: Values = {
    "scenario": "partial_region",
    "rules": ["1"],
    "seen": "kmem dax2.0: could not reserve region",
    "why": "because somebody else holds a part of it",
}
WARNED: Values = {**ISSUE, "rules": ["6"], "lines": [r"could not reserve", r"error -1\d$"]}


def read(*issues: Values) -> KnownIssues:
    return read_known_issues(json.dumps({"issues": list(issues)}), "known.yaml").value


def refused(*issues: Values) -> UsageError:
    with pytest.raises(UsageError) as caught:
        read(*issues)
    return caught.value


def about(issue: Values, release: str, policy: Any = "per_range") -> bool:
    return bool(read(ISSUE | issue).about("partial_region", release, policy))


@pytest.mark.parametrize(
    ("since", "until", "release", "known"),
    [
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
    ],
)
def test_an_issue_is_known_from_since_up_to_but_not_in_until(
    since: str, until: str, release: str, known: bool
) -> None:
    assert about({"since": since, "until": until}, release) is known


def test_an_issue_is_known_under_its_policies_or_under_all() -> None:
    assert about({"policies": ["per_range"]}, "7.2")
    assert not about({"policies": ["per_range"]}, "7.2", "all_or_nothing")
    assert about({}, "7.2", "all_or_nothing")


def test_an_issue_is_about_one_scenario_or_about_all() -> None:
    assert read(ISSUE).about("exact_cover", "7.2", "per_range") == ()
    assert len(read(ISSUE | {"scenario": "*"}).about("exact_cover", "7.2", "per_range")) == 1


def test_an_issue_may_be_about_further_scenarios() -> None:
    several = read(ISSUE | {"also": ["exact_cover", "builtin"]})
    for name in ("partial_region", "exact_cover", "builtin"):
        assert len(several.about(name, "7.2", "per_range")) == 1
    assert several.about("mixed", "7.2", "per_range") == ()


CONFLICT = Finding("6", "an error: kmem: x", dmesg=("[  1.0] kmem dax2.0: could not reserve",))
STRANDED = Finding("1", "sr0: stranded")
OTHER = Finding("6", "a WARN: WARNING: CPU: 0", dmesg=("[  1.0] WARNING: CPU: 0",))


def explained(issues: list[Values], *findings: Finding) -> list[str]:
    found = read(*issues).explain("partial_region", "7.2", "per_range", findings)
    return [issue.rules[0] for issue in found]


def test_a_failure_is_known_when_every_finding_is() -> None:
    assert explained([ISSUE, WARNED], STRANDED, CONFLICT) == ["1", "6"]
    assert explained([ISSUE, WARNED], STRANDED) == ["1"]
    assert explained([ISSUE], STRANDED, CONFLICT) == []
    assert explained([ISSUE, WARNED], STRANDED, CONFLICT, Finding("4", "dax3.0")) == []
    assert explained([], STRANDED) == []


def test_another_complaint_than_the_known_one_is_new() -> None:
    assert explained([ISSUE, WARNED], STRANDED, OTHER) == []
    assert explained([WARNED], CONFLICT, OTHER) == []


def test_a_complaint_is_known_by_its_text_or_by_its_messages() -> None:
    assert explained([WARNED], Finding("6", "an error: it failed with error -12")) == ["6"]
    assert explained([WARNED], Finding("6", "an error: it failed with error -120")) == []


def test_an_issue_that_explains_several_findings_is_told_once() -> None:
    assert explained([ISSUE, ISSUE | {"rules": ["1", "2"]}], STRANDED, STRANDED) == ["1"]


def test_an_issue_of_other_kernels_explains_nothing() -> None:
    assert explained([ISSUE | {"until": "7.2"}], STRANDED) == []


@pytest.mark.parametrize("field", ["since", "until"])
@pytest.mark.parametrize("version", ["7", "v7.1", "7.1-rc1", "7.1.2.3", "mainline", "7.1\n"])
def test_a_version_is_written_as_one(field: str, version: str) -> None:
    error = refused(ISSUE, ISSUE | {field: version})
    assert "is not a kernel version" in error.message
    assert str(error.where).endswith(f": issues[1].{field}")


def test_a_version_without_quotes_is_refused_where_it_stands() -> None:
    error = refused(ISSUE | {"since": 7.10})
    assert error.message == "expected `str`, got `float`"
    assert str(error.where).endswith(": issues[0].since")


@pytest.mark.parametrize(
    ("field", "value"),
    [("rules", []), ("seen", "short"), ("why", "short"), ("policies", ["mine"]), ("rules", "1")],
)
def test_an_issue_says_what_is_seen_and_why(field: str, value: Any) -> None:
    assert f"issues[0].{field}" in str(refused(ISSUE | {field: value}).where)


@pytest.mark.parametrize("change", [{"rules": ["6"]}, {"lines": ["x"]}])
def test_rule_6_and_its_messages_go_together(change: Values) -> None:
    error = refused(ISSUE | change)
    assert error.message == "rule 6 and lines go together"
    assert str(error.where).endswith(": issues[0].lines")


def test_a_message_of_an_issue_is_a_regular_expression() -> None:
    error = refused({**WARNED, "lines": ["fine", "(open"]})
    assert "not a regular expression" in error.message
    assert str(error.where).endswith(": issues[0].lines[1]")


def test_a_rule_of_an_issue_is_a_rule_of_the_contract() -> None:
    refused(ISSUE | {"rules": ["11"]})


def test_the_projects_issues_name_scenarios_and_rules_that_exist() -> None:
    for issue in load_known_issues().issues:
        assert set(issue.scenarios) <= {*scenario_names(), "*"}
        assert set(issue.rules) <= set(RULES)


def test_a_known_line_inside_a_trace_does_not_explain_the_trace() -> None:
    trace = ("WARNING: CPU: 0", "kmem dax2.0: could not reserve region", "---[ end trace 0 ]---")
    splat = Finding("6", "a WARN: WARNING: CPU: 0", dmesg=("\n".join(trace),))
    crash = Finding("6", "the guest's kernel panicked", dmesg=trace)
    for finding in (splat, crash):
        assert not read(WARNED).explain("partial_region", "7.2.1", "per_range", [finding])
    line = Finding("6", "an error: kmem dax2.0: could not reserve region", dmesg=trace[1:2])
    assert read(WARNED).explain("partial_region", "7.2.1", "per_range", [line])
