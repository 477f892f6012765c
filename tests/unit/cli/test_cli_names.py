# SPDX-License-Identifier: GPL-2.0-or-later
"""Names on the command line: scenarios, profiles, kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cli_fixtures import Harness, assert_one_message, files, use_verdicts

from harness.contract.result import Verdict
from harness.core.cache import Store
from harness.core.paths import SCENARIOS
from harness.debian.apt import Package

pytestmark = pytest.mark.usefixtures("room")


def scenario_file(name: str, old: str = "", new: str = "") -> str:
    text = (SCENARIOS / "exact_cover.yaml").read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))
    return name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("run",), "Missing argument 'SCENARIO...'"),
        (("boot",), "Missing argument 'PROFILE|SCENARIO'"),
        (("frobnicate",), "No such command 'frobnicate'"),
        (("run", "exact_cover", "--frobnicate"), "No such option"),
        (("run", "exact_cover", "--policy", "per_rage"), "'per_rage' is not one of 'per_range'"),
        (("run", "exact_cover", "--accel", "hvf"), "'hvf' is not one of 'auto', 'kvm', 'tcg'"),
        (("run", "exact_cover", "--timeout", "0"), "--timeout"),
        (("run", "exact_cover", "--timeout", "soon"), "--timeout"),
    ],
)
def test_a_wrong_command_line(
    harness: Harness, room: Path, words: tuple[str, ...], expected: str
) -> None:
    ended = harness(*words)
    assert (ended.code, ended.out) == (2, "")
    assert "Try 'harness" in ended.err
    assert expected in ended.err
    assert ended.err.count("Error: ") == 1
    assert "Traceback" not in ended.err
    assert files(room) == set()


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize("seconds", ["inf", "nan", "1e300"])
def test_a_timeout_that_is_not_a_number_of_seconds(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    use_verdicts(monkeypatch, Verdict.PASS)
    ended = harness("run", "exact_cover", "--timeout", seconds)
    assert ended.code == 2
    assert "--timeout" in ended.err


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("run", "exact_covr"), ("'exact_covr'", "did you mean exact_cover?")),
        (("run", "exact_cover", "exact_covr"), ("'exact_covr'", "did you mean exact_cover?")),
        (("run", "zzz"), ("'zzz'", "exact_cover, ")),
        (("run", ""), ("''", "exact_cover, ")),
        (("run", "nowhere/exact_cover.yaml"), ("nowhere/exact_cover.yaml", "harness list")),
        (("run", "."), ("'.'",)),
        (("run", "./"), ("./",)),
        (("boot", "zzz"), ("'zzz'", "one_window", "exact_cover")),
        (("boot", "exact_covr"), ("'exact_covr'", "did you mean exact_cover?")),
        (("boot", "--print", "nowhere.yaml"), ("nowhere.yaml",)),
    ],
)
def test_a_scenario_that_does_not_exist(
    harness: Harness, room: Path, words: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert_one_message(harness(*words), *expected)
    assert files(room) == set()


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize("print_only", [(), ("--print",)])
def test_a_misspelt_profile_to_boot(
    harness: Harness, room: Path, print_only: tuple[str, ...]
) -> None:
    ended = harness("boot", "one_windw", *print_only)
    assert_one_message(ended, "'one_windw'", "did you mean one_window?")
    assert ended.err.count("did you mean") == 1
    assert files(room) == set()


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize("command", ["run", "boot"])
def test_a_misspelt_profile_in_a_scenario(harness: Harness, room: Path, command: str) -> None:
    name = scenario_file("mine.yaml", "profile: one_window", "profile: one_windw")
    before = files(room)
    ended = harness(command, name)
    line = 1 + Path(name).read_text().splitlines().index("profile: one_windw")
    assert_one_message(ended, f"mine.yaml:{line}: profile: ", "did you mean one_window?")
    assert files(room) == before


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ("mine.yaml", "empty")),
        (b"summary: [1,\nsource: x\n", ("mine.yaml:", "not valid YAML")),
        (b"summary: x\n\tsource: y\n", ("mine.yaml:2: not valid YAML", "tab")),
        (b"summary: x\nsummary: y\n", ("mine.yaml:2: summary", "duplicate key")),
        (b"summary: caf\xe9\n", ("mine.yaml", "not UTF-8", "UTF-8")),
        (b"\xff\xfes\0u\0m\0", ("mine.yaml", "not UTF-8")),
        (b"summary: \x01\n", ("mine.yaml", "not valid YAML")),
        (b"sumary: x\n", ("mine.yaml:1", "sumary", "did you mean summary?")),
        (b"- a\n- b\n", ("mine.yaml", "not a mapping")),
    ],
)
def test_an_invalid_scenario_file(
    harness: Harness, room: Path, content: bytes, expected: tuple[str, ...]
) -> None:
    Path("mine.yaml").write_bytes(content)
    before = files(room)
    assert_one_message(harness("run", "mine.yaml"), *expected)
    assert files(room) == before


def test_a_scenario_that_may_not_be_read(harness: Harness) -> None:
    name = scenario_file("mine.yaml")
    Path(name).chmod(0)
    if os.access(name, os.R_OK):
        pytest.skip("this user may read every file")
    assert_one_message(harness("run", name), "mine.yaml", "Permission denied")


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("debain:7.2", ("'debain:7.2'", "debian:VERSION")),
        ("debian:", ("'debian:'", "debian:VERSION")),
        ("debian", ("'debian'", "debian:VERSION")),
        ("7.2", ("'7.2'", "debian:VERSION")),
        ("", ("''", "debian:VERSION")),
        ("image:", ("'image:'", "image:PATH")),
        ("image:/nowhere/linux", ("image:/nowhere/linux", "no such file")),
        ("image:.", ("image:.", "the folder has no kernel")),
    ],
)
@pytest.mark.parametrize("command", ["run", "boot"])
def test_an_invalid_kernel(
    harness: Harness, room: Path, command: str, spec: str, expected: tuple[str, ...]
) -> None:
    assert_one_message(harness(command, "exact_cover", "--kernel", spec), *expected)
    assert files(room) == set()


class Archive:
    """A package archive with one kernel and up-to-date lists."""

    @contextmanager
    def open(self, _store: Store, _progress: object) -> Iterator[Archive]:
        yield self

    def refresh(self, _max_age: float) -> bool:
        return False

    def search(self, _pattern: str) -> tuple[Package, ...]:
        return (Package("linux-image-6.18.1-cloud-amd64", "6.18.1-1", "sid", 9000000, "hash"),)


@pytest.mark.usefixtures("no_guest")
def test_a_version_that_debian_does_not_have(
    harness: Harness, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.kernels.debian.packages.open_apt", Archive().open)
    monkeypatch.setattr(
        "harness.kernels.debian.packages.files_on_mirror", lambda *_: lambda _package: True
    )
    ended = harness("run", "exact_cover", "--kernel", "debian:99.9")
    note, _, message = ended.err.partition("\n")
    assert note == "querying the mirror for its kernels"
    assert_one_message(
        replace(ended, err=message),
        "debian:99.9",
        "no cloud-amd64 kernel of version 99.9",
        "6.18.1",
    )
    assert files(room) == set()


@pytest.mark.usefixtures("no_guest")
def test_a_module_that_the_kernel_does_not_have(harness: Harness, room: Path, kernel: str) -> None:
    name = scenario_file("mine.yaml", "kmem, dax_cxl", "kmem, fatt, dax_cxl")
    before = files(room)
    ended = harness("run", name, "--kernel", kernel)
    assert_one_message(ended, "fatt is neither a module", "close names: fat", "guest.load")
    left = files(room) - before
    assert {path.relative_to(room).parts[:2] for path in left} <= {("store", "initramfs")}


@pytest.mark.usefixtures("no_guest")
def test_a_kernel_without_a_required_option(harness: Harness, room: Path, kernel: str) -> None:
    needs = "kernel: {config: {CXL_REGION: n}}\nguest:\n"
    name = scenario_file("mine.yaml", "guest:\n", needs)
    Path(name).write_text(Path(name).read_text().replace("owner: dax_cxl", "owner: dax_hmem"))
    ended = harness("run", name, "--kernel", kernel, "--accel", "tcg")
    assert_one_message(ended, "CXL_REGION=n", "CXL_REGION=y")
    assert not (room / "evidence").exists()


@pytest.mark.usefixtures("no_guest")
def test_a_kernel_without_a_driver_is_not_one_to_run_the_scenario_on(
    harness: Harness, room: Path, kernel: str
) -> None:
    built_in = Path(kernel.removeprefix("image:")) / "modules.builtin"
    built_in.write_text(built_in.read_text().replace("kernel/dax_cxl.ko\n", ""))
    ended = harness("run", "exact_cover", "--kernel", kernel, "--accel", "tcg")
    assert_one_message(ended, "no dax_cxl (DEV_DAX_CXL is off)", "--load")
    ended = harness("run", "no_region", "--kernel", kernel, "--accel", "tcg", "--load", "none")
    assert_one_message(ended, "removes cxl_pci", "built in")
    assert not (room / "evidence").exists()


@pytest.mark.usefixtures("no_guest")
def test_an_owner_against_the_contract_is_refused(harness: Harness, kernel: str) -> None:
    name = scenario_file("mine.yaml", "owner: dax_cxl", "owner: nobody")
    ended = harness("run", name, "--kernel", kernel)
    assert_one_message(
        ended, "mine.yaml:", "expect.per_range.sr0", "stated as nobody", "dax_cxl/system_ram"
    )
