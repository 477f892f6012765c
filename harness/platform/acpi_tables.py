# SPDX-License-Identifier: GPL-2.0-or-later
"""ACPI tables: read QEMU's CEDT and SRAT, and write tables that override them.

Sources: ACPI 6.5, 5.2.6 (header) and 5.2.16 (SRAT); CXL 3.1, 9.18.1 (CEDT).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.platform.memory_range import MemoryRange

_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_MEMORY_AFFINITY = struct.Struct("<BBIHQQIIQ")
# The SRAT's entries for a CPU: type, then length and offset of the flags.
_APIC = 0
_X2APIC = 2
_CPU_AFFINITY = {_APIC: (16, 4), _X2APIC: (24, 12)}
_ENABLED = 1
_HOT_PLUGGABLE = 2
# Window restrictions: type 2 and 3, volatile and persistent, as in QEMU's own CEDT.
_ANY_MEMORY = 0xF


class AcpiTableError(ValueError):
    """The bytes are not a valid table."""


@dataclass(frozen=True)
class HostBridgeBlock:
    """A CHBS: the component registers of the host bridge with this `_UID`, QEMU's bus number."""

    uid: int
    registers: MemoryRange


@dataclass(frozen=True)
class FixedWindow:
    """A CFMWS: one CXL window, with the `_UID`s of its host bridges in interleave order."""

    range: MemoryRange
    targets: tuple[int, ...]
    granularity: int


@dataclass(frozen=True)
class MemoryAffinity:
    """An enabled memory entry of the SRAT; one with `hotplug` has no RAM at boot."""

    range: MemoryRange
    node: int
    hotplug: bool


def split_tables(blob: bytes) -> dict[str, bytes]:
    """Split QEMU's `etc/acpi/tables` by signature; of several tables with one, return the first.

    Raises:
        AcpiTableError: a table's length does not fit.
    """
    tables: dict[str, bytes] = {}
    at = 0
    while at + _HEADER.size <= len(blob):
        if blob[at] == 0:
            at += 1  # padding between and after the tables
            continue
        signature, length = struct.unpack_from("<4sI", blob, at)
        if signature == b"FACS":
            at += max(length, 64)
            continue
        if length < _HEADER.size or at + length > len(blob):
            raise AcpiTableError(f"table {signature!r} at {at:#x} has length {length}")
        tables.setdefault(signature.decode("ascii", "replace"), blob[at : at + length])
        at += length
    return tables


def parse_cedt(table: bytes) -> tuple[tuple[HostBridgeBlock, ...], tuple[FixedWindow, ...]]:
    """Parse host bridge register blocks and windows, in table order.

    Raises:
        AcpiTableError: the table is malformed.
    """
    bridges: list[HostBridgeBlock] = []
    windows: list[FixedWindow] = []
    for kind, body in _structures(table, "CEDT", "<BxH"):
        if kind in (0, 1) and len(body) < (32, 40)[kind]:
            raise AcpiTableError(f"a structure of the CEDT has length {len(body)}")
        if kind == 0:
            uid, _version, base, length = struct.unpack_from("<4xII4xQQ", body)
            bridges.append(HostBridgeBlock(uid, _range(base, length, "CHBS")))
        elif kind == 1:
            base, size, ways, arithmetic, grain = struct.unpack_from("<8xQQBB2xI", body)
            count = interleave_ways(ways)
            if arithmetic > 1 or grain > 6 or len(body) < 36 + 4 * count:
                raise AcpiTableError("a CFMWS of the CEDT is cut short or has reserved values")
            targets = struct.unpack_from(f"<{count}I", body, 36)
            windows.append(FixedWindow(_range(base, size, "CFMWS"), targets, 256 << grain))
    return tuple(bridges), tuple(windows)


def interleave_ways(encoded: int) -> int:
    """Return the number of ways of an encoded interleave-ways field (CXL 3.1, table 9-22).

    Raises:
        AcpiTableError: a reserved encoding.
    """
    if 0 <= encoded <= 4:
        return int(1 << encoded)
    if 8 <= encoded <= 10:
        return int(3 << (encoded - 8))
    raise AcpiTableError(f"interleave ways encoded as {encoded:#x}")


def encode_ways(ways: int) -> int:
    """Return the encoding of a number of ways: 1, 2, 4, 8, 16, 3, 6 or 12.

    Raises:
        ValueError: any other number.
    """
    for encoded in (0, 1, 2, 3, 4, 8, 9, 10):
        if interleave_ways(encoded) == ways:
            return encoded
    raise ValueError(f"{ways} ways")


