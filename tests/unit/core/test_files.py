# SPDX-License-Identifier: GPL-2.0-or-later
"""Read and write files, and find damage in entries of the store."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from damage import DAMAGE, cut, empty, flip, lengthen
from fake_sources import Listener

from harness.core import files
from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.files import (
    SUMS,
    DamagedEntryError,
    is_damaged,
    made_again,
    read_text,
    require_whole,
    verify,
    write_atomic,
)
from harness.kernels.store import discard_damaged

LARGE = bytes(range(256)) * 1024
RECORD = ".verified.json"
NAMES = ("image", "modules", "small")


def fill(folder: Path) -> None:
    (folder / "image").write_bytes(LARGE)
    (folder / "modules").mkdir()
    (folder / "modules" / "cxl.ko").write_bytes(LARGE[1:])
    (folder / "small").write_text("small\n")
    (folder / "link").symlink_to("/etc/passwd")


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    return Store(tmp_path / "store").build("things", "a", fill)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read; new files are remembered at once."""
    monkeypatch.setattr(files, "_TICK", -1.0)
    seen: list[str] = []
    digest = files.sha256

    def count(path: Path) -> str:
        seen.append(path.name)
        return digest(path)

    monkeypatch.setattr(files, "sha256", count)
    return seen


def test_text_that_the_user_named(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_text(path)
    with pytest.raises(UsageError, match="cannot read the matrix: Is a directory") as caught:
        read_text(tmp_path, what="the matrix", hint="name one")
    assert (caught.value.where, caught.value.hint) == (str(tmp_path), "name one")


def test_a_write_is_complete_or_does_not_happen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text"
    write_atomic(path, "old")
    before = path.stat().st_ino
    write_atomic(path, b"new")
    assert path.read_text() == "new" and path.stat().st_ino != before

    def fail(self: Path, data: bytes) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "newer")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_sha256sum_accepts_the_checksums(entry: Path) -> None:
    assert "passwd" not in (entry / SUMS).read_text()
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=entry, check=True)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    for key, name in enumerate(("image", "modules/cxl.ko", "small")):
        entry = Store(tmp_path / "store").build("things", str(key), fill)
        requested = (name.partition("/")[0],)
        require_whole(entry, requested)
        damage(entry / name)
        for _ in range(2):
            with pytest.raises(DamagedEntryError, match=name) as caught:
                require_whole(entry, requested)
        assert caught.value.entry == entry
        assert is_damaged(entry)


def test_damaged_checksums_are_noticed(entry: Path) -> None:
    whole = (entry / SUMS).read_text()
    for damage in (flip, empty, cut, Path.unlink):
        (entry / SUMS).write_text(whole)
        damage(entry / SUMS)
        with pytest.raises(DamagedEntryError):
            require_whole(entry, NAMES)
        assert is_damaged(entry)
    for name in NAMES:  # without any checksums
        with pytest.raises(DamagedEntryError):
            require_whole(entry, (name,))


def test_checksums_that_lack_a_file(entry: Path) -> None:
    lines = (entry / SUMS).read_text().splitlines(keepends=True)
    (entry / SUMS).write_text("".join(line for line in lines if "small" not in line))
    with pytest.raises(DamagedEntryError, match="small is not in its"):
        require_whole(entry, ("small",))
    assert is_damaged(entry)


def test_an_added_file_is_damage(entry: Path) -> None:
    (entry / "modules" / "more.ko").touch()
    assert is_damaged(entry)


def test_a_large_file_is_read_once(entry: Path, reads: list[str]) -> None:
    for _ in range(3):
        require_whole(entry, ("image", "small"))
    assert sorted(reads) == ["image", "small", "small", "small"]


