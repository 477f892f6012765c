# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json

from machines import CXL, NOBODY, span

from harness.contract.result import RULES, Finding, OwnedRange, Piece, RunKernel, RunResult, Verdict
from harness.scenario.kernel_request import KernelRequest

SR = span("110000000-18fffffff")
HALF = span("110000000-14fffffff")
REST = span("150000000-18fffffff")

RESULT = RunResult(
    scenario="partial_region",
    request=KernelRequest("debian:7.2"),
    policy="per_range",
    kernel=RunKernel("7.2.13", "ab" * 32),
    accel="tcg",
    start="warm",
    verdict=Verdict.FAIL,
    owners=(
        OwnedRange(
            "sr0",
            SR,
            CXL,
            (
                Piece(HALF, "dax_cxl", "system_ram", "region0 > dax0.0 > kmem", 1),
                Piece(REST, "nobody", "none", "iomem: CXL Window 0"),
            ),
        ),
    ),
    findings=(
        Finding(
            "1",
            "sr0: stranded",
            REST,
            iomem=("150000000-18fffffff : x",),
            dmesg=("[    1.0] y",),
            phase="modprobe kmem",
        ),
        Finding("6", "a WARN", decoded=("x.c:1",), kind="warn", subject="WARNING", observed=NOBODY),
    ),
    notes=("a note",),
    known_issue="because",
    timings={"boot": 1.23456, "total": 2.0},
    evidence="/somewhere",
)


def test_the_result_file_has_the_words_of_the_design() -> None:
    assert RESULT.as_json() == {
        "format": 1,
        "scenario": "partial_region",
        "request": {
            "spec": "debian:7.2",
            "configs": [],
            "series": None,
            "upto": None,
            "toolchain": "gcc",
        },
        "kernel": {"spec": "debian:7.2", "release": "7.2.13", "config_sha256": "ab" * 32},
        "policy": "per_range",
        "accel": "tcg",
        "start": "warm",
        "drivers": [],
        "verdict": "FAIL",
        "owners": [
            {
                "name": "sr0",
                "range": "110000000-18fffffff",
                "expected": {"owner": "dax_cxl", "use": "system_ram", "node": None},
                "observed": [
                    {
                        "range": "110000000-14fffffff",
                        "owner": "dax_cxl",
                        "use": "system_ram",
                        "via": "region0 > dax0.0 > kmem",
                        "node": 1,
                    },
                    {
                        "range": "150000000-18fffffff",
                        "owner": "nobody",
                        "use": "none",
                        "via": "iomem: CXL Window 0",
                        "node": None,
                    },
                ],
            }
        ],
        "findings": [
            {
                "rule": "1",
                "range": "150000000-18fffffff",
                "text": "sr0: stranded",
                "iomem": ["150000000-18fffffff : x"],
                "phase": "modprobe kmem",
                "dmesg": ["[    1.0] y"],
                "decoded": [],
                "known": None,
                "kind": "",
                "subject": "",
                "expected": None,
                "observed": None,
            },
            {
                "rule": "6",
                "range": None,
                "text": "a WARN",
                "iomem": [],
                "phase": None,
                "dmesg": [],
                "decoded": ["x.c:1"],
                "known": None,
                "kind": "warn",
                "subject": "WARNING",
                "expected": None,
                "observed": {"owner": "nobody", "use": "none", "node": None},
            },
        ],
        "steps": [],
        "timings": {"boot": 1.235, "total": 2.0},
        "evidence": "/somewhere",
        # Not of the design: why there is no judgement, and whether the failure is known.
        "reason": "",
        "hint": "",
        "notes": ["a note"],
        "known_issue": "because",
        "issues": [],
        "retried": 0,
        # How the guest was loaded, and the others where there were several.
        "load": None,
        "attempts": [],
        "compared": 0,
        "differences": [],
        "reproduce": "",
        "file": "",
    }


def test_the_result_file_is_json() -> None:
    assert json.loads(json.dumps(RESULT.as_json())) == RESULT.as_json()


def test_a_run_starts_as_inconclusive_and_has_every_key_from_the_start() -> None:
    fresh = RunResult(scenario="a", request=KernelRequest("b"), policy="per_range")
    assert fresh.verdict is Verdict.INCONCLUSIVE
    written = fresh.as_json()
    assert set(written) == set(RESULT.as_json())
    assert written["verdict"] == "INCONCLUSIVE"
    assert written["kernel"] == {"spec": "b", "release": None, "config_sha256": None}
    assert (written["owners"], written["findings"], written["known_issue"]) == ([], [], None)


def test_verdicts_have_the_exit_codes_of_harness_run() -> None:
    codes = {one.name: one.exit_code for one in Verdict}
    assert codes == {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3, "UNBUILDABLE": 4}


def test_every_rule_of_the_contract_has_a_sentence() -> None:
    assert {"1", "2", "3", "4", "5", "6", "7"} <= set(RULES)
    assert all(RULES.values())
