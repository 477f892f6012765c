# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads archives in the "newc" format, as the kernel's init/initramfs.c does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What the kernel would make of one entry."""

    name: str
    mode: int
    data: bytes
    device: tuple[int, int]
    inode: int


def read_newc(blob: bytes) -> list[list[Entry]]:
    """The archives one after another in `blob`, as init/initramfs.c reads them."""
    archives: list[list[Entry]] = []
    entries: list[Entry] = []
    at = 0
    while at < len(blob):
        if blob[at] == 0:
            at += 1
            continue
        assert blob[at : at + 6] == b"070701"
        assert at % 4 == 0
        fields = [int(blob[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        inode, mode, uid, gid, links, mtime, size, *device, name_size, check = fields
        assert (uid, gid, mtime, check) == (0, 0, 0, 0)
        assert links == 1
        assert device[:2] == [0, 0]
        name = blob[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        start = at + -(-(110 + name_size) // 4) * 4
        at = start + -(-size // 4) * 4
        if name == b"TRAILER!!!\0":
            archives.append(entries)
            entries = []
        else:
            data = blob[start : start + size]
            assert len(data) == size
            entries.append(Entry(name[:-1].decode(), mode, data, (device[2], device[3]), inode))
    assert not entries, "no trailer"
    return archives
