# SPDX-License-Identifier: GPL-2.0-or-later
"""Steps of `guest.then`, and the places and messages of their errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from machines import scenario_of
from refusals import Row, differences

from harness.core.errors import UsageError
from harness.scenario.checks import check_scenario
from harness.scenario.post_boot_steps import GuestStep
from harness.scenario.scenario import read_scenario
from harness.scenario.scenario_files import load_profile

Values = dict[str, Any]

PROFILE = load_profile("one_window")
BIND = {"bus": "platform", "driver": "hmem_platform", "device": "hmem_platform.0"}
FIRMWARE = {
    "soft_reserved": {"sr0": {"window": 0}},
    "decoders": [{"window": 0, "size": "2G", "devices": ["mem0"]}],
}


def text_with(*steps: Mapping[str, Any], cpus_of: str = "one_window", **guest: Any) -> str:
    owner = {"sr0": {"owner": "dax_cxl", "use": "system_ram"}}
    return json.dumps(
        {
            "summary": "Made for a test.",
            "source": "a test",
            "profile": cpus_of,
            "firmware": FIRMWARE,
            "guest": {"load": ["cxl_acpi"], "then": list(steps), **guest},
            "expect": {"per_range": owner, "all_or_nothing": dict(owner)},
        },
        indent=1,
    )


def steps_of(*steps: Mapping[str, Any], **guest: Any) -> tuple[GuestStep, ...]:
    document = read_scenario(text_with(*steps, **guest), "made.yaml")
    check_scenario(document, PROFILE)
    return document.value.guest.then


TEXTS: list[tuple[Values, str]] = [
        ({"load": "kmem"}, "load kmem"),
        ({"unload": "kmem", "fails": "EAGAIN"}, "unload kmem, which must fail with EAGAIN"),
        ({"reload": ["kmem", "dax_cxl"]}, "reload kmem, dax_cxl"),
        ({"reload_every_order": ["kmem"]}, "reload every order kmem"),
        ({"bind": BIND}, "bind hmem_platform.0 of hmem_platform"),
        (
            {"while_pending": [{"unbind": BIND}, {"bind": BIND, "fails": "EBUSY"}]},
            "while pending unbind hmem_platform.0 of hmem_platform, bind hmem_platform.0 of "
            "hmem_platform, which must fail with EBUSY",
        ),
        ({"offline": "sr0"}, "offline sr0"),
        ({"reconfigure": "sr0", "mode": "devdax"}, "reconfigure sr0 as devdax"),
        ({"decommit": "decoder0"}, "decommit decoder0"),
        ({"destroy_region": "decoder0", "expect": {"sr0": {"owner": "nobody"}}},
         "destroy region decoder0"),
]  # fmt: skip


def test_a_step_prints_its_verb_and_object() -> None:
    for step, text in TEXTS:
        (one,) = steps_of(step)
        assert str(one) == text


STEPS: list[Row] = [
    ({}, "", "a step has exactly one verb, not none"),
    ({"load": "kmem", "unload": "kmem"}, "", "not load and unload"),
    ({"fails": "EBUSY"}, "", "not none"),
    ({"reconfigure": "sr0"}, "", "reconfigure and mode go together"),
    ({"offline": "sr0", "mode": "devdax"}, "", "reconfigure and mode go together"),
    ({"unload": "kmem", "fails": "EBUSI"}, ".fails", "there is no error 'EBUSI'"),
    ({"reload": ["kmem"], "fails": "EBUSY"}, ".fails", "does not tell which must fail"),
    ({"offline": "sr1"}, ".offline", "there is no range or decoder 'sr1'"),
    ({"destroy_region": "sr0"}, ".destroy_region", "there is no range or decoder 'sr0'"),
    ({"create_region": "decoder0"}, ".create_region", "needs a step destroy_region"),
    ({"commit": "decoder0"}, ".commit", "needs a step decommit of decoder0"),
    ({"load": "kmem", "expect": {"sr9": {"owner": "nobody"}}}, ".expect.sr9", "'sr9'"),
    ({"reload": ["kmem", "kmem"]}, ".reload[1]", "duplicate module kmem"),
    ({"while_pending": [{"fails": "EBUSY"}]}, ".while_pending[0]", "not none"),
    ({"while_pending": [{"bind": BIND, "unbind": BIND}]}, ".while_pending[0]", "bind and"),
]
KINDS: list[Row] = [
    ({"relod": ["kmem"]}, ".relod", "unknown key 'relod'"),
    ({"load": "kmem; reboot"}, ".load", "regex"),
    ({"bind": {**BIND, "device": "../x"}}, ".bind.device", "regex"),
    ({"bind": {"bus": "platform"}}, ".bind", "is missing"),
    ({"reload": []}, ".reload", "length"),
    ({"while_pending": []}, ".while_pending", "length"),
    ({"while_pending": [{"load": "kmem"}]}, ".while_pending[0].load", "unknown key 'load'"),
    ({"reconfigure": "sr0", "mode": "ram"}, ".mode", "invalid enum value"),
]


def test_steps_are_refused_where_they_are_written() -> None:
    rows = [(value, f"guest.then[1]{at}", text) for value, at, text in (*STEPS, *KINDS)]
    assert differences(lambda step: steps_of({"load": "dax_hmem"}, step), rows) == []
    again = ({"destroy_region": "decoder0"}, {"create_region": "decoder0"})
    assert len(steps_of(*again, *again)) == 4
    several = [
        ((*again, again[1]), "guest.then[2].create_region", "needs a step destroy_region"),
        (
            ({"reload": ["dax-cxl"]},),
            "guest.then[0].reload",
            "which guest.missing removes",
        ),
    ]
    assert differences(lambda steps: steps_of(*steps, missing=["dax_cxl"]), several) == []


def test_blocked_work_needs_a_second_cpu() -> None:
    document = scenario_of(FIRMWARE)
    assert document.value.guest.then == ()
    one_cpu = PROFILE.__class__(
        summary="One CPU.",
        nodes=(PROFILE.nodes[0].__class__(memory=PROFILE.nodes[0].memory, cpus=1),),
        host_bridges=PROFILE.host_bridges,
        windows=PROFILE.windows,
    )
    read = read_scenario(text_with({"while_pending": [{"bind": BIND}]}), "made.yaml")
    check_scenario(read, PROFILE)
    with pytest.raises(UsageError, match="needs two CPUs"):
        check_scenario(read, one_cpu)
