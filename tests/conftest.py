# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import platform
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from bench_fixtures import Bench, copy_store
from cli_fixtures import FIT_QEMU, RELEASE, Ended, Harness
from hypothesis import settings
from layouts import layout_of

from harness.cli.main import main
from harness.guest.initramfs import BOOT_MODULES, SCENARIO_MODULES
from harness.runs.prepare import Host

# Whoever started the tests in the background may have had these ignored, for all that they start.
for number, handler in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# No deadline: a busy host must not fail a test. No database: a run leaves nothing behind.
settings.register_profile("unit", deadline=None, database=None, max_examples=60)
settings.load_profile("unit")


# These start programs, or try very many inputs.
SLOW = {
    *("test_avocado", "test_bisect_programs", "test_bisection", "test_build", "test_cli_bisect"),
    *("test_cli_list", "test_crowd", "test_error_messages", "test_fetch", "test_campaign"),
    "test_draw",
    *("test_hostile_builds", "test_hostile_observations", "test_hostile_sources"),
    *("test_nightly_programs", "test_nightly_resumed", "test_closed_pipe"),
    *("test_process", "test_pytest_plugin", "test_pytest_progress"),
    *("test_report_in_chromium", "test_report_runs_in_chromium"),
    *("test_style", "test_watched_pool", "test_worker_pool"),
}


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Everything that the harness writes to by itself, in one folder; the work folder in it."""
    for variable, name in (
        ("HOME", "home"),
        ("HARNESS_STORE", "store"),
        ("HARNESS_EVIDENCE", "evidence"),
        ("TMPDIR", "tmp"),
    ):
        monkeypatch.setenv(variable, str(tmp_path / name))
    for name in ("home", "tmp", "work"):
        (tmp_path / name).mkdir()
    for variable in ("HARNESS_QEMU", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "debian"})
    monkeypatch.chdir(tmp_path / "work")
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def harness(capsys: pytest.CaptureFixture[str]) -> Harness:
    """Runs a command of the harness in this process, as its entry point does."""

    def run(*words: object) -> Ended:
        capsys.readouterr()
        code: object = 0
        try:
            main.main([str(word) for word in words], prog_name="harness")
        except SystemExit as ended:
            code = ended.code or 0
        out, err = capsys.readouterr()
        assert isinstance(code, int)
        return Ended(code, out, err)

    return run


@pytest.fixture
def no_guest(monkeypatch: pytest.MonkeyPatch, room: Path) -> None:
    """A machine that has a QEMU and the guest's programs; no guest and no download may start."""

    def start(*_arguments: object, **_more: object) -> NoReturn:
        pytest.fail("a guest or a download was about to be started")

    monkeypatch.setattr("harness.runs.prepare.require_qemu", lambda _binary: FIT_QEMU)
    monkeypatch.setattr(
        "harness.runs.prepare.machine_layout", lambda _qemu, profile, _remember: layout_of(profile)
    )
    monkeypatch.setattr(
        "harness.runs.prepare.userland", lambda *_arguments: room / "userland" / "root"
    )
    (room / "userland" / "root").mkdir(parents=True)
    monkeypatch.setattr("harness.guest.initramfs._add_programs", lambda *_arguments: None)
    monkeypatch.setattr("harness.kernels.build.depmod.module_indexes", lambda *_arguments: {})
    monkeypatch.setattr("harness.runs.boot.running_qemu", start)
    monkeypatch.setattr("harness.kernels.debian.packages.open_apt", start)


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    """The SPEC of a built tree without any code: its drivers are built in, but for fat."""
    tree = tmp_path / "linux"
    image = bytearray(0x400)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x100)
    image[0x300:0x380] = f"{RELEASE} (me@here) #1 SMP".encode().ljust(0x80, b"\0")
    modules = "".join(f"kernel/{name}.ko\n" for name in (*BOOT_MODULES, *SCENARIO_MODULES))
    for name, content in {
        "arch/x86/boot/bzImage": bytes(image),
        ".config": b"CONFIG_CXL_REGION=y\n",
        "include/config/kernel.release": f"{RELEASE}\n".encode(),
        "modules.builtin": modules.encode(),
        "modules.order": b"fs/fat/fat.o\n",
        "fs/fat/fat.ko": f"name=fat\0vermagic={RELEASE} SMP\0".encode(),
    }.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    return f"image:{tree}"


@pytest.fixture(scope="session")
def options(request: pytest.FixtureRequest) -> tuple[str, ...]:
    given = ["--accel", request.config.getoption("accel")]
    if request.config.getoption("qemu"):
        given += ["--qemu", request.config.getoption("qemu")]
    return tuple(given)


@pytest.fixture(scope="session")
def full_store(harness_host: Host, options: tuple[str, ...]) -> Path:
    """The user's store, which has all that a run of exact_cover needs."""
    program = Path(sys.executable).with_name("harness")
    if not program.exists():
        pytest.skip("the harness is not installed beside this Python")
    words = [str(program), "boot", "--print", "exact_cover", *options]
    subprocess.run(words, check=True, capture_output=True, timeout=1800)
    return harness_host.store.root


@pytest.fixture
def bench(full_store: Path, options: tuple[str, ...], tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {
        "TMPDIR": str(tmp_path / "tmp"),
        "HARNESS_STORE": str(tmp_path / "store"),
    }
    environment.pop("HARNESS_EVIDENCE", None)
    copy_store(full_store, tmp_path / "store")
    program = Path(sys.executable).with_name("harness")
    bench = Bench(tmp_path, program, options, environment)
    yield bench
    for machine in bench.machines():  # only after a test that failed
        os.kill(machine, signal.SIGKILL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the slow ones; leave the long ones to those who ask for them, with -m soak."""
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
    if "soak" in config.getoption("-m"):
        return
    long = [item for item in items if item.get_closest_marker("soak")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]
