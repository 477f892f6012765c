# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from layouts import cedt_table, srat_table, table, window_structure
from machines import span

from harness.platform.acpi_tables import (
    AcpiTableError,
    FixedWindow,
    HostBridgeBlock,
    MemoryAffinity,
    encode_ways,
    interleave_ways,
    override_srat,
    parse_cedt,
    parse_cpu_domains,
    parse_srat,
    replace_cedt,
    split_tables,
)
from harness.platform.memory_range import MemoryRange

BRIDGES = (
    HostBridgeBlock(0x70, span("100000000-10000ffff")),
    HostBridgeBlock(0x35, span("100010000-10001ffff")),
)
WINDOWS = (
    FixedWindow(span("110000000-18fffffff"), (0x35,), 256),
    FixedWindow(span("190000000-20fffffff"), (0x35, 0x70), 8192),
)
MEMORY = (
    MemoryAffinity(span("0-9ffff"), 0, hotplug=False),
    MemoryAffinity(span("100000-3fffffff"), 0, hotplug=False),
    MemoryAffinity(span("200000000-5bfffffff"), 3, hotplug=True),
)
CEDT = cedt_table(BRIDGES, WINDOWS)
SRAT = srat_table(MEMORY)

ranges = st.builds(MemoryRange.of_size, st.integers(0, 1 << 40), st.integers(1, 1 << 40))
bridges = st.builds(HostBridgeBlock, st.integers(0, 0xFFFFFFFF), ranges)
windows = st.builds(
    FixedWindow,
    ranges,
    st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16]).flatmap(
        lambda ways: st.lists(st.integers(0, 255), min_size=ways, max_size=ways).map(tuple)
    ),
    st.sampled_from([256 << code for code in range(7)]),
)
memory = st.builds(MemoryAffinity, ranges, st.integers(0, 0xFFFFFFFF), st.booleans())


def header(blob: bytes) -> tuple[bytes, int, int, int]:
    """Signature, length, OEM revision and the sum of all bytes, which must be 0."""
    signature, length = struct.unpack_from("<4sI", blob)
    (revision,) = struct.unpack_from("<I", blob, 24)
    return signature, length, revision, sum(blob) & 0xFF


@given(st.lists(bridges, max_size=4), st.lists(windows, max_size=4))
def test_a_cedt_reads_back(blocks: list[HostBridgeBlock], fixed: list[FixedWindow]) -> None:
    assert parse_cedt(cedt_table(blocks, fixed)) == (tuple(blocks), tuple(fixed))


@given(st.lists(memory, max_size=6))
def test_an_srat_reads_back(entries: list[MemoryAffinity]) -> None:
    assert parse_srat(srat_table(entries)) == tuple(entries)


def test_entries_that_are_not_enabled_or_empty_do_not_count() -> None:
    off, empty = bytearray(SRAT), bytearray(SRAT)
    struct.pack_into("<I", off, 48 + 28, 0)
    struct.pack_into("<Q", empty, 48 + 16, 0)
    assert parse_srat(bytes(off)) == MEMORY[1:]
    assert parse_srat(bytes(empty)) == MEMORY[1:]


def test_structures_of_other_kinds_are_passed_over() -> None:
    processor = struct.pack("<BB14x", 0, 16)
    assert parse_srat(table("SRAT", bytes(12) + processor + SRAT[48:])) == MEMORY
    cxims = struct.pack("<BxH12x", 2, 16)
    assert parse_cedt(table("CEDT", cxims + CEDT[36:])) == (BRIDGES, WINDOWS)


def test_interleave_ways_have_their_encoding() -> None:
    for ways, code in (
        (1, 0),
        (2, 1),
        (4, 2),
        (8, 3),
        (16, 4),
        (3, 8),
        (6, 9),
        (12, 10),
    ):
        assert encode_ways(ways) == code
        assert interleave_ways(code) == ways


def test_a_range_may_end_with_the_last_address() -> None:
    last = MemoryAffinity(MemoryRange(0xFFFF_0000_0000_0000, (1 << 64) - 1), 0, hotplug=False)
    assert parse_srat(srat_table([last])) == (last,)


