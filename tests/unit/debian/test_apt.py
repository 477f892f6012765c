# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
from fake_sources import Listener

from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.process import CommandError
from harness.core.progress import SilentProgress
from harness.debian import apt, mirror
from harness.debian.apt import (
    SUITES,
    Apt,
    Package,
    SourcePackage,
    open_apt,
    parse_madison,
    parse_show,
    updated_suites,
)
from harness.debian.mirror import (
    MIRROR_VARIABLE,
    find_mirror,
    parse_index_targets,
    parse_update_uris,
    signing_keys,
)

MIRROR = "http://mirror.invalid/debian/"

MADISON = """\
linux-base-7.3-cloud-amd64 | 7.3~rc7-1~exp1 | http://mirror.invalid/debian experimental/main amd64 Packages
linux-image-cloud-amd64 |   7.2.13-1 | http://mirror.invalid/debian sid/main amd64 Packages
linux-image-cloud-amd64 | 7.2.12-1~bpo13+1 | http://mirror.invalid/debian trixie-backports/main amd64 Packages
     linux |   7.2.13-1 | http://mirror.invalid/debian sid/main Sources
"""  # noqa: E501

SHOW = """\
Package: linux-base-7.3-cloud-amd64
Source: linux
Version: 7.3~rc7-1~exp1
Depends: a (= 1)
Size: 357680
SHA256: 1b4a
Description: text
 Version: of the text

Package: linux-image-cloud-amd64
Version: 7.2.13-1
Size: 1916
SHA256: b47a
"""

UPDATE = """\
Hit:1 http://mirror.invalid/debian bookworm InRelease
Get:2 http://mirror.invalid/debian trixie-backports InRelease [54.0 kB]
Get:8 http://mirror.invalid/debian sid/main amd64 Packages [8790 kB]
Get:9 http://mirror.invalid/debian sid InRelease [193 kB]
Get:10 http://mirror.invalid/debian trixie InRelease [140 kB]
Err:9 http://mirror.invalid/debian sid InRelease
  The following signatures couldn't be verified because the public key is not available
Err:12 http://mirror.invalid/debian trixie/main amd64 Packages
  Hash Sum mismatch
Ign:7 http://mirror.invalid/debian nosuch InRelease
Get:13 file:/mirror unsigned InRelease
Ign:13 file:/mirror unsigned InRelease
Get:14 file:/mirror unsigned Release [216 B]
Get:15 file:/mirror unsigned Release.gpg
Ign:15 file:/mirror unsigned Release.gpg
Ign:16 http://mirror.invalid/debian detached InRelease
Get:17 http://mirror.invalid/debian detached Release [216 B]
Get:18 http://mirror.invalid/debian detached Release.gpg [1 kB]
Err:11 http://mirror.invalid/debian nosuch Release
  404  Not Found [IP: 203.0.113.80 80]
Reading package lists...
"""

SIMULATION = """\
The following NEW packages will be installed:
  cxl libc6
Inst libc6 (2.41-12+deb13u4 Debian:13.6/stable [amd64])
Inst cxl (81-1 Debian:13.6/stable [amd64]) []
Conf libc6 (2.41-12+deb13u4 Debian:13.6/stable [amd64])
"""


def test_output_of_apt() -> None:
    assert parse_madison(MADISON) == {
        ("linux-base-7.3-cloud-amd64", "7.3~rc7-1~exp1", "experimental"),
        ("linux-image-cloud-amd64", "7.2.13-1", "sid"),
        ("linux-image-cloud-amd64", "7.2.12-1~bpo13+1", "trixie-backports"),
    }
    assert parse_show(SHOW) == {
        ("linux-base-7.3-cloud-amd64", "7.3~rc7-1~exp1"): (357680, "1b4a"),
        ("linux-image-cloud-amd64", "7.2.13-1"): (1916, "b47a"),
    }
    assert updated_suites(UPDATE) == {"bookworm", "trixie-backports", "detached"}


def test_the_machines_mirror() -> None:
    listed = (
        "http://mirror.invalid/debian-security/|Debian-Security|main|/etc/apt/a.sources:2\n"
        "http://mirror.invalid/debian/|Debian|contrib|/etc/apt/a.sources:1\n"
        "http://mirror.invalid/debian|Debian|main|/etc/apt/a.sources:1\n"
    )
    assert parse_index_targets(listed) == (MIRROR, "/etc/apt/a.sources")
    assert parse_index_targets("http://mirror.invalid/ubuntu/|Ubuntu|main|x:1\n") is None
    assert parse_index_targets("") is None


def test_the_mirror_of_a_machine_without_lists() -> None:
    def planned(base: str, suite: str) -> str:
        packages = f"{base}dists/{suite}/main/binary-amd64/Packages.xz"
        return f"'{base}dists/{suite}/InRelease' x 0 \n'{packages}' x 0 \n"

    security = planned("http://mirror.invalid/debian-security/", "bookworm-security")
    assert parse_update_uris(security + planned(MIRROR, "bookworm-updates")) == MIRROR
    assert parse_update_uris(security) is None
    assert parse_update_uris(planned("http://mirror.invalid/ubuntu/", "noble")) is None


