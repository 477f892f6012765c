# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
from typing import Any

import pytest
from machines import bridge, machine, one_window, port, switch_port, window
from refusals import DELETE, changed, differences

from harness.core.errors import UsageError
from harness.platform.memory_range import GIB, MIB
from harness.scenario.profile import Profile, Window, WindowPart, read_profile
from harness.scenario.yaml_document import Size

Values = dict[str, Any]


def whole() -> Values:
    """A profile that uses everything and breaks no rule."""
    return {
        "summary": "Everything.",
        "nodes": [{"cpus": 2, "memory": "2G"}, {"memory": "1G"}],
        "slots": 2,
        "maxmem": "8G",
        "distances": [[10, 21], [21, 10]],
        "hmat": [{"initiator": 0, "target": 1, "latency": 100, "bandwidth": "1G"}],
        "host_bridges": [
            {
                "name": "hb0",
                "bus": 0x35,
                "ports": [
                    {"name": "rp0", "device": {"name": "mem0", "size": "1G"}},
                    {"name": "rp1", "device": {"name": "mem1", "size": "1G"}},
                ],
            },
            {
                "name": "hb1",
                "bus": 0x70,
                "hidden": True,
                "ports": [{"name": "rp2", "device": {"name": "mem2", "size": "1G"}}],
            },
            {"name": "hb2", "bus": 0x90, "ports": [{"name": "rp3"}]},
        ],
        "windows": [
            {
                "targets": ["hb0"],
                "size": "2G",
                "parts": [
                    {"targets": ["hb0"], "size": "1G"},
                    {"targets": ["hb1"], "size": "1G"},
                ],
            }
        ],
    }


def read(values: Values) -> Profile:
    return read_profile(json.dumps(values), "p.yaml").value


def test_a_profile_is_read_whole() -> None:
    profile = read(whole())
    assert (profile.memory, profile.cpus) == (3 * GIB, 2)
    assert profile.maxmem == 8 * GIB
    assert [device.name for device in profile.devices()] == ["mem0", "mem1", "mem2"]
    assert profile.windows[0].granularity == 256