def replace_by_copy(path: Path) -> None:
    shutil.copy2(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


@pytest.mark.parametrize("change", [flip, lengthen, replace_by_copy])
def test_a_changed_file_is_read_again(
    entry: Path, reads: list[str], change: Callable[[Path], None]
) -> None:
    require_whole(entry, ("image",))
    status = (entry / "image").stat()
    change(entry / "image")
    # Setting the times back changes the inode's own time.
    os.utime(entry / "image", ns=(status.st_atime_ns, status.st_mtime_ns))
    if change is replace_by_copy:
        require_whole(entry, ("image",))
    else:
        with pytest.raises(DamagedEntryError):
            require_whole(entry, ("image",))
    assert reads == ["image", "image"]


def test_a_file_is_read_again_after_a_boot(
    entry: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    require_whole(entry, ("image",))
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(files, "_BOOT", tmp_path / "boot_id")
    require_whole(entry, ("image",))
    assert reads == ["image", "image"]


def test_a_file_that_was_just_written_is_read_again(
    entry: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_TICK", 3600.0)
    for _ in range(2):
        require_whole(entry, ("image",))
    assert reads == ["image", "image"]


def test_a_damaged_record_is_ignored(entry: Path, reads: list[str]) -> None:
    for text in ("", "{", "[]", '{"image": 1}', '{"image": ["", 1]}'):
        (entry / RECORD).write_text(text)
        reads.clear()
        for _ in range(2):
            require_whole(entry, ("image",))
        assert reads == ["image"], text


def test_verify_ignores_the_record(entry: Path, reads: list[str]) -> None:
    """The disk changes bits and the file system does not notice."""
    require_whole(entry, ("image",))
    flip(entry / "image")
    status = (entry / "image").stat()
    record = json.loads((entry / RECORD).read_text())
    record["image"][2:4] = [status.st_mtime_ns, status.st_ctime_ns]
    (entry / RECORD).write_text(json.dumps(record))
    require_whole(entry, ("image",))
    with pytest.raises(DamagedEntryError, match="image"):
        verify(entry)
    with pytest.raises(DamagedEntryError, match="image"):
        require_whole(entry, ("image",))


def test_an_entry_that_comes_with_checksums_is_compared(tmp_path: Path, entry: Path) -> None:
    store = Store(tmp_path / "other")
    copied = store.build("things", "a", lambda to: copy_all(entry, to))
    assert (copied / SUMS).read_text() == (entry / SUMS).read_text()

    def arrive_damaged(to: Path) -> None:
        copy_all(entry, to)
        flip(to / "modules" / "cxl.ko")

    with pytest.raises(UsageError, match=r"cxl\.ko, of \d+ bytes, is not what was stored"):
        store.build("things", "b", arrive_damaged)
    assert store.find("things", "b") is None


def copy_all(entry: Path, to: Path) -> None:
    shutil.copytree(entry, to, symlinks=True, dirs_exist_ok=True)


def test_an_error_is_damage_only_where_the_disk_fails(
    entry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code in (errno.EMFILE, errno.ENOMEM, errno.EACCES, errno.EIO):
        failure = OSError(code, os.strerror(code), "image")
        monkeypatch.setattr(files, "sha256", Mock(side_effect=failure))
        for names in (("image",), NAMES):
            with pytest.raises(UsageError, match=os.strerror(code)) as caught:
                require_whole(entry, names)
            assert isinstance(caught.value, DamagedEntryError) == (code == errno.EIO)


def test_an_entry_that_stays_damaged_is_an_error(entry: Path) -> None:
    flip(entry / "image")
    discarded: list[DamagedEntryError] = []
    with pytest.raises(DamagedEntryError, match="image"):
        made_again(lambda: require_whole(entry, ("image",)), discarded.append)
    assert len(discarded) == 1


def test_an_entry_that_another_process_has_made_again_stays(entry: Path, tmp_path: Path) -> None:
    flip(entry / "image")
    with pytest.raises(DamagedEntryError) as caught:
        require_whole(entry, ("image",))
    flip(entry / "image")
    progress = Listener()
    discard_damaged(caught.value, Store(tmp_path / "store"), progress)
    assert entry.is_dir()
    assert progress.notes == []
