# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.progress import Progress, SilentProgress
from harness.debian import apt
from harness.debian.apt import Package
from harness.guest.userland import PACKAGES, find_program, library_closure, tidy, userland

LOADER = "/lib64/ld-linux-x86-64.so.2"
LIBRARIES = "usr/lib/x86_64-linux-gnu"


def elf(*needed: str, interpreter: str = "", runpath: str = "") -> bytes:
    """A dynamic ELF file that says which libraries it needs, and nothing else."""
    strings, offsets = b"\0", []
    for name in (*needed, runpath):
        offsets.append(len(strings))
        strings += name.encode() + b"\0"
    tags = [(1, offset) for offset in offsets[:-1]]
    if runpath:
        tags.append((29, offsets[-1]))
    start = 64 + 3 * 56
    loader = interpreter.encode() + b"\0"
    table = start + len(loader)
    tags += [(5, table), (10, len(strings)), (0, 0)]
    dynamic = b"".join(struct.pack("<QQ", *tag) for tag in tags)
    size = table + len(strings) + len(dynamic)

    def segment(kind: int, offset: int, length: int) -> bytes:
        return struct.pack("<IIQQQQQQ", kind, 4, offset, offset, offset, length, length, 1)

    segments = segment(1, 0, size) + segment(2, table + len(strings), len(dynamic))
    if interpreter:
        segments += segment(3, start, len(loader))
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, 64, 0, 0, 64, 56, len(segments) // 56, 64, 0, 0,
    )  # fmt: skip
    return header + segments.ljust(3 * 56, b"\0") + loader + strings + dynamic


def put(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    put(root / "usr/bin/cxl", elf("libcxl.so.1", "libc.so.6", interpreter=LOADER))
    put(root / LIBRARIES / "libcxl.so.1.2", elf("libuuid.so.1", "libc.so.6"))
    (root / LIBRARIES / "libcxl.so.1").symlink_to("libcxl.so.1.2")
    put(root / "lib/x86_64-linux-gnu/libuuid.so.1", elf("libc.so.6"))
    put(root / LIBRARIES / "libc.so.6", elf())
    put(root / "usr/lib64/ld-linux-x86-64.so.2", elf())
    put(root / "usr/bin/busybox", elf())
    put(root / "usr/share/doc/x")
    tidy(root)
    return root


def closure(root: Path, *programs: str) -> list[str]:
    return [str(path.relative_to(root)) for path in library_closure(root, programs)]


def test_the_closure_is_where_the_loader_looks(root: Path) -> None:
    assert closure(root, "cxl", "usr/bin/busybox") == [
        LOADER.lstrip("/"),
        "lib/x86_64-linux-gnu/libcxl.so.1",
        "lib/x86_64-linux-gnu/libc.so.6",
        "lib/x86_64-linux-gnu/libuuid.so.1",
    ]
    assert all(path.read_bytes()[:4] == b"\x7fELF" for path in library_closure(root, ["cxl"]))


def test_a_static_program_needs_nothing(root: Path) -> None:
    assert closure(root, "busybox") == []


def test_a_program_that_knows_its_folder(root: Path) -> None:
    put(root / "usr/bin/x", elf("libown.so", runpath="/nowhere:$ORIGIN/../lib/own"))
    own = put(root / "usr/lib/own/libown.so", elf())
    assert library_closure(root, ["x"]) == (own,)


def test_missing_parts(root: Path) -> None:
    put(root / "usr/bin/x", elf("libgone.so"))
    with pytest.raises(UsageError, match=r"libgone\.so, which x needs"):
        library_closure(root, ["x"])
    with pytest.raises(UsageError, match="no program ndctl") as caught:
        library_closure(root, ["ndctl"])
    assert PACKAGES[0] in caught.value.hint
    put(root / "usr/bin/y", b"#!/bin/sh\n")
    with pytest.raises(UsageError, match="not a program"):
        library_closure(root, ["y"])


def test_programs_are_found_after_the_merge(root: Path) -> None:
    assert find_program(root, "cxl") == root / "usr/bin/cxl"


def test_tidy(tmp_path: Path) -> None:
    put(tmp_path / "bin/busybox", b"program")
    put(tmp_path / "usr/bin/cxl")
    put(tmp_path / "usr/share/doc/x")
    (tmp_path / "usr/bin/sh").symlink_to("/bin/busybox")
    (tmp_path / "lib64").symlink_to("/usr/lib64")
    tidy(tmp_path)
    tidy(tmp_path)
    assert {
        name: str((tmp_path / name).readlink()) for name in ("bin", "sbin", "lib", "lib64")
    } == {name: f"usr/{name}" for name in ("bin", "sbin", "lib", "lib64")}
    assert (tmp_path / "usr/bin/sh").read_bytes() == b"program"
    assert not (tmp_path / "usr/bin/sh").readlink().is_absolute()
    assert not (tmp_path / "usr/share").exists()


class FakeApt:
    def __init__(self, suites: tuple[str, ...]) -> None:
        self.suites = suites
        self.version = "1"
        self.opened = 0

    @contextmanager
    def open(self, store: Store, progress: Progress) -> Iterator[FakeApt]:
        self.opened += 1
        yield self

    def refresh(self, max_age: float) -> bool:
        self.version = "2"
        return True

    def closure(self, names: Sequence[str], suite: str) -> tuple[Package, ...]:
        if suite not in self.suites:
            raise UsageError(f"not in {suite}", hint="")
        return tuple(Package(name, self.version, suite, 1, "hash") for name in names)

    def download(self, wanted: Sequence[Package], into: Path, what: str) -> tuple[Path, ...]:
        return tuple(into / one.name for one in wanted)


class Listener(SilentProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def use(fake: FakeApt, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    monkeypatch.setattr(apt, "open_apt", fake.open)
    monkeypatch.setattr(apt, "unpack", lambda file, into: put(into / "usr/bin" / file.name))
    return fake


def test_programs_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(FakeApt(("trixie", "sid")), monkeypatch)
    listener = Listener()
    root = userland(Store(tmp_path), listener)
    assert (root / "usr/bin/busybox-static").exists()
    assert not listener.notes
    manifest = json.loads((root.parent / "manifest.json").read_text())
    assert {one["suite"] for one in manifest["packages"]} == {"trixie"}
    opened = fake.opened
    assert userland(Store(tmp_path), listener) == root
    assert fake.opened == opened
    assert userland(Store(tmp_path), listener, refresh=True) != root


def test_another_suite_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakeApt(("sid",)), monkeypatch)
    listener = Listener()
    userland(Store(tmp_path), listener)
    assert [note.partition(": ")[2] for note in listener.notes] == [
        "not in trixie",
        "not in bookworm",
    ]
    use(FakeApt(()), monkeypatch)
    with pytest.raises(UsageError, match="no suite of Debian"):
        userland(Store(tmp_path / "other"), listener)
