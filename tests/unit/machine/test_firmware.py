# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from fake_pci import COMMITTED, HDM, Registers
from fake_qemu import FakeQemu, qtest_of
from layouts import layout_of
from machines import bridge, machine, port, scenario_of, switch_port, window

from harness.core.errors import MachineLostError
from harness.machine.firmware import (
    check_committed,
    commit_again,
    commit_decoders,
    prove_paths,
    unanswered,
)
from harness.machine.qtest import Qtest
from harness.platform.address_map import MachineLayout
from harness.platform.firmware_state import FirmwareState, place_firmware
from harness.platform.hdm_decoders import DecoderSetting, plan_decoders
from harness.platform.memory_range import GIB, MemoryRange
from harness.scenario.checks import check_scenario
from harness.scenario.profile import Profile

Values = dict[str, Any]


@dataclass
class Board:
    """A fake machine and what its firmware has to do."""

    fake: FakeQemu
    qtest: Qtest
    layout: MachineLayout
    state: FirmwareState
    settings: tuple[DecoderSetting, ...]

    def commit(self) -> None:
        commit_decoders(self.qtest, self.layout, self.settings)

    def prove(self) -> None:
        prove_paths(self.qtest, self.state.decoders)

    def check(self) -> tuple[str, ...]:
        return check_committed(self.qtest, self.layout, self.settings)

    def register(self, name: str, index: int, offset: int) -> int:
        return self.fake.registers(name).values.get(HDM + 0x10 + 0x20 * index + offset, 0)

    def decoder(self, name: str, index: int = 0) -> tuple[int, int, int, int]:
        """Base, size, control and targets of a decoder."""
        low = [self.register(name, index, offset) for offset in range(0, 0x1C, 4)]
        return low[0] | low[1] << 32, low[2] | low[3] << 32, low[4], low[5] | low[6] << 32


@contextmanager
def board(profile: Profile, *decoders: Values) -> Iterator[Board]:
    document = scenario_of({"decoders": list(decoders)})
    check_scenario(document, profile)
    layout = layout_of(profile)
    state = place_firmware(document, profile, layout)
    fake = FakeQemu(profile, layout)
    with qtest_of(fake) as qtest:
        yield Board(fake, qtest, layout, state, plan_decoders(profile, state))


def decoder(*devices: str, number: int = 0, size: str = "2G", **more: Any) -> Values:
    return {"window": number, "size": size, "devices": list(devices), **more}


