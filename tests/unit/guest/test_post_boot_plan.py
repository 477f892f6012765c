# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of steps, for guests as they were observed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from machines import by_cxl, by_hmem, committed, firmware_state, observed, span

from harness.contract.observation import CxlRegion, Observation
from harness.guest.post_boot import (
    Command,
    RegionMakeup,
    StepError,
    binding_command,
    commands_of,
    read_makeup,
    region_over,
    reload_commands,
)
from harness.scenario.post_boot_steps import BindingStep, GuestStep

WINDOW = "110000000-18fffffff"
OTHER = "190000000-197ffffff"
STATE = firmware_state(
    {"sr0": WINDOW, "sr1": OTHER}, decoders=[committed("decoder0", WINDOW)], windows=[WINDOW]
)
IOMEM = "110000000-18fffffff : CXL Window 0"
BIND = {"bus": "platform", "driver": "hmem_platform", "device": "hmem_platform.0"}
PATH = "/sys/bus/platform/drivers/hmem_platform"


def guest(**more: Any) -> Observation:
    seen = observed(IOMEM, by_cxl("dax0.0", WINDOW), by_hmem("dax1.0", OTHER))
    regions = (
        CxlRegion("region7", span(OTHER), True, 1, "cxl_region"),
        CxlRegion("region3", span(WINDOW), True, 1, "cxl_region"),
    )
    return replace(seen, **{"regions": regions, **more})


def lines(
    step: dict[str, Any],
    observation: Observation | None = None,
    makeups: dict[str, RegionMakeup | None] | None = None,
) -> list[str]:
    one = msgspec.convert(step, GuestStep)
    return [c.line for c in commands_of(one, observation or guest(), STATE, makeups or {})]


@pytest.mark.parametrize(
    ("step", "line"),
    [
        ({"load": "kmem"}, "/sbin/modprobe kmem"),
        ({"unload": "dax-cxl"}, "rmmod dax_cxl"),
        ({"bind": BIND}, f"echo hmem_platform.0 > {PATH}/bind"),
        ({"unbind": BIND}, f"echo hmem_platform.0 > {PATH}/unbind"),
        ({"offline": "sr0"}, "daxctl offline-memory dax0.0"),
        ({"online": "sr1"}, "daxctl online-memory dax1.0"),
        ({"reconfigure": "decoder0", "mode": "devdax"},
         "daxctl reconfigure-device --force --mode=devdax dax0.0"),
        ({"destroy_region": "decoder0"},
         "cxl disable-region region3 && cxl destroy-region region3"),
        ({"decommit": "decoder0"}, "echo 0 > /sys/bus/cxl/devices/region3/commit"),
        ({"commit": "decoder0"},
         "echo 1 > /sys/bus/cxl/devices/region3/commit && "
         "echo region3 > /sys/bus/cxl/drivers/cxl_region/bind"),
    ],
)  # fmt: skip
def test_a_step_is_one_command_line(step: dict[str, Any], line: str) -> None:
    assert lines(step) == [line]


def test_a_module_is_loaded_unbound_with_the_bus_switched_off_and_on_again() -> None:
    (line,) = lines({"load_unbound": "dax_hmem"})
    off, load, status, on, end = (part.strip() for part in line.split("; "))
    assert (off, on) == (
        "echo 0 > /sys/bus/platform/drivers_autoprobe",
        "echo 1 > /sys/bus/platform/drivers_autoprobe",
    )
    assert (load, status, end) == ("/sbin/modprobe dax_hmem", "status=$?", "(exit $status)")


def test_the_command_carries_what_must_fail() -> None:
    step = msgspec.convert({"decommit": "decoder0", "fails": "EPERM"}, GuestStep)
    (command,) = commands_of(step, guest(), STATE, {})
    assert command.fails == "EPERM"
    assert command.title == "decommit decoder0, which must fail with EPERM"
    one = msgspec.convert({"bind": BIND, "fails": "EBUSY"}, BindingStep)
    assert binding_command(one) == Command(str(one), f"echo hmem_platform.0 > {PATH}/bind", "EBUSY")


