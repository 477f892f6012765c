# SPDX-License-Identifier: GPL-2.0-or-later
"""Steps after boot against a shell that answers from a list."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from fake_guest import FakeShell, answers

from harness.contract.observation import CxlRegion
from harness.contract.result import Finding
from harness.core.errors import GuestLostError, MomentMissedError
from harness.guest.post_boot import (
    Command,
    read_module_holders,
    read_region_makeup,
    run_commands,
    run_while_pending,
)

BUSY = "sh: write error: Device or resource busy"
LOAD = Command("load kmem", "modprobe kmem")
BIND = Command("bind it", "echo x > bind")
REFUSED = Command("bind it, which must fail with EBUSY", "echo x > bind", "EBUSY")


def shell(*listed: tuple[int, str]) -> FakeShell:
    return FakeShell(answers(*listed))


def problem(command: Command, status: int, output: str) -> str | None:
    failure = run_commands(shell((status, output)).shell, [command]).problem
    return failure.text if failure else None


def test_every_command_marks_itself_in_the_log_and_has_a_deadline_of_its_own() -> None:
    fake = shell((0, "loaded\n"), (0, ""))
    done = run_commands(fake.shell, [LOAD, BIND])
    assert done.problem is None
    assert fake.commands == [
        "echo '<6>harness: load kmem [secret]' > /dev/kmsg; modprobe kmem",
        "echo '<6>harness: bind it [secret]' > /dev/kmsg; echo x > bind",
    ]
    assert fake.deadlines == ["'load kmem' to end in the guest", "'bind it' to end in the guest"]
    assert done.transcript == "$ modprobe kmem\nloaded\nstatus 0\n$ echo x > bind\nstatus 0\n"


def test_nothing_is_done_after_a_command_that_went_wrong() -> None:
    fake = shell((1, "no\nsuch module"), (0, ""))
    assert run_commands(fake.shell, [LOAD, BIND]).problem == Finding(
        "step",
        "load kmem ended with status 1: no such module",
        kind="command_failed",
        subject="load kmem: no such module",
    )
    assert len(fake.commands) == 1


def test_a_command_that_must_fail_fails_with_this_error_and_no_other() -> None:
    assert problem(REFUSED, 1, BUSY) is None
    assert problem(REFUSED, 0, "") == "bind it, which must fail with EBUSY: it succeeded"
    other = problem(REFUSED, 1, "sh: write error: No such device")
    assert (
        other is not None and "it failed with another error, status 1: sh: write error: No" in other
    )
    # What is printed does not make a failure of a success.
    assert problem(REFUSED, 0, BUSY) is not None


def held(*statuses: tuple[int, str], end: str = "held") -> FakeShell:
    """A guest whose `while_pending` prints these."""

    def answer(command: str) -> tuple[int, str]:
        token = shlex.split(command)[1]
        body = "".join(f"{output}\n{token} {status}\n" for status, output in statuses)
        return 0, f"{body}{token} {end}\n"

    return FakeShell(answer)


def test_commands_are_handed_over_in_one_go_while_work_is_held_up() -> None:
    fake = held((0, ""), (1, BUSY))
    done = run_while_pending(fake.shell, [BIND, REFUSED])
    assert done.problem is None
    assert done.transcript == (f"$ echo x > bind\nstatus 0\n$ echo x > bind\n{BUSY}\nstatus 1\n")
    (command,) = fake.commands
    name, token, *lines = shlex.split(command)
    assert (name, len(token)) == ("while_pending", 32)
    assert lines == [
        "echo '<6>harness: bind it [secret]' > /dev/kmsg; echo x > bind",
        "echo '<6>harness: bind it, which must fail with EBUSY [secret]' > /dev/kmsg; "
        "echo x > bind",
    ]


def test_what_was_to_be_refused_while_pending_and_was_not_is_a_problem() -> None:
    done = run_while_pending(held((0, ""), (0, "")).shell, [BIND, REFUSED])
    assert done.problem is not None
    assert done.problem.text == "bind it, which must fail with EBUSY: it succeeded"


def test_nothing_is_said_of_a_kernel_whose_work_had_run() -> None:
    with pytest.raises(MomentMissedError, match="was not pending during the steps"):
        run_while_pending(held((0, ""), (0, ""), end="not held").shell, [BIND, REFUSED])


def test_a_refusal_counts_whatever_ran_beside_it() -> None:
    fake = held((0, ""), (1, BUSY), end="not held")
    assert run_while_pending(fake.shell, [BIND, REFUSED]).problem is None


@pytest.mark.parametrize("output", ["", "sh: while_pending: not found\n", BUSY])
def test_a_guest_that_cannot_hold_up_work_is_no_verdict(output: str) -> None:
    with pytest.raises(GuestLostError, match="could not hold up"):
        run_while_pending(shell((1, output)).shell, [BIND])


def test_a_guest_that_stops_half_way_is_no_verdict() -> None:
    with pytest.raises(GuestLostError, match="could not hold up"):
        run_while_pending(held((0, "")).shell, [BIND, REFUSED])


def test_module_holders_and_regions_are_asked_of_the_guest() -> None:
    fake = shell((0, "dax_hmem 1 1 dax_cxl, Live 0x0\n"))
    assert read_module_holders(fake.shell) == {"dax_hmem": ("dax_cxl",)}
    with pytest.raises(GuestLostError, match="not a line of /proc/modules"):
        read_module_holders(shell((1, "cat: no such file")).shell)
    with pytest.raises(GuestLostError, match="not a listed region"):
        read_region_makeup(shell((1, "cxl: no")).shell, region("cxl_region"))


def test_the_cxl_program_is_not_asked_for_a_region_that_is_not_assembled() -> None:
    assert read_region_makeup(shell().shell, region(None)) is None


def region(driver: str | None) -> CxlRegion:
    return CxlRegion("region0", None, False, 1, driver)


def test_the_guests_script_says_what_the_harness_looks_for() -> None:
    root = Path(__file__).parents[3] / "harness" / "guest"
    script = (root / "while_pending.sh").read_text()
    assert re.findall(r'echo "\$token ([^"]+)"', script) == ["$?", "held", "not held"]
