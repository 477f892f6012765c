# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import itertools
import json
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from email.message import Message
from pathlib import Path
from typing import cast
from urllib.error import HTTPError, URLError
from urllib.request import Request

import pytest

from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.process import CommandError
from harness.core.progress import Progress, SilentProgress
from harness.debian.apt import Apt, Package, SourcePackage
from harness.kernels.debian import packages as debian
from harness.kernels.debian.mirror_files import files_on_mirror
from harness.kernels.debian.packages import arrange, kernel_key
from harness.kernels.debian.versions import (
    DebianKernel,
    choose_kernel,
    list_kernels,
    version_key,
)
from harness.kernels.resolve import resolve_kernel

LISTING = Path(__file__).resolve().parents[2] / "data" / "debian_cloud_kernels.txt"


def package(line: str) -> Package:
    name, version, suite, size = line.split()
    return Package(name, version, suite, int(size), f"sha256 of {name} {version}")


@pytest.fixture(scope="module")
def packages() -> list[Package]:
    return [package(line) for line in LISTING.read_text().splitlines() if line[0] != "#"]


@pytest.fixture
def kernels(packages: list[Package]) -> tuple[DebianKernel, ...]:
    return list_kernels(packages)


@pytest.mark.parametrize(
    ("asked", "release", "count"),
    [
        ("7.2", "7.2.13+deb14-cloud-amd64", 3),
        ("7.2.12", "7.2.12+deb13-cloud-amd64", 3),
        ("7", "7.3-cloud-amd64", 3),
        ("7.3", "7.3-cloud-amd64", 3),
        ("7.3-rc7", "7.3-cloud-amd64", 3),
        ("7.3~rc7", "7.3-cloud-amd64", 3),
        ("6.18", "6.18.15+deb13-cloud-amd64", 1),
        ("6.12", "6.12.107+deb13-cloud-amd64", 1),
        ("6.12.94", "6.12.94+deb13-cloud-amd64", 1),
        ("6.12.94-1~bpo12+1", "6.12.94+deb12-cloud-amd64", 1),
        ("6.12.94+deb12-cloud-amd64", "6.12.94+deb12-cloud-amd64", 1),
        ("6.12.90", "6.12.90+deb12.1-cloud-amd64", 1),
        ("6.1", "6.1.0-50-cloud-amd64", 1),
        ("6.1.170", "6.1.0-47-cloud-amd64", 1),
    ],
)
def test_the_newest_of_a_version(
    kernels: tuple[DebianKernel, ...], asked: str, release: str, count: int
) -> None:
    chosen = choose_kernel(kernels, asked)
    assert chosen.release == release
    assert len(chosen.packages) == count


def test_a_version_ends_at_a_dot() -> None:
    rows = [f"linux-image-{v}-cloud-amd64 {v}-1 sid 9000000" for v in ("7.2.3", "7.20.1")]
    assert choose_kernel(list_kernels(map(package, rows)), "7.2").upstream == "7.2.3"


@pytest.mark.parametrize("asked", ["6.19", "7.0", "7.1.13"])
def test_a_kernel_without_modules_is_not_offered(
    kernels: tuple[DebianKernel, ...], asked: str
) -> None:
    with pytest.raises(UsageError, match="lacks a part of Linux") as caught:
        choose_kernel(kernels, asked)
    assert f"linux-modules-{asked}" in caught.value.message
    assert "7.2.13, 7.3-rc7" in caught.value.hint
    assert "7.0" not in caught.value.hint