def test_other_ways_and_encodings_are_refused() -> None:
    for ways in (0, 5, 7, 9, 32):
        with pytest.raises(ValueError, match=f"{ways} ways"):
            encode_ways(ways)
    for code in (-1, 5, 6, 7, 11, 255):
        with pytest.raises(AcpiTableError, match="encoded as"):
            interleave_ways(code)


@given(st.lists(memory, max_size=4))
def test_an_srat_override_has_the_entries_added_at_its_end(added: list[MemoryAffinity]) -> None:
    new = override_srat(SRAT, added)
    assert parse_srat(new) == (*MEMORY, *added)
    assert new[36 : len(SRAT)] == SRAT[36:]
    # Linux takes it only with a right checksum and a higher OEM revision.
    assert header(new) == (b"SRAT", len(new), 2, 0)
    assert new[10:24] == SRAT[10:24]


@given(st.lists(windows, max_size=4))
def test_a_replaced_cedt_has_only_the_bridges_and_windows_given(fixed: list[FixedWindow]) -> None:
    new = replace_cedt(CEDT, BRIDGES[1:], fixed)
    assert parse_cedt(new) == (BRIDGES[1:], tuple(fixed))
    assert new[36:] == cedt_table(BRIDGES[1:], fixed)[36:]
    assert header(new) == (b"CEDT", len(new), 2, 0)


def test_the_highest_oem_revision_cannot_be_overridden() -> None:
    highest = table("SRAT", SRAT[36:], revision=0xFFFFFFFF)
    with pytest.raises(AcpiTableError):
        override_srat(highest, MEMORY)


def test_qemus_tables_are_split_by_signature() -> None:
    facs = struct.pack("<4sI56x", b"FACS", 64)
    blob = facs + bytes(5) + CEDT + bytes(3) + SRAT + table("CEDT", b"later") + bytes(4096)
    assert split_tables(blob) == {"CEDT": CEDT, "SRAT": SRAT}


def test_a_table_whose_length_does_not_fit_is_refused() -> None:
    for length in (
        0,
        35,
        1 << 20,
    ):
        broken = bytearray(SRAT)
        struct.pack_into("<I", broken, 4, length)
        with pytest.raises(AcpiTableError, match=f"has length {length}"):
            split_tables(CEDT + bytes(broken))


def test_another_table_is_refused() -> None:
    for parse, good in (
        (parse_cedt, CEDT),
        (parse_srat, SRAT),
        (parse_cpu_domains, SRAT),
    ):
        with pytest.raises(AcpiTableError, match="not a"):
            parse(b"XXXX" + good[4:])
        with pytest.raises(AcpiTableError, match="not a"):
            parse(good[:20])


def test_every_truncated_table_is_refused() -> None:
    for parse, good in (
        (parse_cedt, CEDT),
        (parse_srat, SRAT),
        (parse_cpu_domains, SRAT),
    ):
        for length in range(len(good)):
            with pytest.raises(AcpiTableError):
                parse(good[:length])


def test_a_length_below_that_of_the_header_is_refused() -> None:
    for parse, good in (
        (parse_cedt, CEDT),
        (parse_srat, SRAT),
        (parse_cpu_domains, SRAT),
    ):
        broken = bytearray(good)
        struct.pack_into("<I", broken, 4, 35)
        with pytest.raises(AcpiTableError):
            parse(bytes(broken))


def test_invalid_structures_are_refused() -> None:
    for structure in (
        struct.pack("<BxHII4xQQ", 0, 32, 1, 1, 0x1000, 0),
        struct.pack("<BxHII4xQQ", 0, 32, 1, 1, (1 << 64) - 1, 2),
        window_structure(0x10000000, 0, 0, 0, [1]),
        window_structure(0x10000000, 0x10000000, 5, 0, [1]),
        window_structure(0x10000000, 0x10000000, 1, 0, [1]),
        struct.pack("<BxH", 0, 3),
    ):
        with pytest.raises(AcpiTableError):
            parse_cedt(table("CEDT", structure))


