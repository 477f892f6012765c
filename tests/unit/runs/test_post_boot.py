# SPDX-License-Identifier: GPL-2.0-or-later
"""Steps after boot, judged: what a guest does that answers as each test wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import msgspec
import pytest
from machines import CXL, by_cxl, committed, firmware_state, observed, record

from harness.contract.expected import Expected, expectations
from harness.contract.judge import Judgement, judge
from harness.contract.observation import CxlRegion, Observation
from harness.contract.result import Finding, RunResult, Verdict
from harness.core.errors import GuestCrashedError
from harness.guest.post_boot import StepDone
from harness.guest.post_boot_plan import Command, RegionMakeup
from harness.guest.settle import Settling
from harness.platform.firmware_state import FirmwareState
from harness.platform.memory_range import MemoryRange
from harness.runs import post_boot as life
from harness.runs.boot import BootedGuest
from harness.runs.evidence import Evidence
from harness.runs.prepare import Prepared
from harness.runs.timings import Timings
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.post_boot_steps import GuestStep
from harness.scenario.scenario import Policy, Scenario
from harness.scenario.scenario_files import load_case

WINDOW = "110000000-18fffffff"
STATE = firmware_state({"sr0": WINDOW}, decoders=[committed("decoder0", WINDOW)], windows=[WINDOW])
GOOD = f"""
    {WINDOW} : CXL Window 0
      {WINDOW} : region0
        {WINDOW} : dax0.0
          {WINDOW} : System RAM (kmem)"""
MODULES = {"dax_cxl": (), "dax_hmem": ("dax_cxl",), "kmem": (), "cxl_acpi": ()}
BIND = {"bus": "platform", "driver": "hmem_platform", "device": "hmem_platform.0"}


def good(*, offline: Sequence[str] = (), messages: Sequence[str] = ()) -> Observation:
    seen = observed(
        GOOD,
        by_cxl("dax0.0", WINDOW),
        offline=offline,
        dmesg=[record(4, text) for text in messages],
    )
    region = CxlRegion("region0", MemoryRange.parse(WINDOW), True, 1, "cxl_region")
    return replace(seen, regions=(region,))


def bare() -> Observation:
    return observed(f"{WINDOW} : CXL Window 0")


@dataclass
class Room:
    """A guest whose every command succeeds unless a test says otherwise.

    Attributes:
        seen: what is observed after each step.
        problems: what goes wrong in a step, by title.
        ran: titles of commands, in order.
        leaks: what kmemleak lists, None on a kernel that has none.
    """

    folder: Path
    seen: list[Observation] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    wanted: list[tuple[MemoryRange, ...]] = field(default_factory=list)
    check: Callable[[], None] = lambda: None
    leaks: str | None = None
    known: str = "nothing is known"

    def scan(self, _shell: object) -> str:
        self.ran.append("scan for leaks")
        assert self.leaks is not None, "this kernel cannot"
        return self.leaks

    def run(self, _shell: object, commands: Sequence[Command]) -> StepDone:
        self.ran += [one.title for one in commands]
        self.lines += [one.line for one in commands]
        problem = next((self.problems[c.title] for c in commands if c.title in self.problems), None)
        return StepDone("transcript\n", Finding("step", problem) if problem else None)

    def settle(self, _shell: object, wanted: tuple[MemoryRange, ...], *_: object) -> Observation:
        self.wanted.append(wanted)
        return self.seen.pop(0)

    def live(
        self,
        *steps: Mapping[str, Any],
        verdict: Verdict = Verdict.PASS,
        policy: Policy = "per_range",
        state: FirmwareState = STATE,
    ) -> RunResult:
        scenario = load_case("exact_cover").scenario
        then = tuple(msgspec.convert(step, GuestStep) for step in steps)
        guest = msgspec.structs.replace(scenario.guest, then=then)
        bootable = SimpleNamespace(finds_leaks=self.leaks is not None)
        scenario = msgspec.structs.replace(scenario, guest=guest)
        prepared = _Prepared(_Case(scenario), state, bootable)
        findings = (Finding("1", "broken before"),) if verdict is Verdict.FAIL else ()
        return life.live_on(
            life.Life(
                cast(BootedGuest, _Guest(self)),
                cast(Prepared, prepared),
                Evidence(self.folder),
                Settling(),
                good(),
                lambda result: all(self.known in one.text for one in result.findings),
            ),
            RunResult(
                "made", KernelRequest("debian:7.2"), policy, verdict=verdict, findings=findings
            ),
            expectations(scenario, state, policy)[1:],
            Timings(),
        )


@dataclass
class _Guest:
    room: Room
    shell: object = None

    def check(self) -> None:
        self.room.check()


@dataclass
class _Case:
    scenario: Scenario
    as_stated: bool = True


@dataclass
class _Prepared:
    case: _Case
    state: object
    bootable: object


def judge_all(
    _guest: object,
    prepared: Prepared,
    seen: Observation,
    expected: Expected,
) -> Judgement:
    """Judge with every message, whatever its phase."""
    return judge(seen, prepared.state, expected, boot_counts=True)


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    one = Room(tmp_path)
    monkeypatch.setattr(life, "run_commands", one.run)
    monkeypatch.setattr(life, "run_while_pending", one.run)
    monkeypatch.setattr(life, "observe_settled", one.settle)
    monkeypatch.setattr(life, "read_sections", lambda seen: seen)
    monkeypatch.setattr(life, "read_module_holders", lambda _shell: MODULES)
    monkeypatch.setattr(life, "with_undecoded", lambda _guest, _prepared, seen: seen)
    monkeypatch.setattr(life, "judge_guest", judge_all)
    monkeypatch.setattr(life, "scan_for_leaks", one.scan)
    makeup = RegionMakeup("decoder0.0", ("mem0",), 256, 2 << 30)
    monkeypatch.setattr(life, "read_region_makeup", lambda _shell, _region: makeup)
    return one


def found(result: RunResult) -> list[tuple[str, str]]:
    return [(one.rule, one.text) for one in result.findings]


def outcomes(result: RunResult) -> list[str]:
    return [one.outcome for one in result.steps]


def test_a_scenario_without_steps_ends_as_it_was(room: Room) -> None:
    result = room.live()
    assert (result.verdict, result.steps) == (Verdict.PASS, ())


@pytest.mark.parametrize("policy", ["per_range", "all_or_nothing"])
def test_a_region_that_is_there_again_after_cxl_was_given_up_breaks_rule_7(
    room: Room, policy: Policy
) -> None:
    room.seen = [good()]
    half = firmware_state({"sr0": WINDOW}, decoders=[], windows=[WINDOW])
    result = room.live({"load": "device_dax"}, policy=policy, state=half)
    text = "after step 1, load device_dax: region0 is left, but CXL must be given up"
    left = [rule for rule, said in found(result) if said.startswith(text)]
    assert left == (["7"] if policy == "all_or_nothing" else [])


def test_steps_that_hold_leave_their_owners_and_evidence(room: Room) -> None:
    room.seen = [good(), good()]
    result = room.live({"load": "device_dax"}, {"unbind": BIND})
    assert result.verdict is Verdict.PASS
    assert [(one.step, one.outcome) for one in result.steps] == [
        ("load device_dax", "held"),
        ("unbind hmem_platform.0 of hmem_platform", "held"),
    ]
    assert [one.owners[0].expected for one in result.steps] == [CXL, CXL]
    folders = [one.evidence for one in result.steps]
    assert folders == ["step-01-load", "step-02-unbind"]
    assert (room.folder / folders[0] / "commands").read_text() == "load device_dax\n\ntranscript\n"
    assert result.as_json()["steps"][1] == {
        "step": "unbind hmem_platform.0 of hmem_platform",
        "outcome": "held",
        "owners": [
            {
                "name": "sr0",
                "range": WINDOW,
                "expected": {"owner": "dax_cxl", "use": "system_ram", "node": None},
                "observed": [
                    {
                        "range": WINDOW,
                        "owner": "dax_cxl",
                        "use": "system_ram",
                        "via": "region0 > dax0.0 > kmem",
                        "node": None,
                    }
                ],
            }
        ],
        "findings": [],
        "evidence": "step-02-unbind",
    }


def test_an_owner_that_is_lost_by_a_step_breaks_rule_7_and_ends_the_steps(room: Room) -> None:
    room.seen = [good(), bare()]
    result = room.live({"load": "kmem"}, {"reload": ["kmem"]}, {"load": "device_dax"})
    assert result.verdict is Verdict.FAIL
    assert outcomes(result) == ["held", "broke", "not_done"]
    assert found(result) == [
        (
            "7",
            "after step 2, reload kmem: sr0: expected dax_cxl/system_ram, found nobody "
            "(stranded), by iomem: CXL Window 0",
        )
    ]
    assert result.steps[1].findings == result.findings


def test_other_rules_stay_what_they_are(room: Room) -> None:
    room.seen = [good(messages=["kmem dax0.0: no"])]
    result = room.live({"load": "kmem"})
    assert found(result) == [("6", "after step 1, load kmem: a warning: kmem dax0.0: no")]


def test_a_step_that_goes_wrong_is_a_finding_beside_the_owners(room: Room) -> None:
    room.seen = [bare()]
    room.problems = {"load kmem": "load kmem ended with status 1: no"}
    result = room.live({"load": "kmem"}, {"load": "device_dax"})
    assert [rule for rule, _ in found(result)] == ["step", "7"]
    assert found(result)[0][1] == "load kmem ended with status 1: no"
    assert outcomes(result) == ["broke", "not_done"]


def test_nothing_is_done_to_a_guest_that_had_broken_the_contract(room: Room) -> None:
    result = room.live({"load": "kmem"}, verdict=Verdict.FAIL)
    assert (result.verdict, outcomes(result), room.ran) == (Verdict.FAIL, ["not_done"], [])
    assert found(result) == [("1", "broken before")]


def test_a_step_says_itself_what_it_leaves_and_the_next_is_as_before(room: Room) -> None:
    room.seen = [bare(), good()]
    result = room.live(
        {"unload": "dax_cxl", "expect": {"sr0": {"owner": "nobody"}}}, {"load": "dax_cxl"}
    )
    assert result.verdict is Verdict.PASS
    # Memory is only waited for where some is expected.
    assert [len(one) for one in room.wanted] == [0, 1]


def test_what_should_be_nobodys_and_is_not_breaks_rule_7(room: Room) -> None:
    room.seen = [good()]
    result = room.live({"unload": "dax_cxl", "expect": {"sr0": {"owner": "nobody"}}})
    assert [rule for rule, _ in found(result)] == ["7"]


def test_memory_that_is_offline_is_offline_only_whole(room: Room) -> None:
    step = {"offline": "sr0", "expect": {"sr0": {"owner": "dax_cxl", "use": "offline"}}}
    room.seen = [good(offline=[WINDOW])]
    assert room.live(step).verdict is Verdict.PASS
    for seen in (good(), good(offline=["110000000-117ffffff"])):
        room.seen = [seen]
        assert "found dax_cxl/system_ram" in found(room.live(step))[0][1]
    room.seen = [good(offline=[WINDOW])]
    (finding,) = room.live({"online": "sr0"}).findings
    assert "expected dax_cxl/system_ram, found dax_cxl/offline" in finding.text


def test_every_workable_order_is_done_and_judged(room: Room) -> None:
    room.seen = [good()] * 3
    result = room.live({"reload_every_order": ["dax_hmem", "dax_cxl", "kmem"]})
    assert [one.step for one in result.steps] == [
        "reload dax_cxl, dax_hmem, kmem",
        "reload dax_cxl, kmem, dax_hmem",
        "reload kmem, dax_cxl, dax_hmem",
    ]
    assert room.ran[:7] == [
        *("offline dax0.0", "rmmod dax_cxl", "rmmod dax_hmem", "rmmod kmem"),
        *("modprobe kmem", "modprobe dax_hmem", "modprobe dax_cxl"),
    ]
    assert [one.evidence[:7] for one in result.steps] == ["step-01", "step-02", "step-03"]


def test_orders_end_with_the_one_that_breaks(room: Room) -> None:
    room.seen = [good(), bare()]
    result = room.live({"reload_every_order": ["dax_hmem", "dax_cxl", "kmem"]}, {"load": "kmem"})
    assert outcomes(result) == ["held", "broke", "not_done"]
    assert found(result)[0][1].startswith("after step 2, reload dax_cxl, kmem, dax_hmem: sr0:")


@pytest.mark.parametrize("verb", ["reload", "reload_every_order", "unload"])
def test_a_module_that_something_holds_is_a_finding_and_nothing_is_done(
    room: Room, verb: str
) -> None:
    value = "dax_hmem" if verb == "unload" else ["dax_hmem"]
    result = room.live({verb: value})
    ((rule, text),) = found(result)
    assert rule == "step"
    assert text.endswith("dax_hmem: dax_hmem is held by dax_cxl")
    assert room.ran == []


def test_a_region_is_made_again_from_what_it_was(room: Room) -> None:
    room.seen = [bare(), good()]
    nobody = {"sr0": {"owner": "nobody"}}
    room.live({"destroy_region": "decoder0", "expect": nobody}, {"create_region": "decoder0"})
    assert room.lines[0] == "cxl disable-region region0 && cxl destroy-region region0"
    assert room.lines[1].endswith("-d decoder0.0 -w 1 -s 2147483648 -m mem0")


def test_a_region_that_is_gone_is_a_finding(room: Room) -> None:
    room.seen = [bare(), bare()]
    nobody = {"sr0": {"owner": "nobody"}}
    steps: list[dict[str, Any]] = [{"decommit": "decoder0", "expect": nobody}] * 2
    result = room.live(*steps)
    assert found(result) == [
        (
            "step",
            "decommit decoder0: no region is there over decoder0, 110000000-18fffffff; the "
            "guest's regions: none",
        )
    ]


def test_a_crash_keeps_its_step_and_trace(room: Room) -> None:
    crashed = GuestCrashedError("oops", hint="see the trace", trace=("a line",), step="rmmod kmem")

    def crash() -> NoReturn:
        raise crashed

    room.check = crash
    with pytest.raises(GuestCrashedError) as caught:
        room.live({"load": "kmem"})
    assert (caught.value.trace, caught.value.step) == (("a line",), "rmmod kmem")


def test_leaks_are_looked_for_once_more_after_the_last_step_and_judged_with_it(room: Room) -> None:
    room.leaks = "unreferenced object 0xffff888100000000 (size 64):\n"
    leaked = good(messages=["kmemleak: 1 new suspected memory leaks"])
    room.seen = [good(), good(), leaked]
    result = room.live({"load": "device_dax"}, {"unbind": BIND})
    bind = "unbind hmem_platform.0 of hmem_platform"
    assert room.ran == ["load device_dax", bind, "scan for leaks"]
    assert outcomes(result) == ["held", "broke"]
    assert [one.rule for one in result.findings] == ["6"]
    assert (room.folder / "step-02-unbind" / "kmemleak").read_text() == room.leaks
    assert not (room.folder / "step-01-load" / "kmemleak").exists()
    assert room.seen == []


def test_of_a_step_in_several_orders_only_the_last_is_followed_by_the_search(room: Room) -> None:
    room.leaks = ""
    room.seen = [good() for _ in range(3)]
    result = room.live({"reload_every_order": ["kmem", "cxl_acpi"]})
    assert outcomes(result) == ["held", "held"]
    assert [title == "scan for leaks" for title in room.ran].index(True) == len(room.ran) - 1


WARNING = "cxl root0: it is known that this is odd"


def test_a_known_warning_does_not_end_the_steps_and_is_found_once(room: Room) -> None:
    room.known, room.seen = "known", [good(messages=[WARNING]), good(messages=[WARNING])]
    result = room.live({"load": "kmem"}, {"load": "dax_cxl"})
    assert outcomes(result) == ["broke", "held"]
    assert [one.rule for one in result.findings] == ["6"]
    assert result.verdict is Verdict.FAIL


def test_a_warning_that_is_new_ends_the_steps(room: Room) -> None:
    room.seen = [good(messages=[WARNING])]
    assert outcomes(room.live({"load": "kmem"}, {"load": "dax_cxl"})) == ["broke", "not_done"]


def test_a_known_issue_of_owners_ends_the_steps(room: Room) -> None:
    # The next step is about a range that has its owner.
    room.known, room.seen = "", [bare()]
    assert outcomes(room.live({"load": "kmem"}, {"load": "dax_cxl"})) == ["broke", "not_done"]