def test_the_keys_that_the_machine_names() -> None:
    deb822 = (
        "Types: deb\nURIs: http://mirror.invalid/debian\nSuites: bookworm\n"
        "Signed-By: /keys/a.gpg /keys/b.gpg\n\n"
        "Types: deb\nURIs: http://other.invalid/\nSigned-By: /keys/c.gpg\n"
    )
    assert signing_keys(deb822, MIRROR) == (Path("/keys/a.gpg"), Path("/keys/b.gpg"))
    one_line = (
        "# deb [signed-by=/keys/z.gpg] http://mirror.invalid/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/keys/a.gpg,/keys/b.gpg] http://mirror.invalid/debian x main\n"
        "deb [signed-by=0123ABCD] http://mirror.invalid/debian y main\n"
    )
    assert signing_keys(one_line, MIRROR) == (Path("/keys/a.gpg"), Path("/keys/b.gpg"))
    embedded = "URIs: http://mirror.invalid/debian\nSigned-By:\n -----BEGIN PGP\n"
    assert signing_keys(embedded, MIRROR) == ()


def test_the_users_mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_apt(tmp_path, monkeypatch)
    monkeypatch.setenv(MIRROR_VARIABLE, MIRROR.rstrip("/"))
    assert find_mirror().uri == MIRROR
    monkeypatch.setenv(MIRROR_VARIABLE, "mirror invalid")
    with pytest.raises(UsageError, match="not a URL"):
        find_mirror()


def test_a_machine_without_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="apt-get is not installed") as caught:
        find_mirror()
    assert "image:PATH" in caught.value.hint


