# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import re
from pathlib import Path

import pytest
from layouts import layout_of, state_of

from harness.contract.dmesg import complaints
from harness.contract.expected import check_stated
from harness.core.errors import UsageError
from harness.core.paths import PROFILES, SCENARIOS
from harness.platform.hdm_decoders import plan_decoders
from harness.scenario.known_issues import load_known_issues
from harness.scenario.scenario import POLICIES, Policy
from harness.scenario.scenario_files import (
    Case,
    load_case,
    load_profile,
    profile_names,
    scenario_names,
)


@pytest.fixture(params=scenario_names())
def case(request: pytest.FixtureRequest) -> Case:
    return load_case(request.param)


def test_there_are_scenarios_and_profiles() -> None:
    assert "exact_cover" in scenario_names()
    assert "one_window" in profile_names()


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_loads_and_can_be_laid_out(name: str) -> None:
    profile = load_profile(name)
    layout = layout_of(profile)
    assert len(layout.windows) == len(profile.windows)
    assert sum(span.size for span in layout.ram()) == profile.memory - 0x60000


def test_every_scenario_fits_its_machine(case: Case) -> None:
    state = state_of(case)
    settings = plan_decoders(case.profile, state)
    assert len({(one.component, one.index) for one in settings}) == len(settings)
    assert {one.range for one in settings} == {
        span for one in state.decoders for span in (one.range, one.ports_range)
    }


def test_the_oracle_and_the_file_expect_the_same_owners(case: Case) -> None:
    check_stated(case.document, state_of(case))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_wrong_expectation_is_caught(case: Case, policy: Policy, tmp_path: Path) -> None:
    text = (SCENARIOS / f"{case.name}.yaml").read_text()
    head, expect, tail = text.partition("\nexpect:")
    at = tail.index(f"{policy}:")
    # The first owner behind the policy's name.
    swapped = re.sub(
        r"owner: (dax_cxl|dax_hmem|firmware_ram|nobody)",
        lambda match: "owner: dax_cxl" if match[1] != "dax_cxl" else "owner: dax_hmem",
        tail[at:],
        count=1,
    )
    assert swapped != tail[at:]
    wrong = tmp_path / f"{case.name}.yaml"
    wrong.write_text(head + expect + tail[:at] + swapped)
    case = load_case(str(wrong))
    with pytest.raises(UsageError, match="; the contract's owner is ") as caught:
        check_stated(case.document, state_of(case))
    assert str(caught.value.where).startswith(str(wrong))


def test_a_scenario_does_not_expect_silence_to_be_broken_by_everything(case: Case) -> None:
    # An expected line that fits every complaint would hide them all.
    from machines import record

    strange = [record(3, "kmem dax9.9: something that nobody has ever seen")]
    patterns = [re.compile(line.pattern) for line in case.scenario.expect.dmesg]
    assert len(complaints(strange, patterns)) == 1


def test_the_known_issues_load() -> None:
    assert all(issue.why.strip() for issue in load_known_issues().issues)


def test_without_a_file_nothing_is_known(tmp_path: Path) -> None:
    assert load_known_issues(tmp_path / "none.yaml").issues == ()


def test_a_misspelt_name_is_told_with_the_names_there_are() -> None:
    with pytest.raises(UsageError, match="no scenario is called 'exact_covr'") as caught:
        load_case("exact_covr")
    assert caught.value.hint.startswith("did you mean exact_cover? scenarios: ")
    with pytest.raises(UsageError, match="no profile is called 'one_windw'") as caught:
        load_profile("one_windw")
    assert caught.value.hint.startswith("did you mean one_window? profiles: ")


def test_a_scenario_with_an_unknown_profile_is_told_where_it_names_it(tmp_path: Path) -> None:
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


def test_a_file_of_the_folder_one_is_in_is_named_without_the_way_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("nonsense: 1\n")
    with pytest.raises(UsageError) as caught:
        load_case("mine.yaml")
    assert str(caught.value.where) == "mine.yaml:1: nonsense"


@pytest.mark.parametrize("name", ["none.yaml", "./none", "/no/where.yml"])
def test_a_file_that_is_not_there_is_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"there is no scenario file {name}"):
        load_case(name)


def test_a_file_that_is_not_text_is_told(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_bytes(b"summary: \xff\xfe\n")
    with pytest.raises(UsageError, match="not UTF-8 text"):
        load_case(str(wrong))
