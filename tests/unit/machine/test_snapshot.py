# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from collections.abc import Callable

import pytest
from fake_booted import (
    LAYOUT,
    PRESENT,
    PROFILE,
    SLOT_CONTROL,
    SLOT_STATUS,
    FakeBooted,
)

from harness.core.errors import DeadlineExpiredError
from harness.machine.snapshot import (
    RestoreError,
    SavedMachine,
    read_functions,
    register_blocks,
    restore_machine,
    save_machine,
)

FILE = 9


def saved(fake: FakeBooted) -> SavedMachine:
    fake.boot()
    return save_machine(fake.machine, PROFILE, LAYOUT, FILE)


def restore(fake: FakeBooted, what: SavedMachine) -> tuple[str, ...]:
    return restore_machine(fake.machine, what, LAYOUT, (), ())


def test_a_machine_is_stopped_read_and_saved_into_the_file() -> None:
    fake = FakeBooted()
    what = saved(fake)
    names = [name for name, _ in fake.commands]
    assert names.index("stop") < names.index("query-pci") < names.index("migrate")
    assert ("migrate", {"uri": "file:/dev/fd/9"}) in fake.commands
    assert what.file == FILE
    assert [str(one) for one, _ in what.config] == [
        "00:01.0 (hb0)",
        "00:02.0",
        "35:00.0 (rp0)",
        "36:00.0 (mem0)",
    ]
    assert [whose for whose, _, _ in what.registers] == [
        "component registers of the host bridge 0x35",
        "BAR 0 of 35:00.0 (rp0)",
        "BAR 0 of 36:00.0 (mem0)",
    ]
    assert fake.writes == [], "nothing of the machine is changed"


def test_a_restored_machine_is_what_was_saved() -> None:
    before = FakeBooted()
    what = saved(before)
    after = before.restored()
    written = restore(after, what)
    for name, one in before.functions.items():
        assert after.functions[name].config == one.config, name
    assert written[0] == "00:01.0 (hb0) 0x004: 00000000 -> 00a00103"
    assert all("00:02.0" not in line for line in written), "QEMU restored the network card"
    assert after.commands[-1][0] == "query-migrate", "it is left paused"


def test_a_bridge_is_written_before_what_lies_below_and_commands_last() -> None:
    before = FakeBooted()
    what = saved(before)
    after = before.restored()
    restore(after, what)
    order = [name for name, _, _ in after.writes]
    assert order == sorted(order, key=["hb0", "rp0", "mem0"].index)
    for name in ("rp0", "mem0"):
        full = [at for who, at, size in after.writes if who == name and size == 4]
        assert full[-1] == 0x04, name
        assert full.count(0x04) == 1


def test_writing_slot_control_leaves_no_completed_command() -> None:
    before = FakeBooted()
    what = saved(before)
    after = before.restored()
    restore(after, what)
    port = after.functions["rp0"]
    assert port.config[SLOT_STATUS] == PRESENT
    assert port.config[SLOT_CONTROL : SLOT_CONTROL + 2] == b"\xf1\x03"
    assert ("rp0", SLOT_STATUS, 2) in after.writes


def _component(fake: FakeBooted) -> None:
    fake.bridge_registers[0x1010] = 1


def _device(fake: FakeBooted) -> None:
    fake.functions["mem0"].registers[0x22] ^= 0xFF


def _identity(fake: FakeBooted) -> None:
    fake.functions["mem0"].config[2] ^= 0xFF


def _other_card(fake: FakeBooted) -> None:
    fake.functions[""].config[0x3C] = 7


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            _component,
            "component registers of the host bridge 0x35 at 0x1010 was 00000000 and is 00000001",
        ),
        (_device, "BAR 0 of 36:00.0 (mem0) at 0x020 was 04030201 and is 04fc0201"),
        (
            _identity,
            "configuration space of 36:00.0 (mem0) at 0x000 was 12348086 and is 12cb8086",
        ),
        (
            _other_card,
            "configuration space of 00:02.0 at 0x03c was 00000000 and is 00000007",
        ),
    ],
)
def test_a_difference_that_cannot_be_written_back_is_refused(
    damage: Callable[[FakeBooted], None], says: str
) -> None:
    before = FakeBooted()
    what = saved(before)
    after = before.restored()
    damage(after)
    with pytest.raises(RestoreError) as caught:
        restore(after, what)
    assert caught.value.message == f"the restored machine differs from the saved one: {says}"
    assert "--start cold" in caught.value.hint