MEM0 = "host_bridges.0.ports.0.device"
AT_MEM0 = "host_bridges[0].ports[0].device"
PLAIN = {"targets": ["hb0", "hb2"], "size": "1G"}
# Field, value, and either the place and message of the error, or nothing for a valid value.
CHANGES: list[tuple[str, Any, str, str]] = [
    ("nodes", [], "nodes", "node 0 needs at least one CPU"),
    ("nodes.0.cpus", 0, "nodes", "node 0 needs at least one CPU"),
    ("nodes.1.memory", "300G", "nodes", "more than 256G of RAM"),
    ("nodes.1.memory", "100M", "nodes[1].memory", "100M is not a multiple of 128M"),
    ("slots", 0, "slots", "slots and maxmem go together"),
    ("maxmem", DELETE, "slots", "slots and maxmem go together"),
    ("maxmem", "3G", "maxmem", "more than the 3G of RAM"),
    ("distances", [[10, 21]], "distances", "not 2 rows of 2"),
    ("distances", [[10, 21], [10]], "distances", "not 2 rows of 2"),
    ("distances.1", [21, 11], "distances[1]", "10 on the diagonal"),
    ("distances.0", [10, 9], "distances[0]", "10 to 254"),
    ("distances.0", [10, 255], "distances[0]", "10 to 254"),
    ("hmat.0.target", 2, "hmat[0]", "a node that does not exist"),
    ("hmat.0.initiator", -1, "hmat[0]", "a node that does not exist"),
    ("host_bridges.1.bus", 0x35, "host_bridges[0].bus", "for its ports before hb1"),
    ("host_bridges.1.bus", 0x36, "host_bridges[0].bus", "no bus numbers for its ports"),
    ("host_bridges.1.bus", 0x3A, "host_bridges[0].bus", "no bus numbers for its ports"),
    ("host_bridges.1.bus", 0, "host_bridges[1].bus", "expected `int` >= 1"),
    ("host_bridges.1.bus", 256, "host_bridges[1].bus", "expected `int` <= 255"),
    ("host_bridges.1.ports", [], "host_bridges[1].ports", "has no root port"),
    ("host_bridges.0.ports.0.switch", {"ports": []}, "host_bridges[0].ports[0]", "a switch"),
    (f"{MEM0}.name", "mem2", "host_bridges[1]", "duplicate name 'mem2'"),
    (f"{MEM0}.name", "rp0", "host_bridges[0]", "duplicate name 'rp0'"),
    (f"{MEM0}.name", "hb0", "host_bridges[0]", "duplicate name 'hb0'"),
    (f"{MEM0}.name", "Mem0", f"{AT_MEM0}.name", "matching regex"),
    (f"{MEM0}.name", "a,b", f"{AT_MEM0}.name", "matching regex"),
    (f"{MEM0}.name", "a" * 33, f"{AT_MEM0}.name", "length <= 32"),
    (f"{MEM0}.size", "1000M", f"{AT_MEM0}.size", "1000M is not a multiple of 256M"),
    ("windows.0.targets", [], "windows[0].targets", "0 targets"),
    ("windows.0.targets", ["hb0"] * 5, "windows[0].targets", "5 targets"),
    ("windows.0.targets", ["hb7"], "windows[0].targets", "there is no host bridge 'hb7'"),
    (
        "windows.0.parts.1.targets",
        ["x"],
        "windows[0].parts[1].targets",
        "there is no host bridge 'x'",
    ),
    ("windows.0.parts.1.targets", ["hb0", "hb0"], "windows[0].parts[1].targets", "twice"),
    ("windows.0.targets", ["hb0", "hb0"], "windows[0].targets", "names a host bridge twice"),
    ("phys_bits", 39, "phys_bits", "expected `int` >= 40"),
    ("phys_bits", 53, "phys_bits", "expected `int` <= 52"),
    ("windows.0.targets", ["hb1"], "windows[0].targets", "names a hidden host bridge"),
    ("windows.0.size", "3G", "windows[0].parts", "do not add up to the window's size"),
    ("windows.0.granularity", 300, "windows[0].granularity", "300 is not an interleave"),
    ("windows.0.granularity", 32768, "windows[0].granularity", "32768 is not an interleave"),
    (
        "windows.0.parts.0.size",
        "128M",
        "windows[0].parts[0].size",
        "128M is not a multiple of 256M",
    ),
    ("windows.0.parts.0.size", 0, "windows[0].parts[0].size", "0 is not a multiple of 256M"),
    ("nodes.1.memory", 0, "nodes[1].memory", "0 is not a multiple of 128M"),
    (f"{MEM0}.size", 0, f"{AT_MEM0}.size", "0 is not a multiple of 256M"),
    ("host_bridges.1.bus", 255, "host_bridges[1].bus", "no bus numbers below 256 for its ports"),
    # QEMU's command line has one option a line: a newline would begin another one.
    (f"{MEM0}.name", "evil\n", f"{AT_MEM0}.name", "matching regex"),
    ("host_bridges.0.ports.0.name", "evil\n", "host_bridges[0].ports[0].name", "matching regex"),
    ("windows.0", {**PLAIN, "size": "768M"}, "windows[0].size", "256M for each target"),
    ("windows.0", {**PLAIN, "size": 0}, "windows[0].size", "0 is not a multiple of 512M"),
]
VALID: list[tuple[str, Any]] = [
    ("windows.0.parts", []),
    ("host_bridges.1.bus", 253),
    ("windows.0", PLAIN),
]


def test_impossible_hardware_is_refused_with_its_place() -> None:
    rows = [((path, value), where, message) for path, value, where, message in CHANGES]
    assert differences(lambda one: read(changed(whole(), *one)), rows) == []
    for path, value in VALID:
        read(changed(whole(), path, value))