def test_a_machine_of_another_distribution(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_apt(tmp_path, monkeypatch)
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    with pytest.raises(UsageError, match="does not use Debian's main archive") as caught:
        find_mirror()
    assert MIRROR_VARIABLE in caught.value.hint


def fake_apt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs that write their verb to a log and print the content of files."""
    programs = folder / "programs"
    programs.mkdir()
    for name in ("apt-get", "apt-cache"):
        script = programs / name
        script.write_text(
            f"#!/bin/sh\nwhile [ $# -gt 0 ]; do case $1 in --config-file) shift 2;; --*) shift;; "
            f"*) break;; esac; done\ncd {folder}\necho {name} $1 >> log\n"
            f"cat {name}-$1.err >&2\ncat {name}-$1\nexit $(cat {name}-$1.status || echo 0)\n"
        )
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def apt_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a fake apt with one mirror that has all suites."""
    folder = tmp_path / "fake"
    folder.mkdir()
    fake_apt(folder, monkeypatch)
    monkeypatch.setenv(MIRROR_VARIABLE, MIRROR)
    answer(folder, SUITES)
    return folder


def answer(folder: Path, suites: tuple[str, ...], error: str = "") -> None:
    lines = [f"Get:1 {MIRROR.rstrip('/')} {suite} InRelease [1 kB]\n" for suite in suites]
    (folder / "apt-get-update").write_text("".join(lines))
    (folder / "apt-get-update.err").write_text(error)
    (folder / "apt-get-update.status").write_text("100" if error else "0")


def log(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines() if (folder / "log").exists() else []


def test_the_private_state(apt_folder: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with open_apt(store, SilentProgress()):
        pass
    root = store.root / "apt"
    sources = (root / "sources.list").read_text().splitlines()
    assert [line.split("]")[1].split() for line in sources] == [
        [MIRROR, suite, "main"] for suite in SUITES
    ]
    config = (root / "apt.conf").read_text()
    assert f'Dir::State::status "{root}/state/status"' in config
    for setting in (
        *("APT::Get::AllowUnauthenticated", "Acquire::AllowInsecureRepositories"),
        *("Acquire::AllowDowngradeToInsecureRepositories", "Acquire::AllowWeakRepositories"),
    ):
        assert f'{setting} "false";' in config
    assert "trusted" not in config + "".join(sources)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with open_apt(store, SilentProgress()):
        pass
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert log(apt_folder) == ["apt-get update"]


def test_lists_are_fetched_again_when_old_or_from_elsewhere(
    apt_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    with open_apt(store, SilentProgress()) as apt:
        assert not apt.refresh(3600)
        old = time.time() - 7200
        os.utime(store.root / "apt" / "updated", (old, old))
        assert apt.refresh(3600)
        assert not apt.refresh(3600)
    assert len(log(apt_folder)) == 2
    monkeypatch.setenv(MIRROR_VARIABLE, "http://other.invalid/debian")
    with open_apt(store, SilentProgress()):
        pass
    assert len(log(apt_folder)) == 3


def test_a_suite_that_the_mirror_lacks(apt_folder: Path, tmp_path: Path) -> None:
    answer(apt_folder, SUITES[:-1], "E: The repository has no Release file.\n")
    listener = Listener()
    with open_apt(Store(tmp_path / "store"), listener):
        pass
    assert listener.notes[-1] == (
        "the mirror has no package list of experimental: E: The repository has no Release file."
    )


def test_no_network(apt_folder: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    answer(apt_folder, (), "E: Could not resolve\n")
    with (
        pytest.raises(UsageError, match="Could not resolve") as caught,
        open_apt(store, SilentProgress()),
    ):
        raise AssertionError
    assert "network" in caught.value.hint
    answer(apt_folder, SUITES)
    with open_apt(store, SilentProgress()):
        pass
    answer(apt_folder, (), "E: Could not resolve\n")
    listener = Listener()
    with open_apt(store, listener) as apt:
        assert not apt.refresh(0.0)
    assert "using the old ones" in listener.notes[-1]


def test_a_search(apt_folder: Path, tmp_path: Path) -> None:
    (apt_folder / "apt-cache-pkgnames").write_text("linux-image-cloud-amd64\nother\n")
    (apt_folder / "apt-cache-madison").write_text(MADISON)
    (apt_folder / "apt-cache-show").write_text(SHOW)
    with open_apt(Store(tmp_path / "store"), SilentProgress()) as apt:
        assert apt.search("linux-.*") == (
            Package("linux-base-7.3-cloud-amd64", "7.3~rc7-1~exp1", "experimental", 357680, "1b4a"),
            Package("linux-image-cloud-amd64", "7.2.13-1", "sid", 1916, "b47a"),
        )
        assert apt.search("nothing") == ()


def test_a_closure(apt_folder: Path, tmp_path: Path) -> None:
    rows = (("cxl", "81-1", "trixie"), ("cxl", "82-1", "trixie"), ("cxl", "81-1", "sid"),
            ("libc6", "2.41-12+deb13u4", "trixie"))  # fmt: skip
    address = "http://mirror.invalid/debian"
    (apt_folder / "apt-get-install").write_text(SIMULATION)
    (apt_folder / "apt-cache-madison").write_text(
        "".join(f"{name} | {version} | {address} {suite}/main amd64 Packages\n"
                for name, version, suite in rows)
    )  # fmt: skip
    (apt_folder / "apt-cache-show").write_text(
        "".join(f"Package: {name}\nVersion: {version}\nSize: 1\nSHA256: 1a\n\n"
                for name, version, _ in rows)
    )  # fmt: skip
    with open_apt(Store(tmp_path / "store"), SilentProgress()) as apt:
        chosen = apt.closure(["cxl"], "trixie")
        assert [(package.name, package.version, package.suite) for package in chosen] == [
            rows[0], rows[3],
        ]  # fmt: skip
        (apt_folder / "apt-get-install.err").write_text("E: Unable to locate package cxl\n")
        (apt_folder / "apt-get-install.status").write_text("100")
        with pytest.raises(UsageError, match="not installable from trixie: E: Unable to locate"):
            apt.closure(["cxl"], "trixie")


def test_downloads(apt_folder: Path, tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    requested = (Package("b", "1:2-1", "sid", 5, ""), Package("a", "1", "sid", 5, ""))
    apt = Apt(Store(tmp_path), SilentProgress())
    with pytest.raises(CommandError, match="left no file of b"):
        apt.download(requested, into, "things")
    for name in ("a_1_all.deb", "b_1%3a2-1_amd64.deb", "a_12_all.deb"):
        (into / name).touch()
    assert [path.name for path in apt.download(requested, into, "things")] == [
        "b_1%3a2-1_amd64.deb",
        "a_1_all.deb",
    ]
    (apt_folder / "apt-get-download.err").write_text("E: Failed to fetch x  404  Not Found\n")
    (apt_folder / "apt-get-download.status").write_text("100")
    with pytest.raises(CommandError, match="cannot fetch things:\nE: Failed to fetch"):
        apt.download(requested, into, "things")


def test_a_tarball_is_compared_with_the_signed_list(apt_folder: Path, tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    (into / "linux_7.2.orig.tar.xz").write_bytes(b"upstream")
    package = SourcePackage(
        "linux", "7.2-1", "linux_7.2.orig.tar.xz", 8, hashlib.sha256(b"upstream").hexdigest()
    )
    apt = Apt(Store(tmp_path), SilentProgress())
    # The mirror lacks the rest of the package.
    (apt_folder / "apt-get-source.status").write_text("100")
    assert apt.download_source(package, into, "things") == into / package.tarball
    (into / package.tarball).write_bytes(b"another")
    with pytest.raises(CommandError, match="has another checksum"):
        apt.download_source(package, into, "things")
    (into / package.tarball).unlink()
    with pytest.raises(CommandError, match="cannot fetch things"):
        apt.download_source(package, into, "things")


def test_no_registry_is_named() -> None:
    for module in (apt, mirror):
        assert "://" not in Path(str(module.__file__)).read_text()
