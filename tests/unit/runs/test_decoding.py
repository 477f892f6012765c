# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that a driver owns is proved to answer before each verdict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fake_pci import COMMITTED, HDM
from fake_qemu import FakeQemu, qtest_of
from layouts import layout_of
from machines import (
    HMEM,
    bridge,
    by_cxl,
    by_hmem,
    machine,
    observed,
    port,
    scenario_of,
    window,
)

from harness.contract.expected import Expected
from harness.contract.judge import judge
from harness.contract.observation import DaxDevice, Observation
from harness.contract.result import RULES
from harness.core.errors import GuestCrashedError, MachineLostError
from harness.machine.firmware import commit_decoders
from harness.machine.qtest import Qtest
from harness.platform.firmware_state import place_firmware
from harness.platform.hdm_decoders import plan_decoders
from harness.platform.memory_range import GIB
from harness.runs.guest_run import RunningGuest
from harness.scenario.checks import check_scenario

PROFILE = machine(
    [bridge("hb0", 0x35, port("rp0", "mem0"), port("rp1", "mem1"))], [window("hb0", size=4 * GIB)]
)
LOWER, UPPER = "110000000-14fffffff", "150000000-18fffffff"
BOTH = "110000000-18fffffff"


@dataclass
class Guest:
    """A guest in a fake QEMU that notes when it is stopped."""

    fake: FakeQemu
    qtest: Qtest
    prepared: SimpleNamespace
    running: bool = True
    stops: int = 0
    lost: MachineLostError | None = None
    crashed: GuestCrashedError | None = None
    touched_while_running: list[str] = field(default_factory=list)

    @property
    def machine(self) -> Guest:
        return self

    def command(self, name: str) -> None:
        if self.lost:
            raise self.lost
        if self.running:
            self.touched_while_running += self.fake.commands
        self.fake.commands.clear()
        self.running = {"stop": False, "cont": True}[name]
        self.stops += name == "stop"

    def telling_its_end(self) -> AbstractContextManager[None]:
        return nullcontext()

    def check(self) -> None:
        if self.crashed:
            raise self.crashed

    def look(self, *devices: DaxDevice, iomem: str = f"{BOTH} : CXL Window 0") -> Observation:
        seen = observed(iomem, *devices, drivers=())
        run = SimpleNamespace(prepared=self.prepared)
        running = RunningGuest(cast(Any, run), cast(Any, self), cast(Any, None), cast(Any, None))
        return running._with_undecoded(seen)

    def reset(self, name: str) -> None:
        self.fake.registers(name).values[HDM + 0x10 + 0x10] &= ~COMMITTED


@pytest.fixture
def guest() -> Iterator[Guest]:
    decoders: list[dict[str, Any]] = [
        {"window": 0, "size": "1G", "devices": ["mem0"]},
        {"window": 0, "offset": "1G", "size": "1G", "devices": ["mem1"]},
    ]
    document = scenario_of({"decoders": decoders})
    check_scenario(document, PROFILE)
    layout = layout_of(PROFILE)
    state = place_firmware(document, PROFILE, layout)
    settings = plan_decoders(PROFILE, state)
    prepared = SimpleNamespace(state=state, layout=layout, settings=settings)
    fake = FakeQemu(PROFILE, layout)
    with qtest_of(fake) as qtest:
        commit_decoders(qtest, layout, settings)
        fake.boot()
        fake.commands.clear()
        yield Guest(fake, qtest, prepared)


def test_memory_that_answers_is_no_finding_and_the_guest_goes_on(guest: Guest) -> None:
    assert guest.look(by_cxl("dax0.0", LOWER), by_hmem("dax1.0", UPPER)).undecoded == ()
    assert (guest.running, guest.stops, guest.touched_while_running) == (True, 1, [])


@pytest.mark.parametrize("driver", ["kmem", "device_dax", None])
def test_a_decoder_that_was_reset_under_an_owner_is_named_with_the_range(
    guest: Guest, driver: str | None
) -> None:
    guest.reset("mem1")
    seen = guest.look(by_hmem("dax1.0", BOTH, driver=driver))
    (found,) = seen.undecoded
    assert str(found.range) == UPPER
    assert "memory of dax_hmem (" in found.text
    assert f": decoder 0 of mem1 is no longer committed over {UPPER}; wrote 0x" in found.text
    assert guest.running
    judgement = judge(seen, guest.prepared.state, Expected({"decoder0": HMEM}))
    (finding,) = [one for one in judgement.findings if one.rule == "decode"]
    assert (finding.range, finding.text) == (found.range, found.text)
    assert "decode" in RULES


def test_memory_without_an_owner_need_not_answer(guest: Guest) -> None:
    guest.reset("mem1")
    assert guest.look(by_cxl("dax0.0", LOWER)).undecoded == ()
    assert guest.look().undecoded == ()
    assert guest.stops == 1


def test_memory_that_the_firmware_gave_as_ram_must_answer_too(guest: Guest) -> None:
    ram = f"{BOTH} : System RAM"
    assert guest.look(iomem=ram).undecoded == ()
    guest.reset("mem1")
    (part,) = guest.look(iomem=ram).undecoded
    assert str(part.range) == UPPER
    assert part.text.startswith("memory of firmware_ram (iomem: System RAM) is not decoded: ")


def test_a_decoder_that_was_moved_and_answers_is_fine(guest: Guest) -> None:
    registers = guest.fake.registers("mem1").values
    first, second = HDM + 0x10, HDM + 0x30
    for offset in range(0, 0x20, 4):
        registers[second + offset] = registers.pop(first + offset, 0)
    assert guest.look(by_hmem("dax1.0", UPPER)).undecoded == ()


def test_a_guest_that_has_crashed_meanwhile_is_told_as_that(guest: Guest) -> None:
    guest.lost = MachineLostError("QEMU is gone", hint="h")
    with pytest.raises(MachineLostError):
        guest.look(by_cxl("dax0.0", LOWER))
    guest.crashed = GuestCrashedError("a panic", hint="h")
    with pytest.raises(GuestCrashedError):
        guest.look(by_cxl("dax0.0", LOWER))
