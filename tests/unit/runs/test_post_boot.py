# SPDX-License-Identifier: GPL-2.0-or-later
"""Steps after boot, judged, with a guest that shows what each test needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, cast

import msgspec
import pytest
from fake_guest import FakeShell, prepared_of
from machines import CXL, by_cxl, committed, firmware_state, observed, record

from harness.contract.expected import Expected, expectations
from harness.contract.judge import Judgement, judge
from harness.contract.observation import CxlRegion, Observation
from harness.contract.result import Finding, RunResult, Verdict
from harness.core.errors import GuestCrashedError
from harness.platform.firmware_state import FirmwareState
from harness.platform.memory_range import MemoryRange
from harness.runs.evidence import Evidence, Timings
from harness.runs.guest_run import GuestRun, Judging, RunningGuest
from harness.runs.post_boot import run_steps
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.known_issues import KnownIssues
from harness.scenario.module_load import Load
from harness.scenario.post_boot_steps import GuestStep
from harness.scenario.scenario import Ownership, Policy

WINDOW = "110000000-18fffffff"
STATE = firmware_state({"sr0": WINDOW}, decoders=[committed("decoder0", WINDOW)], windows=[WINDOW])
GOOD = f"""
    {WINDOW} : CXL Window 0
      {WINDOW} : region0
        {WINDOW} : dax0.0
          {WINDOW} : System RAM (kmem)"""
MODULES = "".join(
    f"{name} 1 0 {users} Live 0x0\n"
    for name, users in (
        ("dax_cxl", "-"),
        ("dax_hmem", "dax_cxl,"),
        ("kmem", "-"),
        ("cxl_acpi", "-"),
    )
)
LISTED = (
    "/sys/devices/platform/ACPI0017:00/root0/decoder0.0/region0\n"
    '[{"size": 2147483648, "interleave_granularity": 256, '
    '"mappings": [{"position": 0, "memdev": "mem0"}]}]'
)
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
class Lab:
    """A guest whose every command succeeds unless a test changes that.

    Attributes:
        seen: what is observed after each step.
        problems: output of commands that fail, by title.
        online: how many ranges each observation waits for.
        scans: the folders of observations that scan for leaks.
        known: a text that makes a finding a known issue.
    """

    folder: Path
    seen: list[Observation] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    online: list[int] = field(default_factory=list)
    scans: list[str] = field(default_factory=list)
    check: Callable[[], None] = lambda: None
    known: str = "nothing is known"

    def __post_init__(self) -> None:
        self.shell = FakeShell(self._answer)

    @property
    def ran(self) -> list[str]:
        return self.shell.marks.begun

    @property
    def lines(self) -> list[str]:
        commands = (one for one in self.shell.commands if "/dev/kmsg; " in one)
        return [command.partition("/dev/kmsg; ")[2] for command in commands]

    def _answer(self, command: str) -> tuple[int, str]:
        if command == "cat /proc/modules":
            return 0, MODULES
        if command.startswith("readlink"):
            return 0, LISTED
        failing = next((text for title, text in self.problems.items() if title in command), None)
        return (1, failing) if failing else (0, "transcript\n")

    def run(
        self,
        *steps: Mapping[str, Any],
        verdict: Verdict = Verdict.PASS,
        policy: Policy = "per_range",
        state: FirmwareState = STATE,
    ) -> RunResult:
        prepared = prepared_of(self.folder / "k")
        then = tuple(msgspec.convert(step, GuestStep) for step in steps)
        scenario = prepared.case.scenario
        guest = msgspec.structs.replace(scenario.guest, then=then)
        scenario = msgspec.structs.replace(scenario, guest=guest)
        document = replace(prepared.case.document, value=scenario)
        prepared = replace(prepared, case=replace(prepared.case, document=document), state=state)
        findings = (Finding("1", "broken before"),) if verdict is Verdict.FAIL else ()
        result = RunResult(
            "made", KernelRequest("debian:7.2"), policy, verdict=verdict, findings=findings
        )
        judging = Judging(policy, self.folder, KnownIssues(issues=()))
        run = Knowing(prepared, Load("in_order", ()), judging, result, known=self.known)
        running = Showing(run, cast(Any, self), Evidence(self.folder), Timings(), self)
        return run_steps(running, result, expectations(scenario, state, policy)[1:], good())


@dataclass(frozen=True)
class Knowing(GuestRun):
    """A run in which findings with a text are known."""

    known: str = ""

    def explained(self, result: RunResult) -> RunResult:
        known = all(self.known in finding.text for finding in result.findings)
        return replace(result, known_issue="known" if known else None)


@dataclass(frozen=True)
class Showing(RunningGuest):
    """A guest that shows the observations of its lab; all of its messages count."""

    lab: Lab

    def observe(
        self, owners: Mapping[str, Ownership], folder: str, *, leaks: bool = True
    ) -> Observation:
        self.lab.online.append(sum(one.use == "system_ram" for one in owners.values()))
        self.lab.scans += [folder] if leaks else []
        return self.lab.seen.pop(0)

    def judge(self, observation: Observation, expected: Expected) -> Judgement:
        return judge(observation, self.run.prepared.state, expected, boot_counts=True)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def found(result: RunResult) -> list[tuple[str, str]]:
    return [(one.rule, one.text) for one in result.findings]


def outcomes(result: RunResult) -> list[str]:
    return [one.outcome for one in result.steps]


def test_a_scenario_without_steps_ends_as_it_was(lab: Lab) -> None:
    result = lab.run()
    assert (result.verdict, result.steps) == (Verdict.PASS, ())


@pytest.mark.parametrize("policy", ["per_range", "all_or_nothing"])
def test_a_region_that_is_there_again_after_cxl_was_given_up_breaks_rule_7(
    lab: Lab, policy: Policy
) -> None:
    lab.seen = [good()]
    half = firmware_state({"sr0": WINDOW}, decoders=[], windows=[WINDOW])
    result = lab.run({"load": "device_dax"}, policy=policy, state=half)
    text = "after step 1, load device_dax: region0 is left, but CXL must be given up"
    left = [rule for rule, said in found(result) if said.startswith(text)]
    assert left == (["7"] if policy == "all_or_nothing" else [])


def test_steps_that_hold_leave_their_owners_and_evidence(lab: Lab) -> None:
    lab.seen = [good(), good()]
    result = lab.run({"load": "device_dax"}, {"unbind": BIND})
    assert result.verdict is Verdict.PASS
    assert [(one.step, one.outcome) for one in result.steps] == [
        ("load device_dax", "held"),
        ("unbind hmem_platform.0 of hmem_platform", "held"),
    ]
    assert [one.owners[0].expected for one in result.steps] == [CXL, CXL]
    folders = [one.evidence for one in result.steps]
    assert folders == ["step-01-load", "step-02-unbind"]
    assert (lab.folder / folders[0] / "commands").read_text() == (
        "load device_dax\n\n$ /sbin/modprobe device_dax\ntranscript\nstatus 0\n"
    )
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


def test_an_owner_that_is_lost_by_a_step_breaks_rule_7_and_ends_the_steps(lab: Lab) -> None:
    lab.seen = [good(), bare()]
    result = lab.run({"load": "kmem"}, {"reload": ["kmem"]}, {"load": "device_dax"})
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


def test_other_rules_stay_what_they_are(lab: Lab) -> None:
    lab.seen = [good(messages=["kmem dax0.0: no"])]
    result = lab.run({"load": "kmem"})
    assert found(result) == [("6", "after step 1, load kmem: a warning: kmem dax0.0: no")]


def test_a_step_that_goes_wrong_is_a_finding_beside_the_owners(lab: Lab) -> None:
    lab.seen = [bare()]
    lab.problems = {"load kmem": "no"}
    result = lab.run({"load": "kmem"}, {"load": "device_dax"})
    assert [rule for rule, _ in found(result)] == ["step", "7"]
    assert found(result)[0][1] == "load kmem ended with status 1: no"
    assert outcomes(result) == ["broke", "not_done"]


def test_nothing_is_done_to_a_guest_that_had_broken_the_contract(lab: Lab) -> None:
    result = lab.run({"load": "kmem"}, verdict=Verdict.FAIL)
    assert (result.verdict, outcomes(result), lab.ran) == (Verdict.FAIL, ["not_done"], [])
    assert found(result) == [("1", "broken before")]


def test_a_step_says_itself_what_it_leaves_and_the_next_is_as_before(lab: Lab) -> None:
    lab.seen = [bare(), good()]
    result = lab.run(
        {"unload": "dax_cxl", "expect": {"sr0": {"owner": "nobody"}}}, {"load": "dax_cxl"}
    )
    assert result.verdict is Verdict.PASS
    # Memory is only waited for where some is expected.
    assert lab.online == [0, 1]


def test_what_should_be_nobodys_and_is_not_breaks_rule_7(lab: Lab) -> None:
    lab.seen = [good()]
    result = lab.run({"unload": "dax_cxl", "expect": {"sr0": {"owner": "nobody"}}})
    assert [rule for rule, _ in found(result)] == ["7"]


def test_memory_that_is_offline_is_offline_only_whole(lab: Lab) -> None:
    step = {"offline": "sr0", "expect": {"sr0": {"owner": "dax_cxl", "use": "offline"}}}
    lab.seen = [good(offline=[WINDOW])]
    assert lab.run(step).verdict is Verdict.PASS
    for seen in (good(), good(offline=["110000000-117ffffff"])):
        lab.seen = [seen]
        assert "found dax_cxl/system_ram" in found(lab.run(step))[0][1]
    lab.seen = [good(offline=[WINDOW])]
    (finding,) = lab.run({"online": "sr0"}).findings
    assert "expected dax_cxl/system_ram, found dax_cxl/offline" in finding.text


def test_every_workable_order_is_done_and_judged(lab: Lab) -> None:
    lab.seen = [good()] * 3
    result = lab.run({"reload_every_order": ["dax_hmem", "dax_cxl", "kmem"]})
    assert [one.step for one in result.steps] == [
        "reload dax_cxl, dax_hmem, kmem",
        "reload dax_cxl, kmem, dax_hmem",
        "reload kmem, dax_cxl, dax_hmem",
    ]
    assert lab.ran[:7] == [
        *("offline dax0.0", "rmmod dax_cxl", "rmmod dax_hmem", "rmmod kmem"),
        *("modprobe kmem", "modprobe dax_hmem", "modprobe dax_cxl"),
    ]
    assert [one.evidence[:7] for one in result.steps] == ["step-01", "step-02", "step-03"]


def test_orders_end_with_the_one_that_breaks(lab: Lab) -> None:
    lab.seen = [good(), bare()]
    result = lab.run({"reload_every_order": ["dax_hmem", "dax_cxl", "kmem"]}, {"load": "kmem"})
    assert outcomes(result) == ["held", "broke", "not_done"]
    assert found(result)[0][1].startswith("after step 2, reload dax_cxl, kmem, dax_hmem: sr0:")


@pytest.mark.parametrize("verb", ["reload", "reload_every_order", "unload"])
def test_a_module_that_something_holds_is_a_finding_and_nothing_is_done(
    lab: Lab, verb: str
) -> None:
    value = "dax_hmem" if verb == "unload" else ["dax_hmem"]
    result = lab.run({verb: value})
    ((rule, text),) = found(result)
    assert rule == "step"
    assert text.endswith("dax_hmem: dax_hmem is held by dax_cxl")
    assert lab.ran == []


def test_a_region_is_made_again_from_what_it_was(lab: Lab) -> None:
    lab.seen = [bare(), good()]
    nobody = {"sr0": {"owner": "nobody"}}
    lab.run({"destroy_region": "decoder0", "expect": nobody}, {"create_region": "decoder0"})
    assert lab.lines[0] == "cxl disable-region region0 && cxl destroy-region region0"
    assert lab.lines[1].endswith("-d decoder0.0 -w 1 -s 2147483648 -m mem0")


def test_a_region_that_is_gone_is_a_finding(lab: Lab) -> None:
    lab.seen = [bare(), bare()]
    nobody = {"sr0": {"owner": "nobody"}}
    steps: list[dict[str, Any]] = [{"decommit": "decoder0", "expect": nobody}] * 2
    result = lab.run(*steps)
    assert found(result) == [
        (
            "step",
            "decommit decoder0: no region over decoder0, 110000000-18fffffff; the "
            "guest's regions: none",
        )
    ]


def test_a_crash_keeps_its_step_and_trace(lab: Lab) -> None:
    crashed = GuestCrashedError("oops", hint="see the trace", trace=("a line",), step="rmmod kmem")

    def crash() -> NoReturn:
        raise crashed

    lab.check = crash
    with pytest.raises(GuestCrashedError) as caught:
        lab.run({"load": "kmem"})
    assert (caught.value.trace, caught.value.step) == (("a line",), "rmmod kmem")


def test_only_the_last_action_is_followed_by_a_scan_for_leaks(lab: Lab) -> None:
    lab.seen = [good()] * 4
    lab.run({"load": "device_dax"}, {"unbind": BIND})
    lab.run({"reload_every_order": ["kmem", "cxl_acpi"]})
    assert lab.scans == ["step-02-unbind", "step-02-reload_every_order"]


WARNING = "cxl root0: it is known that this is odd"


def test_a_known_warning_does_not_end_the_steps_and_is_found_once(lab: Lab) -> None:
    lab.known, lab.seen = "known", [good(messages=[WARNING]), good(messages=[WARNING])]
    result = lab.run({"load": "kmem"}, {"load": "dax_cxl"})
    assert outcomes(result) == ["broke", "held"]
    assert [one.rule for one in result.findings] == ["6"]
    assert result.verdict is Verdict.FAIL


def test_a_warning_that_is_new_ends_the_steps(lab: Lab) -> None:
    lab.seen = [good(messages=[WARNING])]
    assert outcomes(lab.run({"load": "kmem"}, {"load": "dax_cxl"})) == ["broke", "not_done"]


def test_a_known_issue_of_owners_ends_the_steps(lab: Lab) -> None:
    # The next step is about a range that has its owner.
    lab.known, lab.seen = "", [bare()]
    assert outcomes(lab.run({"load": "kmem"}, {"load": "dax_cxl"})) == ["broke", "not_done"]
