# SPDX-License-Identifier: GPL-2.0-or-later
"""What was damaged in the store is noticed; what is whole is read once."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from damage import DAMAGE, cut, empty, flip, lengthen
from fake_sources import Listener

from harness.core import files
from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.files import SUMS, DamagedEntryError, is_damaged, made_again, require_whole
from harness.kernels.store import discard_damaged

LARGE = bytes(range(256)) * 1024


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    def make(folder: Path) -> None:
        (folder / "image").write_bytes(LARGE)
        (folder / "modules").mkdir()
        (folder / "modules" / "cxl.ko").write_bytes(LARGE[1:])
        (folder / "small").write_text("small\n")
        (folder / "link").symlink_to("/etc/passwd")

    return Store(tmp_path / "store").build("things", "a", make)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose hashes were made; the files are old enough to be remembered."""
    monkeypatch.setattr(files, "_TICK", -1.0)
    seen: list[str] = []
    digest = files._digest

    def count(path: Path) -> str:
        seen.append(path.name)
        return digest(path)

    monkeypatch.setattr(files, "_digest", count)
    return seen


def test_the_hashes_are_those_that_sha256sum_checks(entry: Path) -> None:
    assert "passwd" not in (entry / SUMS).read_text()
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=entry, check=True)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["image", "modules/cxl.ko", "small"])
def test_damage_is_noticed(entry: Path, name: str, damage: Callable[[Path], None]) -> None:
    wanted = (name.partition("/")[0],)
    require_whole(entry, wanted)
    damage(entry / name)
    for _ in range(2):
        with pytest.raises(DamagedEntryError, match=name) as caught:
            require_whole(entry, wanted)
    assert caught.value.entry == entry
    assert is_damaged(entry)


@pytest.mark.parametrize("damage", [flip, empty, cut])
def test_damaged_hashes_are_noticed(entry: Path, damage: Callable[[Path], None]) -> None:
    damage(entry / SUMS)
    with pytest.raises(DamagedEntryError):
        require_whole(entry, ("image", "modules", "small"))
    assert is_damaged(entry)


def test_a_line_that_is_missing_of_the_hashes(entry: Path) -> None:
    lines = (entry / SUMS).read_text().splitlines(keepends=True)
    (entry / SUMS).write_text("".join(line for line in lines if "small" not in line))
    with pytest.raises(DamagedEntryError, match="small is not in its"):
        require_whole(entry, ("small",))
    assert is_damaged(entry)


def test_what_is_whole_is_read_once(entry: Path, reads: list[str]) -> None:
    for _ in range(3):
        require_whole(entry, ("image",))
    assert reads == ["image"]
    assert not is_damaged(entry)


@pytest.mark.parametrize("damage", [flip, lengthen])
def test_what_was_touched_is_read_again(
    entry: Path, reads: list[str], damage: Callable[[Path], None]
) -> None:
    require_whole(entry, ("image",))
    status = (entry / "image").stat()
    damage(entry / "image")
    # Whoever sets the times back still changes the inode's own.
    os.utime(entry / "image", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DamagedEntryError):
        require_whole(entry, ("image",))
    assert reads == ["image", "image"]


def test_a_copy_in_its_place_is_read_again(entry: Path, reads: list[str]) -> None:
    require_whole(entry, ("image",))
    shutil.copy2(entry / "image", entry / "copy")
    (entry / "copy").replace(entry / "image")
    require_whole(entry, ("image",))
    assert reads == ["image", "image"]


@pytest.mark.parametrize("days", [1.1, -0.1])
def test_after_a_day_it_is_read_again(
    entry: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, days: float
) -> None:
    require_whole(entry, ("image",))
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + days * 86400)
    require_whole(entry, ("image",))
    assert reads == ["image", "image"]


def test_after_a_boot_it_is_read_again(
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
    monkeypatch.setattr(files, "_TICK", 2.0)
    for _ in range(2):
        require_whole(entry, ("image",))
    assert reads == ["image", "image"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"boot": 1}', '{"files": {"image": []}}'])
def test_what_was_seen_may_be_nonsense(entry: Path, reads: list[str], text: str) -> None:
    require_whole(entry, ("image",))
    record = entry / ".verified.json"
    record.write_text(text.replace("{", json.dumps(json.loads(record.read_text()))[:-1] + ", ", 1)
                      if text.startswith('{"files') else text)  # fmt: skip
    require_whole(entry, ("image",))
    assert reads == ["image", "image"]


def test_an_entry_without_hashes_gets_them(entry: Path) -> None:
    (entry / SUMS).unlink()
    require_whole(entry, ("image",))
    assert not is_damaged(entry)
    flip(entry / "image")
    with pytest.raises(DamagedEntryError):
        require_whole(entry, ("image",))
    assert {one.name for one in entry.iterdir()} <= {
        "image", "modules", "small", "link", SUMS, ".verified.json"
    }  # fmt: skip


def test_an_entry_that_comes_with_hashes_is_held_against_them(tmp_path: Path, entry: Path) -> None:
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


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.EACCES])
def test_what_cannot_be_read_is_not_damaged(
    entry: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(path: Path) -> str:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(files, "_digest", fail)
    for look in (lambda: require_whole(entry, ("image",)), lambda: is_damaged(entry)):
        with pytest.raises(UsageError, match="cannot be read") as caught:
            look()
        assert not isinstance(caught.value, DamagedEntryError)


def test_a_disk_that_cannot_read_is_damage(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(files, "_digest", fail)
    with pytest.raises(DamagedEntryError, match="Input/output error"):
        require_whole(entry, ("image",))
    assert is_damaged(entry)


def test_what_stays_damaged_is_an_error(entry: Path) -> None:
    flip(entry / "image")
    discarded: list[DamagedEntryError] = []
    with pytest.raises(DamagedEntryError, match="image"):
        made_again(lambda: require_whole(entry, ("image",)), discarded.append)
    assert len(discarded) == 1


def test_what_another_process_has_made_again_stays(entry: Path, tmp_path: Path) -> None:
    flip(entry / "image")
    with pytest.raises(DamagedEntryError) as caught:
        require_whole(entry, ("image",))
    flip(entry / "image")
    progress = Listener()
    discard_damaged(caught.value, Store(tmp_path / "store"), progress)
    assert entry.is_dir()
    assert progress.notes == []