def test_a_hidden_window_may_have_a_hidden_host_bridge_and_changes_the_cedt() -> None:
    values = whole()
    values["windows"] = [{"targets": ["hb1"], "size": "1G", "hidden": True}]
    values["host_bridges"][1]["hidden"] = False
    assert read(values).differs_from_cedt()
    values["host_bridges"][1]["hidden"] = True
    assert read(values).windows[0].hidden


def test_the_path_to_a_device_has_each_port_with_its_number() -> None:
    profile = machine(
        [
            bridge("hb0", 0x20, port("rp0")),
            bridge(
                "hb1",
                0x40,
                port("rp1", "mem0"),
                switch_port("rp2", port("dp0", "mem1"), switch_port("dp1", port("dp2", "mem2"))),
            ),
        ],
        [window("hb1")],
    )

    def path(device: str) -> tuple[str, list[tuple[int, str]]]:
        above, ports = profile.path_to(device)
        return above.name, [(number, one.name) for number, one in ports]

    assert path("mem0") == ("hb1", [(0, "rp1")])
    assert path("mem1") == ("hb1", [(1, "rp2"), (0, "dp0")])
    assert path("mem2") == ("hb1", [(1, "rp2"), (1, "dp1"), (0, "dp2")])
    assert [device.name for device in profile.devices()] == ["mem0", "mem1", "mem2"]
    with pytest.raises(KeyError):
        profile.path_to("rp0")


def test_a_part_of_a_window_is_found_by_what_it_contains_whole() -> None:
    first, second = (WindowPart(targets=(name,), size=Size(GIB)) for name in ("hb0", "hb1"))
    split = Window(targets=("hb0",), size=Size(2 * GIB), parts=(first, second))
    assert split.part_at(0, GIB) is first
    assert split.part_at(GIB, GIB) is second
    assert split.part_at(GIB - 256 * MIB, 256 * MIB) is first
    assert split.part_at(GIB - 256 * MIB, 512 * MIB) is None
    plain = Window(targets=("hb0",), size=Size(2 * GIB))
    assert plain.part_at(GIB, GIB) == WindowPart(targets=("hb0",), size=Size(2 * GIB))


def test_only_hidden_bridges_and_split_windows_differ_from_the_hardwares_cedt() -> None:
    assert not one_window().differs_from_cedt()
    hidden = machine([bridge("hb0", 1, port("rp0"), hidden=True)], [])
    assert hidden.differs_from_cedt()
    assert read(whole()).differs_from_cedt()


def many(bridges: int = 1, ports: int = 1, below: int = 0) -> Values:
    """A profile with so many host bridges, root ports of each, and ports of a switch."""
    inside = {"switch": {"ports": [{"name": f"dp{n}"} for n in range(below)]}} if below else {}
    return {
        "summary": "Many.",
        "nodes": [{"cpus": 1, "memory": "1G"}],
        "host_bridges": [
            {
                "name": f"hb{b}",
                "bus": 1 + 4 * b,
                "ports": [{"name": f"rp{b}_{p}", **inside} for p in range(ports)],
            }
            for b in range(bridges)
        ],
    }


def of_nodes(*cpus: int) -> Values:
    """A profile with a node for each number of CPUs."""
    return {"summary": "Nodes.", "nodes": [{"cpus": one, "memory": "128M"} for one in cpus]}


def test_profiles_beyond_the_limits_of_qemu_are_refused() -> None:
    for works, refused, message in (
        (many(bridges=16), many(bridges=17), "host_bridges: 17 host bridges, and QEMU takes 16"),
        (many(ports=32), many(ports=33), r"\[0\].ports: 33 ports on one bus, and QEMU takes 32"),
        (many(below=32), many(below=33), r"ports\[0\].switch.ports: 33 ports on one bus"),
        (of_nodes(1, *[0] * 127), of_nodes(1, *[0] * 128), "129 NUMA nodes, and QEMU takes 128"),
        (of_nodes(2, 2), of_nodes(2, 1), r"nodes\[1\].cpus: 3 CPUs do not divide evenly"),
    ):
        read(works)
        with pytest.raises(UsageError, match=message):
            read(refused)
