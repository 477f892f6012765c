# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import cast

import pytest
from machines import span

from harness.contract.dmesg import StepMarks
from harness.core.deadline import Deadline
from harness.core.errors import DeadlineExpiredError, GuestLostError
from harness.guest.settle import Settling, observe_settled, scan_for_leaks
from harness.guest.ssh import GuestCommand, GuestShell
from harness.platform.memory_range import MemoryRange

SR = span("110000000-18fffffff")
BEFORE = "110000000-18fffffff : CXL Window 0\n"
DURING = BEFORE + "  110000000-18fffffff : region0\n"
ONLINE = DURING + (
    "    110000000-18fffffff : dax0.0\n      110000000-18fffffff : System RAM (kmem)\n"
)
SETTLING = Settling(done=0.5, otherwise=5.0, limit=5.0)


class FakeGuest:
    """A guest with a clock of its own, which only commands and observations move.

    Args:
        answer: what the watching command prints when it is asked at a time.
        status: how commands end.
        cost: seconds that a command takes.
        observing: seconds that an observation takes; it sees what is so when it begins.
    """

    def __init__(
        self,
        answer: Callable[[float], str],
        status: int = 0,
        cost: float = 0.1,
        observing: float = 0.2,
    ) -> None:
        self.now = 0.0
        self.commands: list[str] = []
        self.asked: list[float] = []
        self.observed: list[float] = []
        self.marks = StepMarks("secret")
        self.step = ""
        self._answer = answer
        self._status = status
        self._cost = cost
        self._observing = observing

    def run(self, command: str, deadline: Deadline) -> GuestCommand:
        deadline.check()
        self.asked.append(self.now)
        self.commands.append(command)
        output = self._answer(self.now)
        self.now += self._cost
        return GuestCommand(command, self._status, output)

    begin = GuestShell.begin

    def observe(self) -> dict[str, str]:
        self.observed.append(self.now)
        seen = self._answer(self.now).partition("==\n")[0]
        self.now += self._observing
        return {"iomem": seen, "began": str(len(self.observed))}

    def settle(self, *wanted: MemoryRange, settling: Settling = SETTLING) -> dict[str, str]:
        shell = cast(GuestShell, self)
        return observe_settled(shell, wanted, settling, self.observe, lambda: self.now)


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def state(iomem: str, rest: str = "") -> str:
    return f"{iomem}==\n{rest}"


def changing_at(*changes: tuple[float, str]) -> Callable[[float], str]:
    """What is so from each time on."""

    def answer(at: float) -> str:
        return [text for since, text in changes if since <= at][-1]

    return answer


def test_memory_that_is_online_is_observed_at_once_and_watched_for_the_short_time() -> None:
    guest = FakeGuest(lambda _: state(ONLINE))
    sections = guest.settle(SR)
    assert sections == {"iomem": ONLINE, "began": "1"}
    assert guest.observed[0] < 0.5
    assert 0.5 <= guest.asked[-1] < 0.7


def test_memory_that_is_not_online_is_watched_for_the_long_time_before_it_is_observed() -> None:
    guest = FakeGuest(lambda _: state(DURING))
    assert guest.settle(SR)["iomem"] == DURING
    assert len(guest.observed) == 1
    assert 5.0 <= guest.observed[0] < 5.3


def test_where_nothing_should_go_online_the_long_time_counts() -> None:
    guest = FakeGuest(lambda _: state(ONLINE))
    guest.settle()
    assert 5.0 <= guest.observed[0] < 5.3


def test_all_that_should_go_online_is_waited_for() -> None:
    guest = FakeGuest(lambda _: state(ONLINE))
    guest.settle(SR, span("190000000-197ffffff"))
    assert guest.observed[0] >= 5.0


def test_every_change_of_iomem_starts_the_watching_again() -> None:
    guest = FakeGuest(changing_at((0, state(BEFORE)), (4.0, state(DURING)), (8.0, state(ONLINE))))
    assert guest.settle(SR)["iomem"] == ONLINE
    assert guest.observed[0] >= 8.0
    assert 8.5 <= guest.asked[-1] < 8.9


def test_an_observation_always_has_a_look_behind_it() -> None:
    for wanted in ((), (SR,)):
        guest = FakeGuest(lambda _: state(ONLINE), observing=9.0)
        guest.settle(*wanted)
        assert guest.asked[-1] > guest.observed[-1]


