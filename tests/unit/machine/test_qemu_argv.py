# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import jinja2
import pytest
from machines import bridge, machine, one_window, port, switch_port, window
from msgspec import structs

from harness.core.errors import UsageError
from harness.core.paths import PROFILES
from harness.machine import qemu_argv as qemu_command
from harness.machine.qemu_argv import Boot, ConsolePipe, Control, qemu_argv
from harness.machine.qemu_binary import QemuBinary
from harness.platform.memory_range import GIB
from harness.scenario.profile import Profile, read_profile
from harness.scenario.scenario_files import load_profile, profile_names

QEMU = QemuBinary(
    path=Path("/usr/bin/qemu-system-x86_64"),
    version=(10, 0, 2),
    version_text="10.0.2",
    identity="0" * 64,
    seccomp=True,
    features=(),
)
CONTROL = Control(qtest_fd=11, qmp_fd=12)
BOOT = Boot(
    kernel=Path("/store/kernel, with a comma/vmlinuz"),
    initramfs="/dev/fd/9",
    command_line="console=ttyS0 memmap=0x1%0x2,x -S",
    console=ConsolePipe(13, Path("/evidence/a,b/serial.log")),
)

EVERYTHING = machine(
    [
        bridge(
            "hb0", 0x20, port("rp0", "mem0"), switch_port("rp1", port("dp0", "mem1"), port("d"))
        ),
        bridge("hb1", 0x40, port("rp2", "mem2"), port("rp3")),
    ],
    [window("hb0"), window("hb0", "hb1", size=4 * GIB, granularity=1024), window("hb1")],
)


@pytest.fixture(params=[*profile_names(), "everything"])
def profile(request: pytest.FixtureRequest) -> Profile:
    return EVERYTHING if request.param == "everything" else load_profile(request.param)


def whole(profile: Profile, *, qemu: QemuBinary = QEMU, accel: str = "tcg") -> tuple[str, ...]:
    assert accel in ("tcg", "kvm")
    return qemu_argv(qemu, profile, accel, boot=BOOT, control=CONTROL)  # type: ignore[arg-type]


def options(argv: tuple[str, ...]) -> list[tuple[str, str]]:
    """Options with their values; every option of QEMU begins with a dash."""
    found: list[tuple[str, str]] = []
    words = list(argv[1:])
    while words:
        option = words.pop(0)
        assert re.fullmatch(r"-[a-z][a-z-]*|-S", option), option
        alone = option in ("-S", "-nodefaults", "-no-user-config", "-no-reboot")
        found.append((option, "" if alone else words.pop(0)))
    return found


def values(argv: tuple[str, ...], option: str) -> list[str]:
    return [value for name, value in options(argv) if name == option]


def parts(value: str) -> dict[str, str]:
    """An option's value as QEMU splits it: a doubled comma is a comma."""
    fields = [one.replace("\0", ",") for one in value.replace(",,", "\0").split(",")]
    return dict(one.partition("=")[::2] for one in fields)


def test_every_identifier_is_given_once(profile: Profile) -> None:
    argv = whole(profile)
    for option in ("-device", "-object", "-chardev", "-netdev"):
        found = [parts(value).get("id") for value in values(argv, option)]
        given = [one for one in found if one is not None]
        assert len(given) == len(set(given))


def test_everything_is_plugged_into_something_that_comes_before_it(profile: Profile) -> None:
    known = {"pcie.0"}
    for value in values(whole(profile), "-device"):
        device = parts(value)
        assert device["bus"] in known, value
        known.add(device.get("id", ""))


def test_the_network_card_is_on_the_root_bus_without_a_rom(profile: Profile) -> None:
    # With a pxb-cxl there, QEMU would plug it into the CXL bridge and refuse.
    cards = [one for one in values(whole(profile), "-device") if "netdev" in parts(one)]
    assert [parts(one)["bus"] for one in cards] == ["pcie.0"]
    assert parts(cards[0])["romfile"] == ""
    (net,) = values(whole(profile), "-netdev")
    assert parts(net)["hostfwd"] == "tcp:127.0.0.1:0-:22"
    assert parts(net)["restrict"] == "on"


def test_without_a_console_of_the_harness_there_is_no_network() -> None:
    argv = qemu_argv(QEMU, one_window(), "tcg", boot=replace(BOOT, console=None))
    assert values(argv, "-netdev") == []
    assert values(argv, "-nic") == ["none"]


def test_the_width_of_addresses_is_the_cpus_own_unless_the_profile_says_one() -> None:
    assert values(qemu_argv(QEMU, one_window(), "tcg"), "-cpu") == ["max"]
    wide = structs.replace(one_window(), phys_bits=46)
    assert values(qemu_argv(QEMU, wide, "tcg"), "-cpu") == ["max,phys-bits=46"]


def test_no_memory_backend_reserves_host_memory(profile: Profile) -> None:
    backends = [parts(one) for one in values(whole(profile), "-object")]
    assert {one["reserve"] for one in backends} == {"off"}
    sizes = [int(one["size"]) for one in backends]
    assert sum(sizes) == profile.memory + sum(device.size for device in profile.devices())


def test_every_backend_is_used_once(profile: Profile) -> None:
    argv = whole(profile)
    backends = [parts(one)["id"] for one in values(argv, "-object")]
    nodes = [parts(one)["memdev"] for one in values(argv, "-numa") if "memdev" in parts(one)]
    devices = [parts(one).get("volatile-memdev") for one in values(argv, "-device")]
    used = [*nodes, *(one for one in devices if one)]
    assert sorted(used) == sorted(backends)


