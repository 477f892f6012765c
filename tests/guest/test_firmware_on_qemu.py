# SPDX-License-Identifier: GPL-2.0-or-later
"""The harness as firmware, on real QEMUs that stay paused: no kernel runs in any of them."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from harness.core.errors import MachineLostError
from harness.machine.address_probe import machine_layout
from harness.machine.firmware import commit_decoders, prove_paths
from harness.machine.qemu import Qemu, running_qemu
from harness.machine.qemu_argv import qemu_argv
from harness.machine.qtest import Qtest
from harness.platform.address_map import MachineLayout
from harness.platform.firmware_state import FirmwareState, place_firmware
from harness.platform.hdm_decoders import DecoderSetting, plan_decoders
from harness.platform.memory_range import MIB, MemoryRange
from harness.runs.prepare import Host
from harness.scenario.checks import check_scenario
from harness.scenario.profile import Profile, read_profile
from harness.scenario.scenario import read_scenario
from harness.scenario.scenario_files import load_profile

pytestmark = pytest.mark.guest

Slot = tuple[int, ...]
ConfigSpace = dict[Slot, tuple[int, ...]]


@dataclass(frozen=True)
class Board:
    """A machine and what its firmware has to commit."""

    host: Host
    profile: Profile
    layout: MachineLayout
    state: FirmwareState

    @property
    def settings(self) -> tuple[DecoderSetting, ...]:
        return plan_decoders(self.profile, self.state)

    @contextmanager
    def powered(self) -> Iterator[Qemu]:
        with (
            tempfile.TemporaryFile() as log,
            running_qemu(
                lambda control, _console: qemu_argv(
                    self.host.qemu, self.profile, "tcg", control=control
                ),
                log,
            ) as machine,
        ):
            machine.connect_monitor()
            yield machine

    def with_decoders(self, *decoders: str) -> Board:
        return replace(self, state=placed(self.profile, self.layout, decoders))


def board(host: Host, profile: Profile, *decoders: str) -> Board:
    layout = machine_layout(host.qemu, profile, lambda _key, ask: ask())
    return Board(host, profile, layout, placed(profile, layout, decoders))


def placed(profile: Profile, layout: MachineLayout, decoders: Sequence[str]) -> FirmwareState:
    """What a scenario file with these decoders asks for, after all its checks."""
    text = {
        "summary": "Made for a test.",
        "source": "a test",
        "profile": "made_up",
        "firmware": {"decoders": [yaml.safe_load(f"{{{one}}}") for one in decoders]},
        "guest": {},
        "expect": {"per_range": {}, "all_or_nothing": {}},
    }
    document = read_scenario(json.dumps(text), "made_up.yaml")
    check_scenario(document, profile)
    return place_firmware(document, profile, layout)


def profile(bridges: Sequence[str], windows: Sequence[str]) -> Profile:
    """A profile of host bridges and windows, each as YAML has them between braces."""
    text = {
        "summary": "Made for a test.",
        "nodes": [{"cpus": 1, "memory": "256M"}],
        "host_bridges": [yaml.safe_load(f"{{{one}}}") for one in bridges],
        "windows": [yaml.safe_load(f"{{{one}}}") for one in windows],
    }
    return read_profile(json.dumps(text), "made_up.yaml").value


def port(name: str, device: str | None = None, size: str = "1G", below: str = "") -> str:
    inside = f", device: {{name: {device}, size: {size}}}" if device else ""
    return f"{{name: {name}{inside}{f', switch: {{ports: [{below}]}}' if below else ''}}}"


def bridge(name: str, bus: int, *ports: str) -> str:
    return f"name: {name}, bus: {bus:#x}, ports: [{', '.join(ports)}]"


ONE = profile([bridge("hb0", 0x35, port("rp0", "mem0", "2G"))], ["targets: [hb0], size: 2G"])
TWO_PORTS = profile(
    [bridge("hb0", 0x35, port("rp0", "mem0"), port("rp1", "mem1"))], ["targets: [hb0], size: 2G"]
)
TWO_BRIDGES = profile(
    [bridge("hb0", 0x35, port("rp0", "mem0")), bridge("hb1", 0x70, port("rp1", "mem1"))],
    ["targets: [hb0, hb1], size: 2G, granularity: 1024"],
)
TWO_BY_TWO = profile(
    [
        bridge("hb0", 0x35, port("rp0", "mem0"), port("rp1", "mem1")),
        bridge("hb1", 0x70, port("rp2", "mem2"), port("rp3", "mem3")),
    ],
    ["targets: [hb0, hb1], size: 4G"],
)
SWITCH = profile(
    [
        bridge(
            "hb0",
            0x35,
            port("rp0", below=", ".join([port("dsp0", "mem0"), port("dsp1", "mem1")])),
        )
    ],
    ["targets: [hb0], size: 2G"],
)
FOUR_BY_FOUR = profile(
    [
        bridge(
            f"hb{n}", 0x10 + 0x20 * n, *(port(f"rp{n}{m}", f"m{n}{m}", "256M") for m in range(4))
        )
        for n in range(4)
    ],
    ["targets: [hb0, hb1, hb2, hb3], size: 4G"],
)
TURNS = ", ".join(f"m{n}{m}" for m in range(4) for n in range(4))
LARGE_DEVICE = profile(
    [bridge("hb0", 0x35, port("rp0", "mem0", "4G"))], ["targets: [hb0], size: 4G"]
)

HALVES = (
    "window: 0, offset: 0, size: 1G, devices: [mem0]",
    "window: 0, offset: 1G, size: 1G, devices: [mem1]",
)
QUADRUPLE = "window: 0, size: 4G, devices: [mem0, mem2, mem1, mem3]"
PAIR = "window: 0, size: 2G, devices: [mem0, mem1]"

BOARDS: dict[str, tuple[Profile, tuple[str, ...]]] = {
    "one window": (ONE, ("window: 0, size: 2G, devices: [mem0]",)),
    "two bridges, two windows": (
        load_profile("two_windows"),
        ("window: 0, size: 2G, devices: [mem0]", "window: 1, size: 2G, devices: [mem1]"),
    ),
    "two root ports take turns": (TWO_PORTS, (PAIR,)),
    "two root ports take turns, the other way round": (
        TWO_PORTS,
        ("window: 0, size: 2G, devices: [mem1, mem0], granularity: 4096",),
    ),
    "two root ports, one after the other": (TWO_PORTS, HALVES),
    "two bridges take turns": (TWO_BRIDGES, (PAIR,)),
    "two bridges with two ports take turns": (TWO_BY_TWO, (QUADRUPLE,)),
    "two ports of a switch take turns": (SWITCH, (PAIR,)),
    "two ports of a switch, one after the other": (SWITCH, HALVES),
    "several decoders of one device": (
        LARGE_DEVICE,
        tuple(f"window: 0, offset: {at << 30}, size: 1G, devices: [mem0]" for at in range(4)),
    ),
    "a device with a gap": (
        LARGE_DEVICE,
        (
            "window: 0, offset: 256M, size: 512M, devices: [mem0]",
            "window: 0, offset: 2G, size: 256M, devices: [mem0]",
        ),
    ),
    "sixteen ways": (FOUR_BY_FOUR, (f"window: 0, size: 4G, devices: [{TURNS}]",)),
    "ports that decode more": (
        LARGE_DEVICE,
        ("window: 0, size: 1G, ports_size: 4G, devices: [mem0]",),
    ),
    "a hidden window": (
        load_profile("window_and_hole"),
        (
            "window: 0, size: 1G, devices: [mem0]",
            "window: 1, size: 1G, devices: [mem1]",
        ),
    ),
    "a part of a hidden bridge": (load_profile("window_partly_hidden"), HALVES),
}


@pytest.fixture(params=BOARDS)
def any_board(request: pytest.FixtureRequest, harness_host: Host) -> Board:
    made, decoders = BOARDS[request.param]
    return board(harness_host, made, *decoders)


def test_every_path_reaches_memory_and_config_space_is_as_it_was(any_board: Board) -> None:
    with any_board.powered() as machine:
        before = config_space(machine.qtest, any_board.profile)
        commit_decoders(machine.qtest, any_board.layout, any_board.settings)
        prove_paths(machine.qtest, any_board.state.decoders)
        after = config_space(machine.qtest, any_board.profile)
        left = [
            machine.qtest.read64(address)
            for one in any_board.state.decoders
            for address in (one.range.start, one.range.end - 7)
        ]
    functions = len(any_board.profile.devices()) + len(any_board.profile.host_bridges)
    assert len(before) > functions, "the dump has not seen everything"
    assert after == before
    assert set(left) == {0}, "the proof leaves something in the guest's memory"


def config_space(qtest: Qtest, profile: Profile) -> ConfigSpace:
    """The first 256 bytes of every PCI function, by the slots on the way from its root bus."""
    found: ConfigSpace = {}

    def dump(bus: int, way: Slot) -> None:
        for slot in range(32):
            for function in range(8):
                if qtest.config_read(bus, slot, function, 0) & 0xFFFF == 0xFFFF:
                    continue
                words = tuple(qtest.config_read(bus, slot, function, at) for at in range(0, 256, 4))
                here = (*way, slot << 3 | function)
                found[here] = words
                if words[0x0C // 4] >> 16 & 0x7F == 1:
                    numbers = bus | (bus + 1) << 8 | (bus + 8) << 16
                    qtest.config_write(bus, slot, function, 0x18, numbers)
                    dump(bus + 1, here)
                    qtest.config_write(bus, slot, function, 0x18, words[0x18 // 4])

    for root in (0, *(bridge.bus for bridge in profile.host_bridges)):
        dump(root, (root,))
    return found


@pytest.mark.parametrize("name", ["two root ports take turns", "two ports of a switch take turns"])
@pytest.mark.parametrize("devices", [("mem0", "mem1"), ("mem1", "mem0")])
def test_each_step_of_an_interleave_lands_on_its_device(
    harness_host: Host, name: str, devices: tuple[str, str]
) -> None:
    """Which device is behind an address, found by decoding the devices one by one afterwards."""
    step = 512
    both = board(
        harness_host,
        BOARDS[name][0],
        f"window: 0, size: 2G, devices: [{', '.join(devices)}], granularity: {step}",
    )
    start = both.layout.windows[0].range.start
    with both.powered() as machine:
        commit_decoders(machine.qtest, both.layout, both.settings)
        for way in range(2):
            machine.qtest.write64(start + way * step, way + 1)
        for way, device in enumerate(devices):
            alone = both.with_decoders(f"window: 0, size: 1G, devices: [{device}]")
            commit_decoders(machine.qtest, alone.layout, alone.settings)
            assert machine.qtest.read64(start) == way + 1, device


def swap_targets(settings: Sequence[DecoderSetting]) -> list[DecoderSetting]:
    above = [one for one in settings if one.component.kind == "host_bridge"]
    other = {one: two.targets for one, two in zip(above, reversed(above), strict=True)}
    return [replace(one, targets=other.get(one, one.targets)) for one in settings]


def without(kind: str) -> Callable[[Sequence[DecoderSetting]], list[DecoderSetting]]:
    return lambda settings: [one for one in settings if one.component.kind != kind]


def forget_the_other_devices(settings: Sequence[DecoderSetting]) -> list[DecoderSetting]:
    return [replace(one, ways=1) if one.component.kind == "endpoint" else one for one in settings]


def forget_the_level_above(settings: Sequence[DecoderSetting]) -> list[DecoderSetting]:
    return [
        replace(one, granularity=256) if one.component.kind == "host_bridge" else one
        for one in settings
    ]


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("one window", without("endpoint")),
        ("one window", without("host_bridge")),
        ("two ports of a switch take turns", without("switch")),
        ("two root ports, one after the other", swap_targets),
        ("two bridges, two windows", lambda settings: settings[: len(settings) // 2]),
        ("two root ports take turns", forget_the_other_devices),
        ("two bridges with two ports take turns", forget_the_level_above),
    ],
)
def test_a_wrong_plan_is_found_out(
    harness_host: Host,
    name: str,
    spoil: Callable[[Sequence[DecoderSetting]], Sequence[DecoderSetting]],
) -> None:
    made, decoders = BOARDS[name]
    spoilt = board(harness_host, made, *decoders)
    with spoilt.powered() as machine:
        commit_decoders(machine.qtest, spoilt.layout, spoil(spoilt.settings))
        with pytest.raises(MachineLostError, match="does not reach its memory"):
            prove_paths(machine.qtest, spoilt.state.decoders)


@pytest.mark.parametrize(
    ("built", "planned"),
    [(TWO_PORTS, SWITCH), (SWITCH, TWO_PORTS)],
    ids=["no switch", "one port too few"],
)
def test_a_machine_that_is_built_otherwise_is_refused(
    harness_host: Host, built: Profile, planned: Profile
) -> None:
    machine_as_built = board(harness_host, built, *HALVES)
    settings = board(harness_host, planned, *HALVES).settings
    with (
        machine_as_built.powered() as machine,
        pytest.raises(MachineLostError, match="at the expected place") as caught,
    ):
        commit_decoders(machine.qtest, machine_as_built.layout, settings)
    assert re.search(r"no (PCI device|port number)", caught.value.message)


def test_the_machine_of_the_discussion_has_its_addresses(harness_host: Host) -> None:
    thread = board(
        harness_host, load_profile("thread_hmat_maxmem"), "window: 0, size: 2G, devices: [mem0]"
    )
    layout = thread.layout
    assert layout.ram_of(2) == (MemoryRange.parse("180000000-1bfffffff"),)
    assert layout.ram_of(3) == (MemoryRange.parse("1c0000000-1ffffffff"),)
    assert [(one.node, one.range) for one in layout.memory if one.hotplug] == [
        (3, MemoryRange.parse("200000000-5bfffffff"))
    ]
    assert [one.range for one in layout.windows] == [MemoryRange.parse("5d0000000-64fffffff")]
    assert layout.registers_of(0x35).start == 0x5C0000000
    with thread.powered() as machine:
        commit_decoders(machine.qtest, layout, thread.settings)
        # 5c0001128-5c00011b7 is what Linux reserves as port1: the HDM decoder capability.
        enabled = machine.qtest.read32(0x5C0001128 + 4)
        base = machine.qtest.read32(0x5C0001128 + 0x10) | (
            machine.qtest.read32(0x5C0001128 + 0x14) << 32
        )
    assert enabled & 2
    assert base == 0x5D0000000


def test_a_large_window_costs_no_more_host_memory(harness_host: Host) -> None:
    peaks = {}
    for size in ("1G", "128G"):
        made = profile(
            [bridge("hb0", 0x35, port("rp0", "mem0", size))], [f"targets: [hb0], size: {size}"]
        )
        sized = board(harness_host, made, f"window: 0, size: {size}, devices: [mem0]")
        with sized.powered() as machine:
            commit_decoders(machine.qtest, sized.layout, sized.settings)
            prove_paths(machine.qtest, sized.state.decoders)
            peaks[size] = peak_memory(machine.pid)
    assert peaks["128G"] - peaks["1G"] < 16 * MIB


def peak_memory(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    match = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) << 10
