# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO, FileIO
from typing import Any, cast

import pytest

from harness.core.deadline import Deadline
from harness.core.errors import DeadlineExpiredError, GuestLostError
from harness.machine.console import Console, console_pipe
from harness.machine.qemu import Qemu


@dataclass
class Line:
    """A console with the guest's end of it, and the lines that the watch was called with."""

    guest: FileIO
    console: Console
    watched: list[str] = field(default_factory=list)

    def wait_for(self, text: str) -> str:
        return self.console.await_line(lambda line: line == text, soon())

    def power_off(self) -> None:
        """Close the guest's end and wait until the console has read everything."""
        self.guest.close()
        with pytest.raises(GuestLostError):
            self.console.await_line(lambda line: False, soon())


def soon() -> Deadline:
    return Deadline(20.0, "the test's line")


@pytest.fixture
def line() -> Iterator[Line]:
    ours, theirs = console_pipe()
    watched: list[str] = []
    with os.fdopen(theirs, "wb", buffering=0) as guest:
        one = Line(guest, Console(ours, watched.append), watched)
        yield one
    one.console.close()


def test_lines_come_in_order_whatever_the_pieces(line: Line) -> None:
    for piece in (b"fir", b"st\nsec", b"ond\n", b"third\nfourth\n"):
        line.guest.write(piece)
    assert line.wait_for("fourth") == "fourth"
    assert line.watched == ["first", "second", "third", "fourth"]
    assert line.console.tail() == ("first", "second", "third", "fourth")


def test_a_line_is_waited_for_among_those_not_waited_through_yet(line: Line) -> None:
    line.guest.write(b"a\nfirst\nb\nsecond\n")
    assert line.wait_for("first") == "first"
    assert line.wait_for("second") == "second"
    with pytest.raises(DeadlineExpiredError):
        line.console.await_line(lambda text: text == "b", Deadline(0.05, "what is behind"))


def test_carriage_returns_and_terminal_escapes_are_no_part_of_a_line(line: Line) -> None:
    line.guest.write(b"\x1bc\x1b[?7l\x1b[2J\x1b[1;31mSeaBIOS\x1b[0m (version)\r\nbell\x07\tx\n")
    line.wait_for("bell\tx")
    assert line.watched == ["SeaBIOS (version)", "bell\tx"]


def test_bytes_that_are_no_text_are_replaced(line: Line) -> None:
    line.guest.write(b"caf\xc3\xa9 \xff\xfe\nend\n")
    line.wait_for("end")
    assert line.watched[0] == "caf\u00e9 \ufffd\ufffd"


def test_a_line_without_end_is_cut_and_does_not_grow(line: Line) -> None:
    for _ in range(64):
        line.guest.write(b"x" * 4096)
    line.guest.write(b"\nend\n")
    line.wait_for("end")
    assert max(map(len, line.watched)) == 4096
    assert line.watched[-1] == "end"


def test_only_the_last_lines_are_kept(line: Line) -> None:
    line.guest.write(b"".join(b"%d\n" % number for number in range(1000)))
    line.wait_for("999")
    assert line.console.tail() == tuple(map(str, range(600, 1000)))


def test_what_a_guest_says_last_is_read_without_a_newline_too(line: Line) -> None:
    line.guest.write(b"first\nlast words")
    line.power_off()
    assert line.watched == ["first", "last words"]


def test_a_closed_console_is_a_lost_guest_and_says_what_was_awaited(line: Line) -> None:
    line.guest.write(b"bye\n")
    line.guest.close()
    with pytest.raises(GuestLostError, match="closed while waiting for the test's line"):
        line.wait_for("never")
    assert line.console.closed


def test_what_was_said_before_the_end_is_still_found(line: Line) -> None:
    line.guest.write(b"ready\nbye\n")
    line.guest.close()
    assert line.wait_for("ready") == "ready"


def test_a_line_that_does_not_come_is_a_deadline(line: Line) -> None:
    line.guest.write(b"other\n")
    with pytest.raises(DeadlineExpiredError, match="waiting for the guest to speak"):
        line.console.await_line(lambda _: False, Deadline(0.05, "the guest to speak"))
    assert not line.console.closed


def test_a_deadline_holds_although_the_guest_never_stops_talking(line: Line) -> None:
    deadline = Deadline(0.05, "silence")

    def chatter(_: str) -> bool:
        line.guest.write(b"again\n")
        return False

    line.guest.write(b"again\n")
    with pytest.raises(DeadlineExpiredError):
        line.console.await_line(chatter, deadline)


def test_what_the_condition_raises_ends_the_wait(line: Line) -> None:
    def refuse(text: str) -> bool:
        raise GuestLostError(text, hint="none")

    line.guest.write(b"panic\n")
    with pytest.raises(GuestLostError, match="panic"):
        line.console.await_line(refuse, soon())


def test_a_console_that_is_not_read_for_a_while_loses_nothing() -> None:
    """QEMU writes byte by byte, and what finds no room is lost."""
    near, far = console_pipe()
    os.set_blocking(far, False)
    with os.fdopen(near, "rb"), os.fdopen(far, "wb", buffering=0) as guest:
        assert all(guest.write(b"x") == 1 for _ in range(60_000))


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_guest_that_prints_without_end_is_given_up(
    line: Line, monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    """QEMU writes what it prints to the disk: somebody must end that."""
    monkeypatch.setattr("harness.machine.console.MOST_BYTES", 1 << 20)
    line.guest.write(b"ready\n")
    line.console.check()
    for _ in range(20):
        line.guest.write((b"x" * 60_000) + end)
    with pytest.raises(GuestLostError, match="more than 1 MiB on its console"):
        line.wait_for("what never comes")
    with pytest.raises(GuestLostError):
        line.console.check()
    line.guest.write(b"ready\n")


def test_a_flood_is_seen_where_qemu_is_checked(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.machine.console.MOST_BYTES", 10)
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            machine = Qemu(process, cast(Any, None), cast(Any, None), line.console, BytesIO())
            machine.check_alive()
            line.guest.write(b"far too many words\n")
            line.wait_for("far too many words")
            with pytest.raises(GuestLostError, match="on its console"):
                machine.check_alive()
        finally:
            process.kill()