def test_a_structure_that_is_cut_short_or_reserved_is_refused() -> None:
    for structure in (
        window_structure(0x10000000, 0x10000000, 0, 7, [1]),
        struct.pack("<BxH", 0, 4),
        struct.pack("<BxH8x", 1, 12),
    ):
        with pytest.raises(AcpiTableError):
            parse_cedt(table("CEDT", structure))


def test_a_short_host_bridge_structure_is_refused_in_an_override_too() -> None:
    with pytest.raises(AcpiTableError):
        replace_cedt(table("CEDT", struct.pack("<BxH", 0, 4)), BRIDGES, WINDOWS)


# Granularities above 6 have a test above: a huge one takes half a gigabyte where it is not refused,
# which is no way to fail a test.
positions = st.integers(0, len(CEDT) - 1).filter(lambda at: at not in _grain_bytes())


def _grain_bytes() -> set[int]:
    first = 36 + 32 * len(BRIDGES) + 28
    second = first + 40
    return {at for start in (first, second) for at in range(start, start + 4)}


@given(st.dictionaries(positions, st.integers(0, 255), max_size=4))
@example({4: 0, 5: 0, 6: 0, 7: 0})
@example({38: 4, 39: 0})
def test_a_damaged_cedt_is_read_or_refused_and_nothing_else(damage: dict[int, int]) -> None:
    blob = bytearray(CEDT)
    for at, value in damage.items():
        blob[at] = value
    with contextlib.suppress(AcpiTableError):
        parse_cedt(bytes(blob))
    with contextlib.suppress(AcpiTableError):
        replace_cedt(bytes(blob), BRIDGES, WINDOWS)


@given(st.dictionaries(st.integers(0, len(SRAT) - 1), st.integers(0, 255), max_size=4))
def test_a_damaged_srat_is_read_or_refused_and_nothing_else(damage: dict[int, int]) -> None:
    blob = bytearray(SRAT)
    for at, value in damage.items():
        blob[at] = value
    with contextlib.suppress(AcpiTableError):
        parse_srat(bytes(blob))
    with contextlib.suppress(AcpiTableError):
        parse_cpu_domains(bytes(blob))


structures = st.tuples(st.integers(0, 3), st.integers(0, 60), st.binary(max_size=60))


@given(st.lists(structures, max_size=4), st.binary(max_size=3))
def test_any_structures_are_read_or_refused_and_nothing_else(
    parts: list[tuple[int, int, bytes]], rest: bytes
) -> None:
    cedt = b"".join(struct.pack("<BxH", kind, size) + body for kind, size, body in parts)
    with contextlib.suppress(AcpiTableError):
        parse_cedt(table("CEDT", cedt + rest))
    srat = b"".join(struct.pack("<BB", kind, size) + body for kind, size, body in parts)
    with contextlib.suppress(AcpiTableError):
        parse_srat(table("SRAT", bytes(12) + srat + rest))
    with contextlib.suppress(AcpiTableError):
        parse_cpu_domains(table("SRAT", bytes(12) + srat + rest))


@given(st.lists(st.tuples(st.integers(0, 99), st.binary(max_size=60)), max_size=4))
def test_any_tables_are_split_or_refused_and_nothing_else(parts: list[tuple[int, bytes]]) -> None:
    blob = b"".join(struct.pack("<4sI", b"ABCD", size) + body for size, body in parts)
    with contextlib.suppress(AcpiTableError):
        assert all(len(one) >= 36 for one in split_tables(blob).values())


def test_a_cpu_entry_of_another_length_is_refused() -> None:
    for kind, size in (
        (0, 12),
        (0, 20),
        (2, 20),
        (2, 28),
    ):
        entry = bytes([kind, size]).ljust(size, b"\0")
        with pytest.raises(AcpiTableError, match="has the wrong length"):
            parse_cpu_domains(table("SRAT", bytes(12) + entry))


def test_a_memory_entry_of_another_length_is_refused() -> None:
    for size in (
        32,
        44,
    ):
        entry = SRAT[48:88].ljust(size, b"\0")[:size]
        entry = entry[:1] + bytes([size]) + entry[2:]
        with pytest.raises(AcpiTableError, match="has the wrong length"):
            parse_srat(table("SRAT", bytes(12) + entry))
