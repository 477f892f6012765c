# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from fake_qemu import FakeQemu, qtest_of, served
from layouts import layout_of
from machines import one_window

from harness.core.errors import DeadlineExpiredError, MachineLostError
from harness.machine.fw_cfg import read_fw_cfg
from harness.machine.qtest import Qtest


class Script:
    """Answers commands from a list, and keeps what was asked."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, line: str) -> str:
        self.asked.append(line)
        return self.answers.pop(0) if self.answers else "OK"


@contextmanager
def scripted(*answers: str) -> Iterator[tuple[Qtest, Script]]:
    script = Script(*answers)
    with served(script) as connection:
        yield Qtest(connection), script


def test_an_answer_is_the_words_behind_ok() -> None:
    with scripted("OK", "OK 0x1 two") as (qtest, script):
        assert qtest.command("first") == []
        assert qtest.command("second one") == ["0x1", "two"]
        assert script.asked == ["first", "second one"]


@pytest.mark.parametrize("answer", ["FAIL Unknown command 'x'", "ERR", "", "IRQ raise 3", "OKAY"])
def test_any_other_answer_is_a_lost_machine(answer: str) -> None:
    with scripted(answer) as (qtest, _):
        with pytest.raises(MachineLostError, match="to the qtest command 'readl 0x0'") as caught:
            qtest.read32(0)
        assert answer in caught.value.message


@pytest.mark.parametrize(
    ("call", "sent"),
    [
        (lambda q: q.read32(0xE0001000), "readl 0xe0001000"),
        (lambda q: q.write32(0xE0001000, 0xF0), "writel 0xe0001000 0xf0"),
        (lambda q: q.write16(0xB350005A, 0x10), "writew 0xb350005a 0x10"),
        (lambda q: q.read64(0x110000000), "readq 0x110000000"),
        (lambda q: q.write64(0x110000000, 1 << 63), "writeq 0x110000000 0x8000000000000000"),
        (lambda q: q.write_memory(0x1000, b"\x00\xff"), "write 0x1000 0x2 0x00ff"),
        (lambda q: q.write_port32(0x514, 0), "outl 0x514 0x0"),
    ],
)
def test_commands_are_written_as_qemu_reads_them(
    call: Callable[[Qtest], object], sent: str
) -> None:
    with scripted("OK 0x0") as (qtest, script):
        call(qtest)
        assert script.asked == [sent]


def test_registers_are_read_as_numbers() -> None:
    with scripted("OK 0x00000000deadbeef", "OK 0x123456789abcdef0") as (qtest, _):
        assert qtest.read32(0) == 0xDEADBEEF
        assert qtest.read64(0) == 0x123456789ABCDEF0


def test_memory_is_read_in_pieces_that_fit_together() -> None:
    whole = bytes(range(256)) * 400

    def answer(line: str) -> str:
        _, at, size = line.split()
        return f"OK 0x{whole[int(at, 0) : int(at, 0) + int(size, 0)].hex()}"

    with served(answer) as connection:
        assert Qtest(connection).read_memory(5, 100_000) == whole[5:100_005]
        assert Qtest(connection).read_memory(7, 0) == b""


def test_registers_are_read_32_bits_at_a_time_many_on_the_way_at_once() -> None:
    asked = []

    def answer(line: str) -> str:
        asked.append(line)
        return f"OK {int(line.split()[1], 0):#018x}"

    with served(answer) as connection:
        qtest = Qtest(connection)
        data = qtest.read_registers(0x1000, 0x2000)
        assert data == struct.pack("<2048I", *range(0x1000, 0x3000, 4))
        assert asked == [f"readl {at:#x}" for at in range(0x1000, 0x3000, 4)]
        assert qtest.read32(0x44) == 0x44, "no answer is left over"


def test_a_register_that_cannot_be_read_is_told() -> None:
    answers = iter(("OK 0x1", "FAIL no"))
    with (
        served(lambda _line: next(answers)) as connection,
        pytest.raises(MachineLostError, match=r"'readl 0x1004'"),
    ):
        Qtest(connection).read_registers(0x1000, 8)


def test_configuration_space_is_reached_by_bus_slot_function_and_offset() -> None:
    with scripted("OK", "OK 0x11223344", "OK", "OK") as (qtest, script):
        assert qtest.config_read(0x35, 3, 2, 0x1A) == 0x11223344
        qtest.config_write(0xFF, 31, 7, 0xFC, 0x55)
        assert script.asked == [
            *("outl 0xcf8 0x80351a18", "inl 0xcfc"),
            *("outl 0xcf8 0x80fffffc", "outl 0xcfc 0x55"),
        ]


@contextmanager
def raw() -> Iterator[tuple[Qtest, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield Qtest(near, seconds=0.1), far


def test_an_answer_may_come_in_pieces_and_two_at_once() -> None:
    with raw() as (qtest, far):
        later = threading.Timer(0.02, far.sendall, [b" 0x1\nOK 0x2\n"])
        far.sendall(b"OK")
        later.start()
        assert qtest.command("a") == ["0x1"]
        assert qtest.command("b") == ["0x2"]
        later.join()


def test_a_machine_that_hangs_up_is_lost() -> None:
    with raw() as (qtest, far):
        far.close()
        with pytest.raises(MachineLostError, match="'readl 0x10'"):
            qtest.read32(0x10)


def test_a_machine_that_hangs_up_in_its_answer_is_lost() -> None:
    with raw() as (qtest, far):
        far.sendall(b"OK 0x")
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(MachineLostError, match="QEMU closed the qtest connection"):
            qtest.read32(0x10)


@pytest.mark.parametrize("half", [b"", b"OK 0x1"])
def test_a_machine_that_does_not_answer_is_a_deadline(half: bytes) -> None:
    with raw() as (qtest, far):
        far.sendall(half)
        with pytest.raises(DeadlineExpiredError, match="QEMU to answer the qtest command 'readl"):
            qtest.read32(0x10)


def fake(files: Sequence[tuple[str, bytes]]) -> FakeQemu:
    profile = one_window()
    return FakeQemu(profile, layout_of(profile), dict(files))


FILES = [
    ("bootorder", b"x"),
    ("etc/acpi/rsdp", b"not this one"),
    ("etc/acpi/tables", bytes(range(256)) * 600),
]


@pytest.mark.parametrize(("name", "content"), FILES)
def test_a_file_of_fw_cfg_is_read_whole(name: str, content: bytes) -> None:
    with qtest_of(fake(FILES)) as qtest:
        assert read_fw_cfg(qtest, name) == content


def test_a_file_that_is_not_there_is_told() -> None:
    with qtest_of(fake(FILES)) as qtest, pytest.raises(MachineLostError, match="no fw_cfg file et"):
        read_fw_cfg(qtest, "et")


def test_a_transfer_that_qemu_refuses_is_told() -> None:
    refusing = fake(FILES)
    refusing.dma_fails = True
    with qtest_of(refusing) as qtest, pytest.raises(MachineLostError, match="refused a fw_cfg"):
        read_fw_cfg(qtest, "bootorder")