def test_a_version_that_does_not_exist(kernels: tuple[DebianKernel, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        choose_kernel(kernels, "7.2.5")
    assert caught.value.where == "debian:7.2.5"
    newest, _, near = caught.value.hint.partition("; near it: ")
    assert newest.endswith("6.1.176, 6.12.107, 6.16.12, 6.17.13, 6.18.15, 7.2.13, 7.3-rc7")
    assert near == "7.2.6, 7.2.9, 7.2.11, 7.2.12, 7.2.13"
    with pytest.raises(UsageError, match=r"no cloud-amd64 kernel of version 8\.0"):
        choose_kernel(kernels, "8.0")


def test_a_kernel_that_the_mirror_lost_is_not_offered(kernels: tuple[DebianKernel, ...]) -> None:
    gone = ("6.17", "7.2.13", "7.2.9")
    with pytest.raises(UsageError) as caught:
        choose_kernel(kernels, "7.2.5", lambda one: not one.upstream.startswith(gone))
    newest, _, near = caught.value.hint.partition("; near it: ")
    assert newest.endswith("6.16.12, 6.18.15, 7.2.12, 7.3-rc7")
    assert near == "7.2.6, 7.2.11, 7.2.12"


@pytest.mark.parametrize(
    ("answer", "there"),
    [(None, True), (404, False), (410, False), (403, True), (FileNotFoundError(), False),
     (TimeoutError(), True)],
)  # fmt: skip
def test_what_a_mirror_answers(
    answer: int | OSError | None, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def urlopen(request: Request, timeout: float) -> ExitStack:
        assert (request.method, request.full_url) == ("HEAD", "http://mirror/linux_7.2.orig.tar.xz")
        if isinstance(answer, OSError):
            raise URLError(answer)
        if answer is not None:
            raise HTTPError(request.full_url, answer, "", Message(), None)
        return ExitStack()

    class Lists:
        def addresses(self, packages: Sequence[SourcePackage]) -> dict[str, str]:
            return {packages[0].sha256: "http://mirror/linux_7.2.orig.tar.xz", "x": "other"}

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    source = SourcePackage("linux", "7.2-1", "linux_7.2.orig.tar.xz", 1, "5")
    assert files_on_mirror(cast(Apt, Lists()), [source])(source) is there


def test_an_unsigned_image_will_do() -> None:
    rows = [
        f"linux-{part}-7.4-cloud-amd64 7.4-1 sid 9000000"
        for part in ("binary-unsigned", "modules", "base")
    ]
    assert len(choose_kernel(list_kernels(map(package, rows)), "7.4").packages) == 3


def test_versions_sort_as_dpkg_sorts_them(packages: list[Package]) -> None:
    listed = {one.version for one in packages}
    tricky = {"1.0", "1.0-1", "1.0-0", "1.0~rc1-1", "1:0.5", "1.0a-1", "1.0+b1-1", "1.0.1-1", "1-1"}
    ordered = sorted(listed | tricky, key=version_key)
    assert ordered.index("7.3~rc7-1~exp1") == len(ordered) - 2  # before epoch 1
    if shutil.which("dpkg") is None:
        pytest.skip("needs dpkg")
    for older, newer in itertools.pairwise(ordered):
        argv = ["dpkg", "--compare-versions", older, "le", newer]
        assert subprocess.run(argv).returncode == 0, (older, newer)


def test_the_key_hangs_on_every_package(kernels: tuple[DebianKernel, ...]) -> None:
    kernel = choose_kernel(kernels, "7.2")
    one, *others = kernel.packages
    changed = Package(one.name, one.version, one.suite, one.size, "another hash")
    again = DebianKernel(kernel.release, kernel.version, (changed, *others))
    assert kernel_key(kernel) != kernel_key(again)
    assert kernel_key(kernel) == kernel_key(
        DebianKernel(kernel.release, kernel.version, kernel.packages[::-1])
    )


def fake_image(release: str) -> bytes:
    head = bytearray(0x400)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x100)
    text = f"{release} (builder@host) #1 SMP\0".encode()
    head[0x300 : 0x300 + len(text)] = text
    return bytes(head)


def write(path: Path, content: bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def old_layout(root: Path, release: str, lib: str = "usr/lib") -> None:
    write(root / "boot" / f"vmlinuz-{release}", fake_image(release))
    write(root / "boot" / f"config-{release}")
    write(root / "boot" / f"System.map-{release}")
    installed = root / lib / "modules" / release
    for name in ("kernel/drivers/dax/kmem.ko.xz", "modules.order", "modules.builtin"):
        write(installed / name)


def split_layout(root: Path, release: str) -> None:
    installed = root / "usr/lib/modules" / release
    write(installed / "vmlinuz", fake_image(release))
    for name in ("config", "System.map", "modules.order", "modules.builtin"):
        write(installed / name)
    write(installed / "modules.builtin.modinfo")
    write(installed / "kernel/drivers/dax/kmem.ko.xz")


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


EXPECTED = {
    "vmlinuz", "config", "System.map",
    "modules/kernel/drivers/dax/kmem.ko.xz", "modules/modules.order", "modules/modules.builtin",
}  # fmt: skip


@pytest.mark.parametrize("lib", ["lib", "usr/lib"])
def test_the_old_layout(tmp_path: Path, lib: str) -> None:
    old_layout(tmp_path / "from", "6.18.1-x", lib)
    (tmp_path / "to").mkdir()
    arrange(tmp_path / "from", "6.18.1-x", tmp_path / "to")
    assert files(tmp_path / "to") == EXPECTED


def test_the_split_layout(tmp_path: Path) -> None:
    split_layout(tmp_path / "from", "7.2.1-x")
    (tmp_path / "to").mkdir()
    arrange(tmp_path / "from", "7.2.1-x", tmp_path / "to")
    assert files(tmp_path / "to") == EXPECTED | {"modules/modules.builtin.modinfo"}


@pytest.mark.parametrize("missing", ["vmlinuz", "config", "kernel"])
def test_packages_without_a_part(tmp_path: Path, missing: str) -> None:
    split_layout(tmp_path / "from", "7.2.1-x")
    gone = tmp_path / "from/usr/lib/modules/7.2.1-x" / missing
    gone.rename(tmp_path / "gone")
    (tmp_path / "to").mkdir()
    with pytest.raises(UsageError, match=f"have no {missing.replace('kernel', 'modules')}"):
        arrange(tmp_path / "from", "7.2.1-x", tmp_path / "to")


class FakeApt:
    """An archive in which new packages may appear when the lists are refreshed."""

    def __init__(self, listed: Sequence[str], after_refresh: Sequence[str] = ()) -> None:
        self.listed = [package(line) for line in listed]
        self.after_refresh = [package(line) for line in after_refresh]
        self.downloads: list[str] = []
        self.refreshes: list[float] = []

    @contextmanager
    def open(self, store: Store, progress: Progress) -> Iterator[FakeApt]:
        yield self

    def refresh(self, max_age: float) -> bool:
        self.refreshes.append(max_age)
        if not self.after_refresh:
            return False
        self.listed, self.after_refresh = self.after_refresh, []
        return True

    def search(self, pattern: str) -> tuple[Package, ...]:
        return tuple(self.listed)

    def download(self, wanted: Sequence[Package], into: Path, what: str) -> tuple[Path, ...]:
        if self.after_refresh:
            raise CommandError("404", hint="")
        self.downloads += [one.name for one in wanted]
        return tuple(into / one.name for one in wanted)


def fake_unpack(file: Path, into: Path) -> None:
    split_layout(into, file.name.partition("-")[2].partition("-")[2])


def rows(version: str) -> list[str]:
    return [
        f"linux-{part}-{version}-cloud-amd64 {version}-1 sid 9000000"
        for part in ("binary", "modules", "base")
    ]


def use(apt: FakeApt, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    monkeypatch.setattr(debian, "open_apt", apt.open)
    monkeypatch.setattr(debian, "files_on_mirror", lambda _apt, _packages: lambda _one: True)
    monkeypatch.setattr(debian, "unpack", fake_unpack)
    return apt


def test_a_kernel_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = use(FakeApt(rows("7.2.1")), monkeypatch)
    store = Store(tmp_path)
    kernel = resolve_kernel("debian:7.2", store, SilentProgress())
    assert kernel.release == "7.2.1-cloud-amd64"
    assert files(kernel.image.parent) == EXPECTED | {
        "modules/modules.builtin.modinfo",
        "manifest.json",
        "SHA256SUMS",
    }
    manifest = json.loads((kernel.image.parent / "manifest.json").read_text())
    assert manifest["spec"] == "debian:7.2"
    assert {one["suite"] for one in manifest["packages"]} == {"sid"}
    assert resolve_kernel("debian:7.2", store, SilentProgress()) == kernel
    by_full_version = resolve_kernel("debian:7.2.1", store, SilentProgress())
    assert by_full_version.identity == kernel.identity
    assert by_full_version.spec == "debian:7.2.1"
    assert len(apt.downloads) == 3


def test_a_name_stays_until_it_is_refreshed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    use(FakeApt(rows("7.2.1")), monkeypatch)
    resolve_kernel("debian:7.2", store, SilentProgress())
    use(FakeApt(rows("7.2.1"), after_refresh=rows("7.2.2")), monkeypatch)
    assert resolve_kernel("debian:7.2", store, SilentProgress()).release == "7.2.1-cloud-amd64"
    newer = resolve_kernel("debian:7.2", store, SilentProgress(), refresh=True)
    assert newer.release == "7.2.2-cloud-amd64"


def test_lists_that_lack_a_version_are_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apt = use(FakeApt(rows("7.2.1"), after_refresh=rows("7.3.1")), monkeypatch)
    kernel = resolve_kernel("debian:7.3", Store(tmp_path), SilentProgress())
    assert kernel.release == "7.3.1-cloud-amd64"
    assert apt.refreshes == [6 * 3600.0]


def test_a_package_that_the_mirror_has_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakeApt(rows("7.2.1"), after_refresh=rows("7.2.2")), monkeypatch)
    store = Store(tmp_path)
    assert resolve_kernel("debian:7.2", store, SilentProgress()).release == "7.2.2-cloud-amd64"
    assert not list((tmp_path / "tmp").glob("*/*"))