def test_all_windows_are_in_the_one_machine_option(profile: Profile) -> None:
    (value,) = values(whole(profile), "-machine")
    fields = parts(value)
    expected: dict[str, str] = {}
    number = 0
    for one in profile.windows:
        for part in one.hardware():
            at = f"cxl-fmw.{number}"
            expected |= {f"{at}.targets.{n}": name for n, name in enumerate(part.targets)}
            expected[f"{at}.size"] = str(int(part.size))
            expected[f"{at}.interleave-granularity"] = str(one.granularity)
            number += 1
    assert {key: one for key, one in fields.items() if key.startswith("cxl-fmw")} == expected
    assert fields["cxl"] == ("on" if profile.host_bridges else "off")


def test_nodes_cpus_distances_and_hmat_are_those_of_the_profile(profile: Profile) -> None:
    argv = whole(profile)
    numa = values(argv, "-numa")
    nodes = [parts(one) for one in numa if one.startswith("node,")]
    assert [int(one["nodeid"]) for one in nodes] == list(range(len(profile.nodes)))
    cpus: list[int] = []
    for one in nodes:
        if "cpus" in one:
            first, last = map(int, one["cpus"].split("-"))
            cpus += range(first, last + 1)
    assert cpus == list(range(profile.cpus))
    assert values(argv, "-smp")[0].split(",")[0] == str(profile.cpus)
    assert sum(one.startswith("dist,") for one in numa) == len(profile.distances) ** 2
    assert sum(one.startswith("hmat-lb,") for one in numa) == 2 * len(profile.hmat)
    memory = parts(values(argv, "-m")[0])
    assert memory["size"] == f"{profile.memory}b"
    assert ("maxmem" in memory) == bool(profile.slots)


def test_ports_have_their_number_and_a_chassis_of_their_own(profile: Profile) -> None:
    ports = [parts(one) for one in values(whole(profile), "-device") if "chassis" in parts(one)]
    assert len({one["chassis"] for one in ports}) == len(ports)
    numbers = {one["id"]: int(one["port"]) for one in ports}
    for device in profile.devices():
        for number, one in profile.path_to(device.name)[1]:
            assert numbers[one.name] == number


def test_a_switch_stands_between_its_port_and_what_is_below() -> None:
    devices = {parts(one).get("id"): parts(one) for one in values(whole(EVERYTHING), "-device")}
    assert devices["mem1"]["bus"] == "dp0"
    upstream = devices[devices["dp0"]["bus"]]
    assert upstream["bus"] == "rp1"
    assert devices["rp1"]["bus"] == "hb0"


def test_the_machine_starts_paused_only_when_it_is_controlled() -> None:
    assert values(whole(one_window()), "-S") == [""]
    assert "fd=11" in " ".join(whole(one_window()))
    argv = qemu_argv(QEMU, one_window(), "tcg")
    assert not {"-S", "-qtest", "-mon", "-kernel", "-append", "-netdev"} & set(argv)


def test_a_restored_machine_differs_only_in_how_it_starts(profile: Profile) -> None:
    assert BOOT.console is not None
    appended = replace(BOOT, console=replace(BOOT.console, append=True))
    argv = qemu_argv(QEMU, profile, "tcg", boot=appended, control=CONTROL, incoming=True)
    cold = set(options(whole(profile)))
    warm = set(options(argv))
    assert {key for key, _ in warm ^ cold} == {"-accel", "-chardev", "-incoming"}
    assert ("-incoming", "defer") in warm
    (console,) = [value for key, value in warm - cold if key == "-chardev"]
    assert console.endswith(",logappend=on")
    assert ("-chardev", console.replace("logappend=on", "logappend=off")) in cold


def test_kernel_initramfs_and_command_line_are_one_word_each() -> None:
    argv = whole(one_window())
    assert values(argv, "-kernel") == [str(BOOT.kernel)]
    assert values(argv, "-initrd") == ["/dev/fd/9"]
    assert values(argv, "-append") == [BOOT.command_line]


def test_a_comma_in_a_path_stays_in_the_path() -> None:
    console = values(whole(one_window()), "-chardev")[0]
    assert parts(console)["logfile"] == "/evidence/a,b/serial.log"


@pytest.mark.parametrize(("accel", "value"), [("kvm", "kvm"), ("tcg", "tcg")])
def test_the_accelerator_is_the_one_that_was_chosen(accel: str, value: str) -> None:
    (found,) = values(whole(one_window(), accel=accel), "-accel")
    assert found.split(",")[0] == value


def test_qemu_is_confined_where_it_can_be() -> None:
    assert values(whole(one_window()), "-sandbox")[0].startswith("on,")
    assert values(whole(one_window(), qemu=replace(QEMU, seccomp=False)), "-sandbox") == []


def test_a_value_that_is_missing_is_an_error_and_no_empty_text() -> None:
    template = qemu_command._template()
    with pytest.raises(jinja2.UndefinedError):
        template.render(profile=one_window())
    with pytest.raises(jinja2.UndefinedError):
        template.environment.from_string("{{ profile.no_such }}").render(profile=one_window())


@pytest.mark.parametrize(
    "evil", ["a,id=b", "a b", "a\n-monitor stdio", "-a", "", "{{ 1 }}", "A", "a=b", "ä"]
)
@pytest.mark.parametrize("name", ["hb0", "rp0", "mem0"])
def test_no_name_of_a_profile_can_become_an_option(name: str, evil: str) -> None:
    text = (PROFILES / "one_window.yaml").read_text()
    quoted = '"' + evil.replace("\n", "\\n") + '"'
    changed = re.sub(rf"\b{name}\b", lambda _: quoted, text)
    assert changed != text
    with pytest.raises(UsageError):
        read_profile(changed, "evil.yaml")