def test_of_many_differences_some_are_named() -> None:
    before = FakeBooted()
    what = saved(before)
    after = before.restored()
    after.bridge_registers[:40] = b"x" * 40
    with pytest.raises(RestoreError, match="; and 4 more\\n"):
        restore(after, what)


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        (lambda text: text.replace("node0_ram", "         "), "0x40000000 bytes"),
        (lambda text: text + text.splitlines()[1] + "\n", "0x80000000 bytes"),
        (lambda _text: "", "it lists none"),
    ],
)
def test_memory_that_would_be_lost_is_told(blocks: Callable[[str], str], says: str) -> None:
    fake = FakeBooted()
    fake.ram_blocks = blocks(fake.ram_blocks)
    with pytest.raises(RestoreError) as caught:
        saved(fake)
    assert caught.value.message == f"QEMU does not save all of its memory: {says}"
    assert "migrate" not in [name for name, _ in fake.commands]


def test_a_machine_that_cannot_be_saved_is_told() -> None:
    fake = FakeBooted({"status": "failed", "error-desc": "No space left on device"})
    with pytest.raises(
        RestoreError, match="QEMU could not save the machine: No space left on device"
    ):
        saved(fake)


def test_a_machine_that_cannot_be_loaded_is_told() -> None:
    what = saved(FakeBooted())
    with pytest.raises(RestoreError, match="QEMU could not load the saved machine: cancelled"):
        restore(FakeBooted({"status": "cancelled"}), what)


def test_saving_has_a_deadline() -> None:
    fake = FakeBooted({"status": "active"})
    fake.boot()
    with pytest.raises(DeadlineExpiredError, match="waiting for QEMU to save the machine"):
        save_machine(fake.machine, PROFILE, LAYOUT, FILE, seconds=0.01)


def test_functions_below_a_switch_are_found_and_unmapped_bars_are_not() -> None:
    def one(bus: int, slot: int, name: str, *regions: dict[str, object]) -> dict[str, object]:
        return {"bus": bus, "slot": slot, "function": 0, "qdev_id": name, "regions": regions}

    def bar(number: int, address: int, kind: str = "memory") -> dict[str, object]:
        return {"bar": number, "type": kind, "address": address, "size": 0x1000}

    device = one(0x38, 0, "mem0", bar(0, 0xFE00_0000), bar(2, -1), bar(3, 0xC000, "io"))
    downstream = {**one(0x37, 1, "dp0"), "pci_bridge": {"bus": {}, "devices": [device]}}
    upstream = {**one(0x36, 0, "rp0_us"), "pci_bridge": {"bus": {}, "devices": [downstream]}}
    port = {**one(0x35, 0, "rp0"), "pci_bridge": {"bus": {}, "devices": [upstream]}}
    buses = [
        {"bus": 0x35, "devices": [port]},
        {"bus": 0, "devices": [one(0, 3, "hb0"), one(0, 4, "", bar(1, 0xFEB0_0000))]},
    ]
    functions = read_functions(buses, PROFILE)
    assert [(one.name, one.cxl) for one in functions] == [
        ("hb0", True),
        ("", False),
        ("rp0", True),
        ("rp0_us", True),
        ("dp0", True),
        ("mem0", True),
    ]
    assert functions[-1].config == 0xB380_0000
    assert functions[-2].config == 0xB370_8000
    blocks = [(whose, str(span)) for whose, span in register_blocks(functions, LAYOUT)]
    assert blocks[0][1] == "100000000-100001fff", "of 64 KiB, what the specification defines"
    assert blocks[1:] == [("BAR 0 of 38:00.0 (mem0)", "fe000000-fe000fff")]
