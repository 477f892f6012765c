# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from layouts import layout_of, state_of
from machines import record

from harness.contract.dmesg import kernel_warnings
from harness.contract.expected import check_stated
from harness.core.errors import UsageError
from harness.core.paths import PROFILES, SCENARIOS
from harness.platform.hdm_decoders import plan_decoders
from harness.scenario.guest_memory import check_acpi_tables, check_page_structs
from harness.scenario.known_issues import load_known_issues
from harness.scenario.scenario import POLICIES, Policy
from harness.scenario.scenario_files import (
    Case,
    load_case,
    load_profile,
    profile_names,
    scenario_names,
)

CASES = tuple(load_case(name) for name in scenario_names())
STATES = {case.name: state_of(case) for case in CASES}


def test_there_are_scenarios_and_profiles() -> None:
    assert "exact_cover" in scenario_names()
    assert "one_window" in profile_names()


def test_every_profile_loads_and_has_an_address_map() -> None:
    wrong = []
    for name in profile_names():
        profile = load_profile(name)
        layout = layout_of(profile)
        size = sum(span.size for span in layout.ram())
        if len(layout.windows) != len(profile.windows) or size != profile.memory - 0x60000:
            wrong.append(name)
    assert wrong == []


def test_every_scenario_fits_its_machine() -> None:
    wrong = []
    for case in CASES:
        state = STATES[case.name]
        settings = plan_decoders(case.profile, state)
        spans = {span for one in state.decoders for span in (one.range, one.ports_range)}
        numbers = {(one.component, one.index) for one in settings}
        if len(numbers) != len(settings) or {one.range for one in settings} != spans:
            wrong.append(case.name)
    assert wrong == []


def test_the_oracle_and_the_files_expect_the_same_owners() -> None:
    assert contradicting(CASES) == []


def contradicting(cases: Iterable[Case]) -> list[str]:
    """Names of the scenarios whose owners contradict the contract."""
    wrong = []
    for case in cases:
        try:
            check_stated(case.document, STATES[case.name])
        except UsageError as error:
            assert "; the contract's owner is " in error.message
            assert str(error.where).startswith(case.document.name)
            wrong.append(case.name)
    return wrong


def with_another_owner(name: str, policy: Policy) -> str:
    """The text of a scenario with another first owner under a policy."""
    head, expect, tail = (SCENARIOS / f"{name}.yaml").read_text().partition("\nexpect:")
    at = tail.index(f"{policy}:")
    swapped = re.sub(
        r"owner: (dax_cxl|dax_hmem|firmware_ram|nobody)",
        lambda match: "owner: dax_cxl" if match[1] != "dax_cxl" else "owner: dax_hmem",
        tail[at:],
        count=1,
    )
    assert swapped != tail[at:]
    return head + expect + tail[:at] + swapped


def test_wrong_expectations_are_refused(tmp_path: Path) -> None:
    for policy in POLICIES:
        for name in scenario_names():
            (tmp_path / f"{name}.yaml").write_text(with_another_owner(name, policy))
        wrong = [load_case(str(tmp_path / f"{name}.yaml")) for name in scenario_names()]
        assert contradicting(wrong) == list(scenario_names())


def test_no_scenario_allows_unrelated_kernel_messages() -> None:
    # Such a pattern would hide every kernel message.
    strange = [record(3, "kmem dax9.9: a message of no known driver")]
    wrong = [
        case.name
        for case in CASES
        if len(kernel_warnings(strange, [line.pattern for line in case.scenario.expect.dmesg])) != 1
    ]
    assert wrong == []


def test_no_scenario_needs_more_memory_than_its_machine_has() -> None:
    for case in CASES:
        check_acpi_tables(case.document, STATES[case.name])
        check_page_structs(case.document, STATES[case.name])


def test_the_known_issues_load() -> None:
    assert all(issue.why.strip() for issue in load_known_issues().issues)


def test_without_a_file_there_are_no_known_issues(tmp_path: Path) -> None:
    assert load_known_issues(tmp_path / "none.yaml").issues == ()


def test_a_misspelt_name_is_refused_with_the_existing_names() -> None:
    with pytest.raises(UsageError, match="no scenario is called 'exact_covr'") as caught:
        load_case("exact_covr")
    assert caught.value.hint.startswith("did you mean exact_cover? scenarios: ")
    with pytest.raises(UsageError, match="no profile is called 'one_windw'") as caught:
        load_profile("one_windw")
    assert caught.value.hint.startswith("did you mean one_window? profiles: ")


def test_an_unknown_profile_is_refused_with_its_place(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    text = (SCENARIOS / "exact_cover.yaml").read_text()
    wrong.write_text(text.replace("profile: one_window", "profile: one_windw"))
    with pytest.raises(UsageError, match="no profile is called 'one_windw'") as caught:
        load_case(str(wrong))
    assert re.fullmatch(rf"{wrong}:\d+: profile", str(caught.value.where))
    assert "did you mean one_window?" in caught.value.hint


def test_a_scenario_that_its_profile_does_not_allow_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    text = (SCENARIOS / "exact_cover.yaml").read_text()
    wrong.write_text(text.replace("devices: [mem0]", "devices: [mem1]"))
    with pytest.raises(UsageError, match="the profile has no device 'mem1'"):
        load_case(str(wrong))


def test_a_scenario_and_a_profile_are_found_by_their_path_too(tmp_path: Path) -> None:
    copy = tmp_path / "mine.yaml"
    copy.write_text((SCENARIOS / "exact_cover.yaml").read_text())
    assert load_case(str(copy)).name == "mine"
    assert load_profile(str(PROFILES / "one_window.yaml")) == load_profile("one_window")


def test_a_file_below_the_working_directory_is_named_by_its_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("nonsense: 1\n")
    with pytest.raises(UsageError) as caught:
        load_case("mine.yaml")
    assert str(caught.value.where) == "mine.yaml:1: nonsense"


def test_an_absent_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("none.yaml", "./none", "/no/where.yml"):
        with pytest.raises(UsageError, match=f"there is no scenario file {name}"):
            load_case(name)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_bytes(b"summary: \xff\xfe\n")
    with pytest.raises(UsageError, match="not UTF-8 text"):
        load_case(str(wrong))
