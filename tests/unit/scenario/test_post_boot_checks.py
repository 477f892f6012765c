# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guest.then` of a scenario may say, and where an error in it is placed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from machines import scenario_of

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


def refused(*steps: Mapping[str, Any], **guest: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        steps_of(*steps, **guest)
    return caught.value


@pytest.mark.parametrize(
    ("step", "said"),
    [
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
    ],
)  # fmt: skip
def test_a_step_says_what_it_does(step: Values, said: str) -> None:
    (one,) = steps_of(step)
    assert str(one) == said


@pytest.mark.parametrize(
    ("step", "at", "message"),
    [
        ({}, "", "a step says one thing to do, this one none"),
        ({"load": "kmem", "unload": "kmem"}, "", "this one load and unload"),
        ({"fails": "EBUSY"}, "", "this one none"),
        ({"reconfigure": "sr0"}, "", "reconfigure and mode go together"),
        ({"offline": "sr0", "mode": "devdax"}, "", "reconfigure and mode go together"),
        ({"unload": "kmem", "fails": "EBUSI"}, ".fails", "no error is called 'EBUSI'"),
        ({"reload": ["kmem"], "fails": "EBUSY"}, ".fails", "does not say which must fail"),
        ({"offline": "sr1"}, ".offline", "nothing is called 'sr1'"),
        ({"destroy_region": "sr0"}, ".destroy_region", "nothing is called 'sr0'"),
        ({"create_region": "decoder0"}, ".create_region", "needs a step destroy_region"),
        ({"commit": "decoder0"}, ".commit", "needs a step decommit of decoder0"),
        ({"load": "kmem", "expect": {"sr9": {"owner": "nobody"}}}, ".expect.sr9", "'sr9'"),
        ({"reload": ["kmem", "kmem"]}, ".reload", "names kmem twice"),
        ({"while_pending": [{"fails": "EBUSY"}]}, ".while_pending[0]", "this one none"),
        ({"while_pending": [{"bind": BIND, "unbind": BIND}]}, ".while_pending[0]", "bind and"),
    ],
)
def test_a_step_that_makes_no_sense_is_refused_where_it_stands(
    step: Values, at: str, message: str
) -> None:
    error = refused({"load": "dax_hmem"}, step)
    assert message in error.message
    assert error.where is not None
    assert error.where.endswith(f": guest.then[1]{at}")
    assert int(error.where.split(":")[1]) > 1


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"relod": ["kmem"]}, "unknown key 'relod'"),
        ({"load": "kmem; reboot"}, "kmem|regex"),
        ({"bind": {**BIND, "device": "../x"}}, "regex"),
        ({"bind": {"bus": "platform"}}, "is missing"),
        ({"reload": []}, "length"),
        ({"while_pending": []}, "length"),
        ({"while_pending": [{"load": "kmem"}]}, "unknown key 'load'"),
        ({"reconfigure": "sr0", "mode": "ram"}, "invalid enum value"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(step: Values, message: str) -> None:
    error = refused(step)
    assert any(part in error.message for part in message.split("|")), error.message
    assert "guest.then[0]" in str(error.where)


def test_what_is_missing_cannot_be_loaded_by_a_step() -> None:
    error = refused({"reload": ["dax-cxl"]}, missing=["dax_cxl"])
    assert "names dax-cxl, which guest.missing takes away" in error.message


def test_a_region_is_created_again_once_only() -> None:
    again = ({"destroy_region": "decoder0"}, {"create_region": "decoder0"})
    assert len(steps_of(*again, *again)) == 4
    assert "needs a step destroy_region" in refused(*again, again[1]).message


def test_work_is_held_up_only_where_there_is_a_second_cpu() -> None:
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