@pytest.mark.parametrize("what", ["dax/devices/dax0.0", "<6>[    5.0] a message"])
def test_an_observation_during_which_something_changed_is_made_again(what: str) -> None:
    guest = FakeGuest(changing_at((0, state(ONLINE)), (0.25, state(ONLINE, what))))
    assert guest.settle(SR)["began"] == "2"
    first, second = guest.observed
    assert first < 0.25 <= second
    assert guest.asked[-1] >= 0.25 + 0.5


def test_a_change_after_the_observation_and_in_the_short_time_counts_too() -> None:
    guest = FakeGuest(changing_at((0, state(ONLINE)), (0.45, state(ONLINE, "late"))))
    assert guest.settle(SR)["began"] == "2"


def test_an_observation_that_saw_another_iomem_is_made_again() -> None:
    # It changed and changed back between two looks.
    changes = ((0, state(ONLINE)), (0.15, state(DURING)), (0.35, state(ONLINE)))
    guest = FakeGuest(changing_at(*changes))
    assert guest.settle(SR)["iomem"] == ONLINE
    assert len(guest.observed) == 2


def test_only_the_time_that_is_certain_counts_when_the_guest_is_slow() -> None:
    # What a look of 2 s sees was so at some moment of those 2 s, not before and not after.
    guest = FakeGuest(lambda _: state(DURING), cost=2.0)
    guest.settle(SR, settling=Settling(done=3.0, otherwise=9.0, limit=5.0))
    assert guest.asked[:6] == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert guest.observed == [12.0]


def test_iomem_that_was_read_while_it_changed_is_read_again() -> None:
    torn = "110000000-18fffffff : CXL Window 0\n  190000000-19fffffff : region0\n"
    guest = FakeGuest(changing_at((0, state(torn)), (0.3, state(ONLINE))))
    assert guest.settle(SR)["iomem"] == ONLINE
    assert guest.observed[0] >= 0.3
    assert guest.asked[-1] >= 0.8


def test_everything_that_an_observation_rests_on_is_watched() -> None:
    # kmem inserts "System RAM (kmem)" before it has onlined the first block, which then shows only
    # in the total of RAM, and the kernel registers a device's mappings after kmem's probe.
    guest = FakeGuest(lambda _: state(ONLINE))
    guest.settle(SR)
    for part in ("/proc/iomem", "dax/devices", "mapping", "cxl/devices", "/proc/meminfo", "dmesg"):
        assert part in guest.commands[0], part


HOPELESS = Settling(done=0.01, otherwise=0.01, limit=0.05)


@pytest.mark.parametrize(
    "output",
    ["", "==\n", "\x00\ufffd", "no\n==\n", BEFORE[:-1], "x" * 9999, "00000000-00000000 : a\n==\n"],
)
def test_a_guest_that_never_shows_iomem_is_given_up_at_the_deadline(output: str) -> None:
    guest = FakeGuest(lambda _: output)
    with pytest.raises(DeadlineExpiredError, match="the owners of memory in the guest to stop"):
        guest.settle(SR, settling=HOPELESS)
    assert guest.observed == []


@pytest.mark.parametrize("wanted", [(), (SR,)])
def test_a_guest_that_never_stops_changing_is_given_up_at_the_deadline(
    wanted: tuple[MemoryRange, ...],
) -> None:
    counter = itertools.count()
    guest = FakeGuest(lambda _: state(ONLINE, str(next(counter))))
    with pytest.raises(DeadlineExpiredError, match="the owners of memory in the guest to stop"):
        guest.settle(*wanted, settling=HOPELESS)


def test_a_search_for_leaks() -> None:
    guest = FakeGuest(lambda _now: "unreferenced object 0xffff888003a1b2c0 (size 64):\n")
    assert scan_for_leaks(cast(GuestShell, guest)).startswith("unreferenced object")
    (command,) = guest.commands
    # The first scan reports nothing: it only remembers what each object contains.
    assert command.count("echo scan > kmemleak") == 2


def test_a_search_for_leaks_that_fails() -> None:
    guest = FakeGuest(lambda _now: "sh: can't create kmemleak: nonexistent\n", status=1)
    with pytest.raises(GuestLostError, match="memory for leaks: sh: can't create"):
        scan_for_leaks(cast(GuestShell, guest))


def test_a_slow_guest_is_given_time() -> None:
    slow = Settling(done=0.5, otherwise=2.0, limit=5.0).slower(10)
    assert slow == Settling(done=0.5, otherwise=20.0, limit=50.0)
