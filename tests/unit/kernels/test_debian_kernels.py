# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
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
from harness.debian.apt import Apt, Package, SourcePackage, files_on_mirror
from harness.kernels.debian import packages as debian
from harness.kernels.debian.packages import arrange, kernel_key
from harness.kernels.debian.versions import (
    DebianKernel,
    by_version,
    choose_kernel,
    list_kernels,
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


CHOSEN = {
    "7.2": ("7.2.13+deb14-cloud-amd64", 3),
    "7.2.12": ("7.2.12+deb13-cloud-amd64", 3),
    "7": ("7.3-cloud-amd64", 3),
    "7.3": ("7.3-cloud-amd64", 3),
    "7.3-rc7": ("7.3-cloud-amd64", 3),
    "7.3~rc7": ("7.3-cloud-amd64", 3),
    "6.18": ("6.18.15+deb13-cloud-amd64", 1),
    "6.12": ("6.12.107+deb13-cloud-amd64", 1),
    "6.12.94": ("6.12.94+deb13-cloud-amd64", 1),
    "6.12.94-1~bpo12+1": ("6.12.94+deb12-cloud-amd64", 1),
    "6.12.94+deb12-cloud-amd64": ("6.12.94+deb12-cloud-amd64", 1),
    "6.12.90": ("6.12.90+deb12.1-cloud-amd64", 1),
    "6.1": ("6.1.0-50-cloud-amd64", 1),
    "6.1.170": ("6.1.0-47-cloud-amd64", 1),
}


def test_the_newest_of_a_version(kernels: tuple[DebianKernel, ...]) -> None:
    chosen = {version: choose_kernel(kernels, version) for version in CHOSEN}
    found = {name: (kernel.release, len(kernel.packages)) for name, kernel in chosen.items()}
    assert found == CHOSEN


def test_a_version_ends_at_a_dot() -> None:
    rows = [f"linux-image-{v}-cloud-amd64 {v}-1 sid 9000000" for v in ("7.2.3", "7.20.1")]
    assert choose_kernel(list_kernels(map(package, rows)), "7.2").upstream == "7.2.3"


def test_a_kernel_without_modules_is_not_offered(kernels: tuple[DebianKernel, ...]) -> None:
    for version in ("6.19", "7.0", "7.1.13"):
        with pytest.raises(UsageError, match="lacks a part of Linux") as caught:
            choose_kernel(kernels, version)
        assert f"linux-modules-{version}" in caught.value.message
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
        choose_kernel(kernels, "7.2.5", lambda kernel: not kernel.upstream.startswith(gone))
    newest, _, near = caught.value.hint.partition("; near it: ")
    assert newest.endswith("6.16.12, 6.18.15, 7.2.12, 7.3-rc7")
    assert near == "7.2.6, 7.2.11, 7.2.12"


def test_answers_of_a_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "http://mirror/linux_7.2.orig.tar.xz"
    answers: list[int | OSError | None] = []

    def urlopen(request: Request, timeout: float) -> ExitStack:
        assert (request.method, request.full_url) == ("HEAD", address)
        answer = answers.pop()
        if isinstance(answer, OSError):
            raise URLError(answer)
        if answer is not None:
            raise HTTPError(request.full_url, answer, "", Message(), None)
        return ExitStack()

    class Lists:
        def addresses(self, packages: Sequence[SourcePackage]) -> dict[str, str]:
            return {packages[0].sha256: address, "x": "other"}

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    source = SourcePackage("linux", "7.2-1", "linux_7.2.orig.tar.xz", 1, "5")
    for answer, available in (
        (None, True), (404, False), (410, False), (403, True), (FileNotFoundError(), False),
        (TimeoutError(), True),
    ):  # fmt: skip
        answers.append(answer)
        assert files_on_mirror(cast(Apt, Lists()), [source])(source) is available, answer


def test_an_unsigned_image_is_accepted() -> None:
    rows = [
        f"linux-{part}-7.4-cloud-amd64 7.4-1 sid 9000000"
        for part in ("binary-unsigned", "modules", "base")
    ]
    assert len(choose_kernel(list_kernels(map(package, rows)), "7.4").packages) == 3


def test_versions_are_sorted_as_dpkg_sorts_them() -> None:
    """The order is in Debian Policy, section 5.6.12."""
    ordered = ["1.0~rc1-1", "1.0", "1.0-1", "1.0a-1", "1.0+b1-1", "1.0.1-1", "7.3~rc7-1~exp1",
               "7.3~rc7-1", "7.3-1", "1:0.5"]  # fmt: skip
    listed = [Package("linux", version, "sid", 1, "") for version in reversed(ordered)]
    assert [package.version for package in by_version(listed)] == ordered


def test_the_key_depends_on_every_package(kernels: tuple[DebianKernel, ...]) -> None:
    kernel = choose_kernel(kernels, "7.2")
    first, *others = kernel.packages
    changed = replace(first, sha256="another hash")
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


def test_packages_without_a_part(tmp_path: Path) -> None:
    for missing in ("vmlinuz", "config", "kernel"):
        top = tmp_path / missing
        split_layout(top / "from", "7.2.1-x")
        (top / "from/usr/lib/modules/7.2.1-x" / missing).rename(top / "gone")
        (top / "to").mkdir()
        with pytest.raises(UsageError, match=f"have no {missing.replace('kernel', 'modules')}"):
            arrange(top / "from", "7.2.1-x", top / "to")


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

    def download(self, requested: Sequence[Package], into: Path, what: str) -> tuple[Path, ...]:
        if self.after_refresh:
            raise CommandError("404", hint="")
        self.downloads += [package.name for package in requested]
        return tuple(into / package.name for package in requested)


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
    assert {package["suite"] for package in manifest["packages"]} == {"sid"}
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
