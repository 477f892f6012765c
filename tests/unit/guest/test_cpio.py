# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import io
import shutil
import stat
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from newc import Entry, read_newc

from harness.guest.cpio import CpioWriter


def written(*calls: tuple[str, tuple[object, ...]]) -> list[Entry]:
    output = io.BytesIO()
    archive = CpioWriter(output)
    for name, arguments in calls:
        getattr(archive, name)(*arguments)
    archive.close()
    assert len(output.getvalue()) % 512 == 0
    (entries,) = read_newc(output.getvalue())
    return entries


def shown(entries: list[Entry]) -> list[tuple[str, str]]:
    return [(stat.filemode(one.mode), one.name) for one in entries]


def test_a_file_comes_after_the_folders_above_it_each_once() -> None:
    entries = written(
        ("add_file", ("lib/modules/7.2/a.ko", b"abc")),
        ("add_file", ("lib/modules/7.2/b.ko", b"")),
        ("add_file", ("/init", b"#!", 0o755)),
        ("add_folder", ("lib/",)),
    )
    assert shown(entries) == [
        ("drwxr-xr-x", "lib"),
        ("drwxr-xr-x", "lib/modules"),
        ("drwxr-xr-x", "lib/modules/7.2"),
        ("-rw-r--r--", "lib/modules/7.2/a.ko"),
        ("-rw-r--r--", "lib/modules/7.2/b.ko"),
        ("-rwxr-xr-x", "init"),
    ]
    assert entries[3].data == b"abc"


def test_every_entry_has_an_inode_of_its_own() -> None:
    # Two with the same one and several links would be hard links of each other.
    entries = written(("add_file", ("a/b", b"1")), ("add_file", ("a/c", b"2")))
    assert len({one.inode for one in entries}) == 3


def test_links_and_devices_are_what_they_are() -> None:
    link, folder, device = written(
        ("add_link", ("sh", "/bin/busybox")), ("add_device", ("dev/console", 5, 1))
    )
    assert stat.S_ISLNK(link.mode)
    assert link.data == b"/bin/busybox"
    assert folder.name == "dev"
    assert stat.S_ISCHR(device.mode)
    assert device.device == (5, 1)
    assert stat.S_IMODE(device.mode) == 0o600


def test_a_folder_keeps_the_mode_that_it_was_added_with() -> None:
    entries = written(
        ("add_folder", ("root", 0o700)), ("add_file", ("root/.ssh/keys", b"k", 0o600))
    )
    assert shown(entries) == [
        ("drwx------", "root"),
        ("drwxr-xr-x", "root/.ssh"),
        ("-rw-------", "root/.ssh/keys"),
    ]


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=9)


@given(st.dictionaries(names.filter(lambda name: name != "TRAILER!!!"), st.binary(max_size=20)))
def test_whatever_is_written_reads_back(files: dict[str, bytes]) -> None:
    entries = written(*(("add_file", (name, data)) for name, data in files.items()))
    assert {one.name: one.data for one in entries} == files


def test_the_same_calls_give_the_same_bytes() -> None:
    outputs = []
    for _ in range(2):
        output = io.BytesIO()
        archive = CpioWriter(output)
        archive.add_file("a/b", b"x")
        archive.close()
        outputs.append(output.getvalue())
    assert outputs[0] == outputs[1]


@pytest.mark.skipif(shutil.which("cpio") is None, reason="the program cpio is not installed")
def test_the_program_cpio_reads_it_too() -> None:
    output = io.BytesIO()
    archive = CpioWriter(output)
    archive.add_file("a/b", b"x" * 5)
    archive.close()
    listed = subprocess.run(
        ["cpio", "--list", "--quiet"], input=output.getvalue(), capture_output=True, check=True
    )
    assert listed.stdout.split() == [b"a", b"a/b"]
