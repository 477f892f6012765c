# SPDX-License-Identifier: GPL-2.0-or-later
"""What was damaged in the store is noticed, said, and made again; what is whole is read once."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_room import FIT_QEMU
from fake_sources import Builder, Listener, builder, git_fake

from harness import sums
from harness.errors import UsageError
from harness.guest.initramfs import shared_initramfs
from harness.kernels.stored import discard_damaged, kernel_in_use, require_whole_modules
from harness.model.kernel import Kernel
from harness.model.kernel_modules import ModulePlan
from harness.model.kernel_request import KernelRequest
from harness.runs.prepare import Host, prepare_kernel
from harness.store import Store
from harness.sums import SUMS, DamagedEntryError, is_damaged, made_again, require_whole

__all__ = ["builder"]

LARGE = bytes(range(256)) * 1024


def flip(path: Path) -> None:
    """Another bit in the middle: the size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    """What a file is that a file system lost when the power went."""
    os.truncate(path, 0)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def remove(path: Path) -> None:
    path.unlink()


DAMAGE: tuple[Callable[[Path], None], ...] = (flip, empty, cut, lengthen, remove)


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
    monkeypatch.setattr(sums, "_TICK", -1.0)
    seen: list[str] = []
    digest = sums._digest
    monkeypatch.setattr(sums, "_digest", lambda path: seen.append(path.name) or digest(path))
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
    now = sums.time.time()
    monkeypatch.setattr("time.time", lambda: now + days * 86400)
    require_whole(entry, ("image",))
    assert reads == ["image", "image"]