def parse_srat(table: bytes) -> tuple[MemoryAffinity, ...]:
    """Parse the enabled memory entries, in table order.

    Raises:
        AcpiTableError: the table is malformed.
    """
    found: list[MemoryAffinity] = []
    for kind, body in _structures(table, "SRAT", "<BB", skip=12):
        if kind != 1:
            continue
        if len(body) != _MEMORY_AFFINITY.size:
            raise AcpiTableError("a memory entry of the SRAT has the wrong length")
        _kind, _length, node, _r, base, length, _r2, flags, _r3 = _MEMORY_AFFINITY.unpack(body)
        if flags & _ENABLED and length:
            found.append(
                MemoryAffinity(_range(base, length, "SRAT"), node, bool(flags & _HOT_PLUGGABLE))
            )
    return tuple(found)


def parse_cpu_domains(table: bytes) -> tuple[int, ...]:
    """Parse the proximity domains of the enabled CPUs, in table order.

    Raises:
        AcpiTableError: the table is malformed.
    """
    found: list[int] = []
    for kind, body in _structures(table, "SRAT", "<BB", skip=12):
        if kind not in _CPU_AFFINITY:
            continue
        size, flags_at = _CPU_AFFINITY[kind]
        if len(body) != size:
            raise AcpiTableError("a CPU's entry of the SRAT has the wrong length")
        (flags,) = struct.unpack_from("<I", body, flags_at)
        if flags & _ENABLED:
            domain = struct.unpack_from("<I", body, 4)[0] if kind == _X2APIC else body[2]
            # Before revision 2 the upper three bytes are reserved.
            if kind == _APIC and table[8] >= 2:
                domain |= int.from_bytes(body[9:12], "little") << 8
            found.append(domain)
    return tuple(found)


def override_srat(table: bytes, added: Iterable[MemoryAffinity]) -> bytes:
    """Add entries to an SRAT, and make Linux use it in place of the firmware's.

    Linux replaces a table by one from the initramfs only if its OEM revision is higher and its
    checksum is correct (drivers/acpi/tables.c).
    """
    entries = b"".join(
        _MEMORY_AFFINITY.pack(
            1,
            _MEMORY_AFFINITY.size,
            entry.node,
            0,
            entry.range.start,
            entry.range.size,
            0,
            _ENABLED | (_HOT_PLUGGABLE if entry.hotplug else 0),
            0,
        )
        for entry in added
    )
    return _sealed(table, table[_HEADER.size :] + entries)


def replace_cedt(
    table: bytes, bridges: Sequence[HostBridgeBlock], windows: Sequence[FixedWindow]
) -> bytes:
    """Make a CEDT with only these host bridges and windows, which overrides the firmware's."""
    uids = {bridge.uid for bridge in bridges}
    kept = b"".join(
        body
        for kind, body in _structures(table, "CEDT", "<BxH")
        if kind == 0 and int.from_bytes(body[4:8].ljust(4, b"\0"), "little") in uids
    )
    parse_cedt(table)
    for window in windows:
        targets = struct.pack(f"<{len(window.targets)}I", *window.targets)
        kept += struct.pack(
            "<BxHIQQBBHIHH",
            1,
            36 + len(targets),
            0,
            window.range.start,
            window.range.size,
            encode_ways(len(window.targets)),
            0,
            0,
            window.granularity.bit_length() - 9,
            _ANY_MEMORY,
            0,
        )
        kept += targets
    return _sealed(table, kept)


def _sealed(table: bytes, body: bytes) -> bytes:
    fields = list(_HEADER.unpack_from(table))
    fields[1] = _HEADER.size + len(body)
    fields[3] = 0
    if fields[6] == 0xFFFF_FFFF:
        raise AcpiTableError("the table has the highest OEM revision: nothing can replace it")
    fields[6] += 1
    whole = _HEADER.pack(*fields) + body
    return whole[:9] + bytes([-sum(whole) & 0xFF]) + whole[10:]


def _structures(
    table: bytes, signature: str, head: str, skip: int = 0
) -> Iterator[tuple[int, bytes]]:
    if len(table) < _HEADER.size + skip or table[:4] != signature.encode():
        raise AcpiTableError(f"not a {signature}")
    (length,) = struct.unpack_from("<I", table, 4)
    if not _HEADER.size + skip <= length <= len(table):
        raise AcpiTableError(f"the {signature} is cut short")
    at = _HEADER.size + skip
    while at < length:
        if at + struct.calcsize(head) > length:
            raise AcpiTableError(f"the {signature} is cut short")
        kind, size = struct.unpack_from(head, table, at)
        if size < struct.calcsize(head) or at + size > length:
            raise AcpiTableError(f"a structure of the {signature} has length {size}")
        yield kind, table[at : at + size]
        at += size


def _range(base: int, length: int, what: str) -> MemoryRange:
    if length == 0 or base + length > 1 << 64:
        raise AcpiTableError(f"a {what} covers {length:#x} bytes from {base:#x}")
    return MemoryRange.of_size(base, length)
