# SPDX-License-Identifier: GPL-2.0-or-later
"""Access QEMU's ports, registers and memory by the qtest protocol.

Source: QEMU, system/qtest.c. Commands are lines of text; every reply starts with OK, FAIL or ERR.
"""

from __future__ import annotations

import socket
import struct

from harness.core.deadline import Deadline
from harness.core.errors import MachineLostError

_CONFIG_ADDRESS = 0xCF8
_CONFIG_DATA = 0xCFC
_BULK = 0x8000
# Commands without a reply so far: few enough that neither side fills the other's socket.
_PENDING = 512


class Qtest:
    """A connected qtest session.

    Args:
        connection: the harness's end.
        seconds: how long a reply may take.
    """

    def __init__(self, connection: socket.socket, seconds: float = 10.0) -> None:
        self._socket = connection
        self._seconds = seconds
        self._buffer = b""

    def command(self, line: str) -> list[str]:
        """Send one command and return the fields after OK.

        Raises:
            MachineLostError: QEMU refused the command, closed the connection or did not respond.
        """
        return self._answered(line, line)

    def _answered(self, line: str, sent: str) -> list[str]:
        """Send text, possibly empty, and return the fields of the reply to `line`."""
        what = f"QEMU to answer the qtest command {line[:60]!r}"
        deadline = Deadline(self._seconds, what, hint="is the host overloaded or suspended?")
        try:
            self._socket.settimeout(deadline.check())
            if sent:
                self._socket.sendall(sent.encode() + b"\n")
            while b"\n" not in self._buffer:
                self._socket.settimeout(deadline.check())
                more = self._socket.recv(1 << 17)
                if not more:
                    raise MachineLostError(
                        f"QEMU closed the qtest connection at {line[:60]!r}",
                        hint="see the end of qemu.log in the evidence",
                    )
                self._buffer += more
        except TimeoutError:
            raise deadline.error() from None
        except OSError as error:
            raise MachineLostError(
                f"the qtest connection broke at {line[:60]!r}: {error.strerror}",
                hint="see the end of qemu.log in the evidence",
            ) from None
        answer, _, self._buffer = self._buffer.partition(b"\n")
        words = answer.decode("ascii", "replace").split()
        if not words or words[0] != "OK":
            raise MachineLostError(
                f"QEMU answered {answer[:80]!r} to the qtest command {line[:60]!r}",
                hint="is this QEMU version untested? see harness doctor",
            )
        return words[1:]

    def write16(self, address: int, value: int) -> None:
        """Write a 16-bit register of the physical address space."""
        self.command(f"writew {address:#x} {value:#x}")

    def read32(self, address: int) -> int:
        """Read a 32-bit register of the physical address space."""
        return int(self.command(f"readl {address:#x}")[0], 16)

    def write32(self, address: int, value: int) -> None:
        """Write a 32-bit register of the physical address space."""
        self.command(f"writel {address:#x} {value:#x}")

    def read64(self, address: int) -> int:
        """Read 64 bits of the physical address space."""
        return int(self.command(f"readq {address:#x}")[0], 16)

    def write64(self, address: int, value: int) -> None:
        """Write 64 bits of the physical address space."""
        self.command(f"writeq {address:#x} {value:#x}")

    def read_memory(self, address: int, size: int) -> bytes:
        """Read `size` bytes of guest memory."""
        parts = []
        for at in range(address, address + size, _BULK):
            count = min(_BULK, address + size - at)
            parts.append(bytes.fromhex(self.command(f"read {at:#x} {count:#x}")[0][2:]))
        return b"".join(parts)

    def read_registers(self, address: int, size: int) -> bytes:
        """Read `size` bytes of registers, 32 bits at a time.

        `read_memory` reads 64 bits where it can, and many registers then read as zero.
        """
        lines = [f"readl {at:#x}" for at in range(address, address + size, 4)]
        words = []
        for first in range(0, len(lines), _PENDING):
            batch = lines[first : first + _PENDING]
            sent = "\n".join(batch)
            for line in batch:
                words.append(int(self._answered(line, sent)[0], 16))
                sent = ""
        return struct.pack(f"<{len(words)}I", *words)

    def write_memory(self, address: int, data: bytes) -> None:
        """Write bytes to guest memory."""
        self.command(f"write {address:#x} {len(data):#x} 0x{data.hex()}")

    def write_port32(self, port: int, value: int) -> None:
        """Write 32 bits to an I/O port."""
        self.command(f"outl {port:#x} {value:#x}")

    def config_read(self, bus: int, slot: int, function: int, offset: int) -> int:
        """Read 32 bits of PCI configuration space (first 256 bytes)."""
        self.write_port32(_CONFIG_ADDRESS, _config_address(bus, slot, function, offset))
        return int(self.command(f"inl {_CONFIG_DATA:#x}")[0], 16)

    def config_write(self, bus: int, slot: int, function: int, offset: int, value: int) -> None:
        """Write 32 bits of PCI configuration space (first 256 bytes)."""
        self.write_port32(_CONFIG_ADDRESS, _config_address(bus, slot, function, offset))
        self.write_port32(_CONFIG_DATA, value)


def _config_address(bus: int, slot: int, function: int, offset: int) -> int:
    return 1 << 31 | bus << 16 | slot << 11 | function << 8 | offset & 0xFC