ONE = machine([bridge("hb0", 0x35, port("rp0", "mem0"))], [window("hb0")])
TWO_WINDOWS = machine(
    [bridge("hb0", 0x35, port("rp0", "mem0")), bridge("hb1", 0x70, port("rp1", "mem1"))],
    [window("hb0"), window("hb1", granularity=1024)],
)
TWO_BY_TWO = machine(
    [
        bridge("hb0", 0x35, port("rp0", "mem0"), port("rp1", "mem1")),
        bridge("hb1", 0x70, port("rp2", "mem2"), port("rp3", "mem3")),
    ],
    [window("hb0", "hb1", granularity=512)],
)
SWITCHED = machine(
    [
        bridge(
            "hb0",
            0x35,
            port("rp0"),
            switch_port("rp1", port("dp0", "mem0"), port("dp1", "mem1")),
            switch_port("rp2", port("dp2", "mem2"), switch_port("dp3", port("dp4", "mem3"))),
        )
    ],
    [window("hb0", size=8 * GIB)],
)
EIGHT = machine(
    [bridge("hb0", 0x35, *(port(f"rp{n}", f"mem{n}") for n in range(8)))],
    [window("hb0", granularity=4096)],
)
CASES = {
    "one": (ONE, [decoder("mem0")]),
    "two-windows": (TWO_WINDOWS, [decoder("mem0"), decoder("mem1", number=1)]),
    "two-by-two": (TWO_BY_TWO, [decoder("mem0", "mem2", "mem1", "mem3")]),
    "switch": (SWITCHED, [decoder("mem1", "mem0")]),
    "across-switches": (SWITCHED, [decoder("mem0", "mem2")]),
    "switches": (SWITCHED, [decoder("mem3", size="512M"), decoder("mem0", offset=GIB)]),
    "eight": (EIGHT, [decoder(*(f"mem{n}" for n in (7, 6, 5, 4, 3, 2, 1, 0)))]),
    "several": (ONE, [decoder("mem0", size="256M", offset=n * GIB // 2) for n in range(4)]),
}


@pytest.fixture(params=CASES)
def any_board(request: pytest.FixtureRequest) -> Iterator[Board]:
    profile, decoders = CASES[request.param]
    with board(profile, *decoders) as one:
        yield one


def test_an_endpoint_and_its_bridge_decode_the_whole_range() -> None:
    with board(ONE, decoder("mem0")) as one:
        one.commit()
        control = COMMITTED | 1 << 12 | 1 << 9
        assert one.decoder("mem0") == (0x110000000, 2 * GIB, control, 0)
        assert one.decoder("hb0") == (0x110000000, 2 * GIB, control, 0)


def test_ways_granularity_and_targets_are_encoded() -> None:
    with board(TWO_BY_TWO, decoder("mem0", "mem2", "mem1", "mem3")) as one:
        one.commit()
        # Endpoints: four ways (2) of 512 bytes (1); host bridges: two ways (1) of 1024 bytes (2).
        assert one.decoder("mem3")[2:] == (COMMITTED | 1 << 12 | 1 << 9 | 2 << 4 | 1, 0)
        assert one.decoder("hb1")[2:] == (COMMITTED | 1 << 12 | 1 << 9 | 1 << 4 | 2, 0x0100)


def test_more_than_four_targets_reach_the_second_register() -> None:
    with board(*_case("eight")) as one:
        one.commit()
        assert one.decoder("hb0")[3] == 0x0001_0203_0405_0607


def test_every_component_is_enabled_and_nothing_else_is_touched(any_board: Board) -> None:
    any_board.commit()
    planned = {one.component.name for one in any_board.settings}
    names = {*any_board.fake.names, *_with_registers(any_board)}
    for name in names:
        assert any_board.fake.registers(name).values.get(HDM + 4, 0) == (
            2 if name in planned else 0
        )


def test_a_decoder_that_the_scenario_locks_is_committed_with_its_lock_bit() -> None:
    with board(ONE, decoder("mem0", locked=True)) as one:
        one.commit()
        assert all(one.decoder(name)[2] & 1 << 8 for name in ("mem0", "hb0"))
    with board(ONE, decoder("mem0")) as one:
        one.commit()
        assert not any(one.decoder(name)[2] & 1 << 8 for name in ("mem0", "hb0"))


def test_every_planned_decoder_is_committed_and_no_other(any_board: Board) -> None:
    any_board.commit()
    planned = {(one.component.name, one.index) for one in any_board.settings}
    names = {*any_board.fake.names, *_with_registers(any_board)}
    for name in names:
        for index in range(4):
            control = any_board.fake.registers(name).control(index)
            assert bool(control & COMMITTED) == ((name, index) in planned)


def test_configuration_space_is_as_it_came_out_of_reset(any_board: Board) -> None:
    before = any_board.fake.config_spaces()
    any_board.commit()
    assert any_board.fake.config_spaces() == before


def test_every_way_of_every_decoder_reaches_memory_of_its_own(any_board: Board) -> None:
    any_board.commit()
    any_board.prove()
    written = {one.name for one in any_board.fake.functions() if one.memory}
    assert written == {name for one in any_board.state.decoders for name in one.devices}


def test_memory_is_zero_again_after_the_proof(any_board: Board) -> None:
    any_board.commit()
    any_board.prove()
    assert not any(value for one in any_board.fake.functions() for value in one.memory.values())


def test_memory_that_answers_is_as_before(any_board: Board) -> None:
    any_board.commit()
    parts = [
        (one, part)
        for one in any_board.state.decoders
        for part in (
            one.range,
            MemoryRange.of_size(one.range.start + 0x1000, 0x1000),
            MemoryRange.of_size(one.range.end + 1 - 0x3000, 0x2000),
        )
    ]
    for number, (_, part) in enumerate(parts):
        any_board.qtest.write64(part.start, number + 1)
    before = [dict(one.memory) for one in any_board.fake.functions()]
    any_board.fake.commands.clear()
    assert unanswered(any_board.qtest, parts) == ("",) * len(parts)
    after = [one.memory for one in any_board.fake.functions()]
    for values, kept in zip(after, before, strict=True):
        assert {at: value for at, value in values.items() if value} == kept
    touched = {int(line.split()[1], 0) for line in any_board.fake.commands}
    assert all(any(part.start <= at <= part.end for _, part in parts) for at in touched)


def test_the_parts_that_do_not_answer_are_told_from_the_others() -> None:
    several = [decoder("mem0", size="256M", offset=n * GIB // 2) for n in range(4)]
    with board(ONE, *several) as one:
        one.commit()
        _uncommit(one, "mem0", 2)
        parts = [(placed, placed.range) for placed in one.state.decoders]
        wrong = unanswered(one.qtest, parts)
        assert [bool(text) for text in wrong] == [False, False, True, False]
        start = one.state.decoders[2].range.start
        assert f" to {start:#x} and read 0xffffffffffffffff" in wrong[2]


def test_many_parts_can_be_looked_at_together() -> None:
    with board(ONE, decoder("mem0")) as one:
        one.commit()
        (placed,) = one.state.decoders
        start = placed.range.start
        parts = [(placed, MemoryRange.of_size(start + n * GIB // 32, 1 << 21)) for n in range(32)]
        assert unanswered(one.qtest, parts) == ("",) * 32


def test_nothing_is_touched_for_no_decoder() -> None:
    with board(ONE) as one:
        one.commit()
        one.prove()
        assert one.check() == ()
        assert one.fake.commands == []


def _refuse_endpoint(one: Board) -> None:
    one.fake.registers("mem0").commits = False


def _refuse_bridge(one: Board) -> None:
    one.fake.registers("hb0").commits = False


def _no_device(one: Board) -> None:
    del one.fake.function("rp0").below[0]


def _no_port(one: Board) -> None:
    one.fake.function("rp0").config[0x54] = 0x0700_0000


def _capabilities_in_a_circle(one: Board) -> None:
    one.fake.function("rp0").config |= {0x40: 0x0000_4805, 0x48: 0x0000_4001}


def _no_capabilities(one: Board) -> None:
    one.fake.registers("mem0").header = 0


def _no_hdm(one: Board) -> None:
    one.fake.registers("mem0").capabilities = (0x1000_0002, 0x2000_0004, 0x2400_0006)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_refuse_endpoint, "decoder 0 of mem0 did not commit 110000000-18fffffff"),
        (_refuse_bridge, "decoder 0 of hb0 did not commit 110000000-18fffffff"),
        (_no_device, "endpoint mem0 at the expected place: no PCI device on its bus 0x36"),
        (_no_port, "endpoint mem0 at the expected place: no port number 0 on bus 0x35"),
        (_capabilities_in_a_circle, "endpoint mem0 at the expected place: no port number 0"),
        (_no_capabilities, "no CXL capability header at 0xe0001000"),
        (_no_hdm, "endpoint mem0 at the expected place: no HDM decoder capability"),
    ],
)
def test_a_machine_that_is_not_as_expected_is_told(
    damage: Callable[[Board], None], says: str
) -> None:
    with board(ONE, decoder("mem0")) as one:
        damage(one)
        with pytest.raises(MachineLostError) as caught:
            one.commit()
        assert says in caught.value.message


def _uncommit(one: Board, name: str, index: int = 0) -> None:
    one.fake.registers(name).values[HDM + 0x10 + 0x20 * index + 0x10] &= ~COMMITTED


def _disable(one: Board, name: str) -> None:
    one.fake.registers(name).values[HDM + 4] = 0


def _forget(one: Board, name: str) -> None:
    one.fake.function(name).broken = True


def _other_granularity(one: Board, name: str) -> None:
    one.fake.registers(name).values[HDM + 0x10 + 0x10] ^= 3


def _same_target_twice(one: Board, name: str) -> None:
    one.fake.registers(name).values[HDM + 0x10 + 0x14] = 0


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        *((_uncommit, name) for name in ("mem0", "hb1")),
        *((_disable, name) for name in ("mem2", "hb0")),
        *((_forget, name) for name in ("mem0", "mem1", "mem2", "mem3")),
        (_other_granularity, "hb0"),
        (_same_target_twice, "hb1"),
    ],
)
def test_a_path_that_does_not_lead_to_its_memory_is_told(
    damage: Callable[[Board, str], None], name: str
) -> None:
    with board(TWO_BY_TWO, decoder("mem0", "mem2", "mem1", "mem3", name="all")) as one:
        one.commit()
        damage(one, name)
        with pytest.raises(MachineLostError, match="decoder all does not reach its memory"):
            one.prove()


def test_an_endpoint_with_another_granularity_is_told() -> None:
    with board(TWO_BY_TWO, decoder("mem0", "mem2", "mem1", "mem3")) as one:
        one.commit()
        _other_granularity(one, "mem0")
        with pytest.raises(MachineLostError, match="does not reach its memory"):
            one.prove()


class Mirrored(dict[int, int]):
    """Memory in which the upper half of 2 GiB is the lower half once more."""

    def __setitem__(self, at: int, value: int) -> None:
        super().__setitem__(at % GIB, value)

    def get(self, at: int, default: Any = None) -> Any:
        return super().get(at % GIB, default)


def test_two_decoders_that_lead_to_the_same_memory_are_told() -> None:
    halves = [decoder("mem0", size="1G"), decoder("mem0", size="1G", offset=GIB, name="upper")]
    with board(ONE, *halves) as one:
        one.commit()
        one.prove()
        one.fake.function("mem0").memory = Mirrored()
        with pytest.raises(MachineLostError, match="does not reach its memory"):
            one.prove()


def test_decoders_that_survived_the_boot_are_no_problem(any_board: Board) -> None:
    any_board.commit()
    any_board.fake.boot()
    before = any_board.fake.config_spaces()
    any_board.fake.commands.clear()
    assert any_board.check() == ()
    # The guest runs meanwhile: only reads, and none by the ports that it uses itself.
    assert {line.split()[0] for line in any_board.fake.commands} == {"readl"}
    assert any_board.fake.config_spaces() == before


def test_decoders_are_committed_again_where_firmware_has_been(any_board: Board) -> None:
    any_board.commit()
    any_board.fake.boot()
    before = any_board.fake.config_spaces()
    committed = _all_registers(any_board)
    for registers in any_board.fake.bridge_registers.values():
        registers.values.clear()
    for one in any_board.fake.functions():
        if one.registers:
            one.registers.values.clear()
    commit_again(any_board.qtest, any_board.layout, any_board.settings)
    assert _all_registers(any_board) == committed
    assert any_board.fake.config_spaces() == before
    assert any_board.check() == ()
    any_board.prove()


@pytest.mark.parametrize("name", ["hb0", "rp1", "mem0", "mem3"])
def test_a_decoder_that_did_not_survive_the_boot_is_a_problem(name: str) -> None:
    with board(SWITCHED, decoder("mem0", size="1G"), decoder("mem3", offset=GIB)) as one:
        one.commit()
        one.fake.boot()
        _uncommit(one, name)
        (problem,) = one.check()
        assert problem.startswith(f"decoder 0 of {name} is no longer committed over ")


def test_a_decoder_over_another_range_is_a_problem() -> None:
    with board(ONE, decoder("mem0")) as one:
        one.commit()
        one.fake.boot()
        one.fake.registers("mem0").values[HDM + 0x10 + 0x08] = 0x4000_0000
        assert len(one.check()) == 1


def test_a_device_that_is_gone_after_the_boot_is_a_problem() -> None:
    with board(ONE, decoder("mem0")) as one:
        one.commit()
        one.fake.boot()
        _no_device(one)
        assert len(one.check()) == 1


def test_a_machine_without_memory_mapped_configuration_space_is_a_problem() -> None:
    with board(ONE, decoder("mem0")) as one:
        one.commit()
        assert one.check() == ("no PCI configuration space at 0xb0000000",)


def _all_registers(one: Board) -> list[dict[int, int]]:
    blocks: list[Registers] = [
        *one.fake.bridge_registers.values(),
        *(function.registers for function in one.fake.functions() if function.registers),
    ]
    return [dict(block.values) for block in blocks]


def _case(name: str) -> tuple[Any, ...]:
    profile, decoders = CASES[name]
    return (profile, *decoders)


def _with_registers(one: Board) -> set[str]:
    return {
        function.name.removesuffix(" upstream")
        for function in one.fake.functions()
        if function.registers
    }