RELOADS = [
    # What goes, and which devices of kmem go with it.
    (("kmem",), ["dax0.0", "dax1.0"]),
    (("dax_cxl",), ["dax0.0"]),
    (("dax-cxl", "dax-hmem"), ["dax0.0", "dax1.0"]),
    (("cxl_acpi",), ["dax0.0"]),
    (("device_dax",), []),
]


@pytest.mark.parametrize(("order", "offline"), RELOADS)
def test_memory_that_loses_its_driver_or_device_goes_offline_before_a_reload(
    order: tuple[str, ...], offline: list[str]
) -> None:
    done = [command.line for command in reload_commands(order, guest())]
    count = len(offline)
    assert done[:count] == [f"daxctl offline-memory {name}" for name in offline]
    unload = [f"rmmod {name.replace('-', '_')}" for name in order]
    assert done[count:] == [*unload, *(f"/sbin/modprobe {name}" for name in reversed(order))]


def test_memory_that_is_offline_or_no_ram_is_left_alone_before_a_reload() -> None:
    seen = replace(
        observed(IOMEM, by_cxl("dax0.0", WINDOW), by_hmem("dax1.0", OTHER, driver="device_dax")),
        offline=(span(WINDOW),),
    )
    lines = [one.line for one in reload_commands(("kmem",), seen)]
    assert lines == ["rmmod kmem", "/sbin/modprobe kmem"]


def test_a_region_that_is_not_there_is_told_with_those_that_are() -> None:
    seen = replace(guest(), regions=guest().regions[:1])
    with pytest.raises(StepError, match=r"no region over decoder0.*region7 190000000-"):
        region_over("decoder0", STATE, seen)
    with pytest.raises(StepError, match="regions: none"):
        lines({"decommit": "decoder0"}, replace(seen, regions=()))


def test_a_region_that_is_not_assembled_is_deleted_by_its_root_decoder() -> None:
    failed = CxlRegion("region3", span(WINDOW), False, 1, None)
    assert lines({"destroy_region": "decoder0"}, guest(regions=(failed,))) == [
        "echo region3 > /sys/bus/cxl/devices/region3/../delete_region"
    ]
    with pytest.raises(StepError, match="the region of decoder0 was not assembled"):
        lines({"create_region": "decoder0"}, makeups={"decoder0": None})


def test_a_dax_device_that_is_not_there_is_told() -> None:
    with pytest.raises(StepError, match="no dax device over sr1, 190000000-197ffffff"):
        lines({"offline": "sr1"}, observed(IOMEM, by_cxl("dax0.0", WINDOW)))


# As `cxl list` of ndctl 81 prints it.
LISTED = [
    {
        "region": "region0",
        "size": 4294967296,
        "type": "ram",
        "interleave_ways": 2,
        "interleave_granularity": 512,
        "mappings": [
            {"position": 1, "memdev": "mem0", "decoder": "decoder3.0"},
            {"position": 0, "memdev": "mem1", "decoder": "decoder2.0"},
        ],
    }
]
PLACE = "/sys/devices/platform/ACPI0017:00/root0/decoder0.1/region0"


def test_a_region_is_created_again_as_it_was() -> None:
    makeup = read_makeup(f"{PLACE}\n{json.dumps(LISTED)}\n")
    assert makeup == RegionMakeup("decoder0.1", ("mem1", "mem0"), 512, 4294967296)
    assert lines({"create_region": "decoder0"}, makeups={"decoder0": makeup}) == [
        "cxl create-region -t ram -d decoder0.1 -w 2 -g 512 -s 4294967296 -m mem1 mem0"
    ]
    alone = replace(makeup, memdevs=("mem0",))
    assert lines({"create_region": "decoder0"}, makeups={"decoder0": alone}) == [
        "cxl create-region -t ram -d decoder0.1 -w 1 -s 4294967296 -m mem0"
    ]


@pytest.mark.parametrize("text", ["", PLACE, f"{PLACE}\n[]", f"{PLACE}\n[{{}}]", "x\n[1]"])
def test_what_is_no_listed_region_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a listed region"):
        read_makeup(text)