def test_after_a_boot_it_is_read_again(
    entry: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    require_whole(entry, ("image",))
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(sums, "_BOOT", tmp_path / "boot_id")
    require_whole(entry, ("image",))
    assert reads == ["image", "image"]


def test_a_file_that_was_just_written_is_read_again(
    entry: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "_TICK", 2.0)
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

    monkeypatch.setattr(sums, "_digest", fail)
    for look in (lambda: require_whole(entry, ("image",)), lambda: is_damaged(entry)):
        with pytest.raises(UsageError, match="cannot be read") as caught:
            look()
        assert not isinstance(caught.value, DamagedEntryError)


def test_a_disk_that_cannot_read_is_damage(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(sums, "_digest", fail)
    with pytest.raises(DamagedEntryError, match="Input/output error"):
        require_whole(entry, ("image",))
    assert is_damaged(entry)


def test_what_stays_damaged_is_an_error(entry: Path) -> None:
    flip(entry / "image")
    discarded = []
    with pytest.raises(DamagedEntryError, match="image"):
        made_again(lambda: require_whole(entry, ("image",)), discarded.append)
    assert len(discarded) == 1


# Kernels, and what is made for them.


@pytest.fixture
def kernel(builder: Builder, tmp_path: Path) -> Kernel:
    return builder(f"build:{git_fake(tmp_path / 'linux')}")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["vmlinuz", "config", "manifest.json"])
def test_a_damaged_kernel_is_made_again(
    builder: Builder, kernel: Kernel, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    path = kernel.image.parent / name
    whole = path.read_bytes()
    damage(path)
    again = builder(f"build:{tmp_path / 'linux'}")
    assert (again.identity, again.image) == (kernel.identity, kernel.image)
    if name != "manifest.json":  # it has the time of the build
        assert path.read_bytes() == whole
    (said,) = [note for note in builder.progress.notes if "damaged in the store" in note]
    assert said.startswith(f"kernels/{kernel.identity[:12]} is damaged in the store: {name}")
    assert said.endswith("it is made again")
    assert not list((builder.store.root / "tmp").glob("*/*"))


def test_a_damaged_kernel_that_a_run_uses_is_not_booted(
    builder: Builder, kernel: Kernel, tmp_path: Path
) -> None:
    with kernel_in_use(kernel):
        flip(kernel.image)
        with pytest.raises(UsageError, match="and a run uses it") as caught:
            builder(f"build:{tmp_path / 'linux'}")
    assert "wait until" in caught.value.hint
    assert builder(f"build:{tmp_path / 'linux'}").image.exists()


def test_damaged_modules_are_noticed(builder: Builder, kernel: Kernel, tmp_path: Path) -> None:
    require_whole_modules(kernel, builder.store)
    assert kernel.modules is not None
    module = next(kernel.modules.rglob("*.ko"))
    flip(module)
    with pytest.raises(DamagedEntryError, match=module.name):
        require_whole_modules(kernel, builder.store)
    require_whole_modules(kernel, Store(tmp_path / "another"))  # then it is the user's own


def test_damaged_modules_are_not_put_into_an_initramfs(
    builder: Builder, kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "userland" / "0" / "root"
    programs.mkdir(parents=True)
    monkeypatch.setattr("harness.runs.prepare.userland", lambda *_: programs)
    monkeypatch.setattr("harness.guest.initramfs._add_programs", lambda *_: None)
    assert kernel.modules is not None
    module = next(kernel.modules.rglob("*.ko"))
    whole = module.read_bytes()
    flip(module)
    host = Host(FIT_QEMU, builder.store, builder.progress, "tcg")
    with pytest.raises(UsageError, match="not a kernel module"):  # it is a fake one
        prepare_kernel(host, KernelRequest(f"build:{tmp_path / 'linux'}"))
    assert module.read_bytes() == whole
    (said,) = [note for note in builder.progress.notes if "damaged in the store" in note]
    assert module.name in said


def test_what_another_process_has_made_again_stays(entry: Path, tmp_path: Path) -> None:
    flip(entry / "image")
    with pytest.raises(DamagedEntryError) as caught:
        require_whole(entry, ("image",))
    flip(entry / "image")
    progress = Listener()
    discard_damaged(caught.value, Store(tmp_path / "store"), progress)
    assert entry.is_dir()
    assert progress.notes == []


MAKE_AGAIN = """
import sys
from pathlib import Path
from harness.kernels.stored import discard_damaged
from harness.progress import SilentProgress
from harness.store import Store
from harness.sums import made_again, require_whole

store = Store(Path(sys.argv[1]))

def get():
    def make(folder):
        with open(f"{store.root}.log", "a") as log:
            log.write("made\\n")
        (folder / "image").write_bytes(b"whole")
    entry = store.build("things", "a", make)
    require_whole(entry, ("image",))
    return entry

entry = made_again(get, lambda error: discard_damaged(error, store, SilentProgress()))
assert (entry / "image").read_bytes() == b"whole"
"""


def test_several_processes_make_it_again_once(tmp_path: Path) -> None:
    root = tmp_path / "store"
    words = [sys.executable, "-c", MAKE_AGAIN, str(root)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    subprocess.run(words, env=environment, check=True)
    flip(root / "things" / "a" / "image")
    running = [subprocess.Popen(words, env=environment) for _ in range(6)]
    assert [one.wait(60) for one in running] == [0] * 6
    assert Path(f"{root}.log").read_text() == "made\n" * 2
    assert not list((root / "tmp").glob("*/*"))


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["initramfs.cpio", "manifest.json"])
def test_a_damaged_initramfs_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: Callable[[Path], None]
) -> None:
    monkeypatch.setattr("harness.guest.initramfs._add_programs", lambda *_: None)
    store, programs = Store(tmp_path / "store"), tmp_path / "userland" / "0" / "root"
    (programs / "usr").mkdir(parents=True)
    (programs / "usr" / "busybox").write_bytes(b"busybox")
    kernel = Kernel("x", "1", tmp_path / "vmlinuz", None, None, "0")

    def make() -> Path:
        plan = ModulePlan((), (), ())
        return shared_initramfs(
            kernel, ("kmem",), programs, store, Listener(), lambda: plan, lambda _path: b""
        ).archive

    archive = make()
    damage(archive.with_name(name))
    with pytest.raises(DamagedEntryError, match=name):
        make()
    # And the guest's programs, of which the next one would be made.
    store.remove(archive.parent)
    damage(programs / "usr" / "busybox")
    with pytest.raises(DamagedEntryError, match="busybox"):
        make()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_answer_is_asked_for_again(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    progress = Listener()
    host = Host(FIT_QEMU, Store(tmp_path / "store"), progress, "tcg")
    recall = host.remember("layouts")
    asked: list[int] = []

    def ask() -> dict[str, str]:
        asked.append(1)
        return {"SRAT": "00"}

    for _ in range(2):
        assert recall("a", ask) == {"SRAT": "00"}
    damage(host.store.root / "layouts" / "a" / "answer.json")
    assert recall("a", ask) == {"SRAT": "00"}
    assert len(asked) == 2
    (said,) = progress.notes
    assert said.startswith("layouts/a is damaged in the store: answer.json")
