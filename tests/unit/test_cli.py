# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line without any guest: what it refuses, how it says so, and its exit codes."""

from __future__ import annotations

import functools
import json
import os
import platform
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from layouts import layout_of

from harness.apt import Package
from harness.cli import main
from harness.doctor import Check
from harness.errors import InconclusiveError, MachineLostError, UsageError
from harness.guest.initramfs import BOOT_MODULES, SCENARIO_MODULES
from harness.machine import accelerator
from harness.machine.accelerator import AskedAccelerator, choose_accelerator
from harness.machine.qemu import running_qemu
from harness.machine.qemu_binary import REQUIRED_FEATURES, QemuBinary
from harness.machine.qemu_command import qemu_argv
from harness.model.verdict import RunResult, Verdict
from harness.paths import PROJECT, SCENARIOS
from harness.progress import SilentProgress
from harness.runs.catalogue import (
    Case,
    load_known_issues,
    load_profile,
    profile_names,
    scenario_names,
)
from harness.runs.prepare import Host
from harness.store import Store

RELEASE = "7.2.0-made-up"
FIT_QEMU = QemuBinary(
    path=Path("/nowhere/qemu-system-x86_64"),
    version=(10, 0, 2),
    version_text="10.0.2 (Fake)",
    identity="0" * 64,
    seccomp=True,
    features=REQUIRED_FEATURES,
)


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


Harness = Callable[..., Ended]


@pytest.fixture(autouse=True)
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

    def start(*_arguments: object) -> NoReturn:
        pytest.fail("a guest or a download was about to be started")

    monkeypatch.setattr("harness.runs.prepare.require_qemu", lambda _binary: FIT_QEMU)
    monkeypatch.setattr(
        "harness.runs.prepare.machine_layout", lambda _qemu, profile, _remember: layout_of(profile)
    )
    monkeypatch.setattr(
        "harness.runs.prepare.userland", lambda *_arguments: room / "userland" / "root"
    )
    monkeypatch.setattr("harness.guest.initramfs._add_programs", lambda *_arguments: None)
    monkeypatch.setattr("harness.runs.run_scenario.booted_guest", start)
    monkeypatch.setattr("harness.kernels.debian.open_apt", start)


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


def files(room: Path) -> set[Path]:
    """All files below a folder, and the evidence folders of runs."""
    found = {path for path in room.rglob("*") if not path.is_dir()}
    return found | set((room / "evidence").glob("*"))


def assert_one_message(ended: Ended, *words: str, code: int = 2) -> None:
    """The command has ended with one message and its hint, which contain these words."""
    assert "Traceback" not in ended.err
    assert (ended.code, ended.out) == (code, "")
    first, *rest = ended.err.splitlines()
    assert first.startswith("harness: ")
    assert not [line for line in rest if line.startswith("harness: ")]
    assert [line.startswith("  hint: ") for line in rest].count(True) == 1
    assert rest[-1].startswith("  hint: ")
    assert len(rest[-1]) > len("  hint: ")
    for word in words:
        assert word in ended.err


# --- what is named on the command line -----------------------------------------------------------


def scenario_file(name: str, old: str = "", new: str = "") -> str:
    text = (SCENARIOS / "exact_cover.yaml").read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))
    return name


@pytest.mark.parametrize(
    ("words", "said"),
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
    harness: Harness, room: Path, words: tuple[str, ...], said: str
) -> None:
    ended = harness(*words)
    assert (ended.code, ended.out) == (2, "")
    assert "Try 'harness" in ended.err
    assert said in ended.err
    assert ended.err.count("Error: ") == 1
    assert "Traceback" not in ended.err
    assert files(room) == set()


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize("seconds", ["inf", "nan", "1e300"])
def test_a_timeout_that_no_clock_can_count(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    use_verdicts(monkeypatch, Verdict.PASS)
    ended = harness("run", "exact_cover", "--timeout", seconds)
    assert ended.code == 2
    assert "--timeout" in ended.err


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize(
    ("words", "said"),
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
    harness: Harness, room: Path, words: tuple[str, ...], said: tuple[str, ...]
) -> None:
    assert_one_message(harness(*words), *said)
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
    ("content", "said"),
    [
        (b"", ("mine.yaml", "empty")),
        (b"summary: [1,\nsource: x\n", ("mine.yaml:", "not valid YAML")),
        (b"summary: x\n\tsource: y\n", ("mine.yaml:2: not valid YAML", "tab")),
        (b"summary: x\nsummary: y\n", ("mine.yaml:2: summary", "twice")),
        (b"summary: caf\xe9\n", ("mine.yaml", "not UTF-8", "UTF-8")),
        (b"\xff\xfes\0u\0m\0", ("mine.yaml", "not UTF-8")),
        (b"summary: \x01\n", ("mine.yaml", "not valid YAML")),
        (b"sumary: x\n", ("mine.yaml:1", "sumary", "did you mean summary?")),
        (b"- a\n- b\n", ("mine.yaml", "not a mapping")),
    ],
)
def test_a_file_that_is_no_scenario(
    harness: Harness, room: Path, content: bytes, said: tuple[str, ...]
) -> None:
    Path("mine.yaml").write_bytes(content)
    before = files(room)
    assert_one_message(harness("run", "mine.yaml"), *said)
    assert files(room) == before


def test_a_scenario_that_may_not_be_read(harness: Harness) -> None:
    name = scenario_file("mine.yaml")
    Path(name).chmod(0)
    if os.access(name, os.R_OK):
        pytest.skip("this user may read every file")
    assert_one_message(harness("run", name), "mine.yaml", "Permission denied")


# --- kernels -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("debain:7.2", ("'debain:7.2'", "debian:VERSION")),
        ("debian:", ("'debian:'", "debian:VERSION")),
        ("debian", ("'debian'", "debian:VERSION")),
        ("7.2", ("'7.2'", "debian:VERSION")),
        ("", ("''", "debian:VERSION")),
        ("image:", ("'image:'", "image:PATH")),
        ("image:/nowhere/linux", ("image:/nowhere/linux", "no such file")),
        ("image:.", ("image:.", "no kernel in it")),
    ],
)
@pytest.mark.parametrize("command", ["run", "boot"])
def test_a_kernel_that_cannot_be_meant(
    harness: Harness, room: Path, command: str, spec: str, said: tuple[str, ...]
) -> None:
    assert_one_message(harness(command, "exact_cover", "--kernel", spec), *said)
    assert files(room) == set()


class Archive:
    """A package archive with one kernel, whose lists are as new as can be."""

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
    monkeypatch.setattr("harness.kernels.debian.open_apt", Archive().open)
    ended = harness("run", "exact_cover", "--kernel", "debian:99.9")
    assert_one_message(ended, "debian:99.9", "no cloud-amd64 kernel of version 99.9", "6.18.1")
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
def test_a_kernel_that_was_built_otherwise(harness: Harness, room: Path, kernel: str) -> None:
    name = scenario_file("mine.yaml", "guest:\n", "kernel: {config: {CXL_REGION: n}}\nguest:\n")
    ended = harness("run", name, "--kernel", kernel, "--accel", "tcg")
    assert_one_message(ended, "CXL_REGION=n", "CXL_REGION=y")
    assert not (room / "evidence").exists()


# --- where results go ----------------------------------------------------------------------------


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize("name", ["nowhere/results.json", "file/results.json"])
def test_results_that_cannot_be_written(harness: Harness, room: Path, name: str) -> None:
    Path("file").touch()
    before = files(room)
    ended = harness("run", "exact_cover", "--json", name)
    assert_one_message(ended, f"{name}: cannot be written", "--json")
    assert files(room) == before


@pytest.mark.usefixtures("no_guest")
def test_results_to_a_folder(harness: Harness, room: Path) -> None:
    Path("results.json").mkdir()
    ended = harness("run", "exact_cover", "--json", "results.json")
    assert (ended.code, ended.out) == (2, "")
    assert "results.json" in ended.err
    assert "--json" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.usefixtures("no_guest")
def test_results_to_a_file_that_may_not_be_written(harness: Harness) -> None:
    Path("results.json").write_text("old")
    Path("results.json").chmod(0o400)
    if os.access("results.json", os.W_OK):
        pytest.skip("this user may write every file")
    ended = harness("run", "exact_cover", "--json", "results.json")
    assert_one_message(ended, "results.json: cannot be written", "--json")
    assert Path("results.json").read_text() == "old"


@pytest.mark.usefixtures("no_guest")
def test_results_of_a_run_that_never_was(harness: Harness, room: Path) -> None:
    """Neither an empty file for who reads results, nor the loss of those of an earlier run."""
    kernel = "image:/nowhere/linux"
    assert harness("run", "exact_cover", "--kernel", kernel, "--json", "new.json").code == 2
    Path("old.json").write_text("[]\n")
    assert harness("run", "exact_cover", "--kernel", kernel, "--json", "old.json").code == 2
    assert Path("old.json").read_text() == "[]\n"
    assert files(room) == {room / "work" / "old.json"}


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize("place", ["file/below", "/proc/nowhere"])
@pytest.mark.parametrize("by_variable", [False, True])
def test_evidence_that_cannot_be_written(
    harness: Harness,
    room: Path,
    kernel: str,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    by_variable: bool,
) -> None:
    Path("file").touch()
    words: tuple[str, ...] = ("--evidence", place)
    if by_variable:
        monkeypatch.setenv("HARNESS_EVIDENCE", place)
        words = ()
    ended = harness("run", "exact_cover", "--kernel", kernel, "--accel", "tcg", *words)
    assert_one_message(ended, place, "evidence cannot be written", "--evidence", "HARNESS_EVIDENCE")
    assert Path("file").read_bytes() == b""


@pytest.mark.usefixtures("no_guest")
def test_evidence_to_a_file(harness: Harness, room: Path) -> None:
    Path("file").touch()
    ended = harness("run", "exact_cover", "--evidence", "file")
    assert (ended.code, ended.out) == (2, "")
    assert "--evidence" in ended.err
    assert files(room) == {room / "work" / "file"}


@pytest.mark.usefixtures("no_guest")
def test_a_store_that_cannot_be_made(
    harness: Harness, room: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").touch()
    before = files(room)
    monkeypatch.setenv("HARNESS_STORE", str(Path("file/store").absolute()))
    ended = harness("run", "exact_cover", "--kernel", kernel)
    assert_one_message(ended, "file/store", "the store cannot be made", "HARNESS_STORE")
    assert files(room) == before


# --- QEMU ----------------------------------------------------------------------------------------

FAKE_QEMU = """#!/bin/sh
case "$*" in
  --version) echo "QEMU emulator version {version}" ;;
  "-device {absent},help") echo "Device '{absent}' not found" >&2 ;;
  "-device cxl-type3,help") echo "cxl-type3 options:"; echo "  volatile-memdev=<link>" ;;
  "-device pxb-cxl,help") echo "pxb-cxl options:"; echo "  hdm_for_passthrough=<bool>" ;;
  "-device "*,help) name=${{2%,help}}; echo "$name options:" ;;
  "-netdev help") echo user ;;
  *) read answer ;;
esac
"""


def fake_qemu(version: str = "10.0.2", absent: str = "nothing") -> Path:
    return program(FAKE_QEMU.format(version=version, absent=absent))


def program(text: str) -> Path:
    path = Path("fake-qemu").absolute()
    path.write_text(text)
    path.chmod(0o755)
    return path


def make_nothing() -> Path:
    return Path("nowhere/qemu").absolute()


def make_a_text_file() -> Path:
    fake_qemu().chmod(0o644)
    return Path("fake-qemu").absolute()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (make_nothing, ("there is no such program", "10.0 or later")),
        (make_a_text_file, ("there is no such program",)),
        (functools.partial(fake_qemu, "7.2.22"), ("QEMU 7.2.22 is too old", "10.0 or later")),
        (functools.partial(fake_qemu, "10.0.2", "cxl-type3"), ("built without", "cxl-type3")),
        (functools.partial(fake_qemu, "10.0.2", "pxb-cxl"), ("built without", "pxb-cxl")),
        (functools.partial(program, "#!/bin/sh\necho hello\n"), ("as QEMU does: hello",)),
        (functools.partial(program, "#!/bin/sh\nexit 7\n"), ("status 7",)),
    ],
    ids=["absent", "not a program", "old", "no type 3", "no bridge", "another", "broken"],
)
@pytest.mark.parametrize("by_variable", [False, True])
@pytest.mark.parametrize("command", ["run", "boot"])
def test_a_qemu_that_will_not_do(
    harness: Harness,
    room: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], Path],
    said: tuple[str, ...],
    by_variable: bool,
    command: str,
) -> None:
    qemu = make()
    before = files(room)
    words: tuple[object, ...] = ("--qemu", qemu)
    if by_variable:
        monkeypatch.setenv("HARNESS_QEMU", str(qemu))
        words = ()
    ended = harness(command, "exact_cover", *words)
    assert_one_message(ended, str(qemu), *said, "apt-get install qemu-system-x86", "HARNESS_QEMU")
    assert files(room) == before


def test_the_option_wins_over_the_variable(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_QEMU", str(fake_qemu("7.2.22")))
    assert_one_message(harness("run", "exact_cover", "--qemu", "/nowhere/q"), "/nowhere/q: there")


# --- KVM or TCG ----------------------------------------------------------------------------------

# Takes the monitor's commands as QEMU does, and prints on the console when it is told to go on.
FAKE_MONITOR = """#!{python}
import json, re, socket, sys
words = " ".join(sys.argv)
def inherited(name):
    return socket.socket(fileno=int(re.search(rf"id={{name}},fd=([0-9]+)", words)[1]))
monitor = inherited("monitor")
monitor.sendall(b'{{"QMP": {{"version": {{}}, "capabilities": []}}}}\\r\\n')
while said := monitor.recv(4096):  # one command at a time, without an end of line
    request = json.loads(said)
    answer = {{"return": {{}}}} | {{name: request[name] for name in ("id",) if name in request}}
    monitor.sendall(json.dumps(answer).encode() + b"\\r\\n")
    if request["execute"] == "cont" and {says!r}:
        inherited("console").sendall({says!r})
        sys.exit()
"""


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "kvm"
    path.touch()
    return path


def a_host(room: Path) -> Host:
    """What another run on this machine would have: nothing but the store is shared."""
    return Host(FIT_QEMU, Store(room / "store"), SilentProgress(), "auto")


def choose(
    room: Path, device: Path, asked: AskedAccelerator = "auto", qemu: QemuBinary = FIT_QEMU
) -> tuple[str, str]:
    remember = a_host(room).remember("accelerators")
    nothing = Path("/nowhere")
    return choose_accelerator(asked, qemu, nothing, nothing, remember, device)


def qemu_at(path: Path) -> QemuBinary:
    return QemuBinary(path, (10, 0, 2), "10.0.2", "1" * 64, False, REQUIRED_FEATURES)


def forbid_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def trial(*_arguments: object) -> NoReturn:
        pytest.fail("KVM was tried")

    monkeypatch.setattr(accelerator, "_try_kvm", trial)


def test_without_a_kvm_device_tcg_runs_and_says_so(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_trial(monkeypatch)
    device = room / "no-kvm"
    assert choose(room, device) == ("tcg", f"{device} is not there: using TCG")
    with pytest.raises(UsageError, match="no-kvm is not there") as caught:
        choose(room, device, "kvm")
    assert "--accel tcg" in caught.value.hint
    assert choose(room, device, "tcg") == ("tcg", "")
    assert files(room) == set()


def test_a_kvm_device_of_others(room: Path, device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_trial(monkeypatch)
    monkeypatch.setattr(os, "access", lambda path, _mode: path != device)
    assert choose(room, device) == ("tcg", f"{device} may not be opened by this user: using TCG")
    with pytest.raises(UsageError, match="may not be opened by this user") as caught:
        choose(room, device, "kvm")
    assert "group kvm" in caught.value.hint


@pytest.mark.parametrize("failure", ["", "no line came"])
def test_kvm_is_tried_once_and_the_answer_is_kept(
    room: Path, device: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    tried: list[QemuBinary] = []

    def trial(qemu: QemuBinary, _kernel: Path, _initramfs: Path) -> str:
        tried.append(qemu)
        return failure

    monkeypatch.setattr(accelerator, "_try_kvm", trial)
    first = choose(room, device)
    assert first == (
        ("tcg", f"KVM does not boot a kernel here ({failure}): using TCG")
        if failure
        else ("kvm", "")
    )
    assert [choose(room, device) for _ in range(3)] == [first] * 3
    assert tried == [FIT_QEMU]
    if failure:
        with pytest.raises(UsageError, match=f"does not boot a kernel here: {failure}"):
            choose(room, device, "kvm")
        assert tried == [FIT_QEMU]
    another = qemu_at(FIT_QEMU.path)
    choose(room, device, qemu=another)
    assert tried == [FIT_QEMU, another]


def test_a_trial_that_is_interrupted_is_no_answer(
    room: Path, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(accelerator, "_try_kvm", interrupted)
    with pytest.raises(KeyboardInterrupt):
        choose(room, device)
    monkeypatch.setattr(accelerator, "_try_kvm", lambda *_arguments: "")
    assert choose(room, device) == ("kvm", "")


def test_a_kvm_on_which_qemu_dies(room: Path, device: Path) -> None:
    qemu = qemu_at(program("#!/bin/sh\necho failed to set MSR 0x10a >&2\nexit 1\n"))
    accel, note = choose(room, device, qemu=qemu)
    assert accel == "tcg"
    assert note == (
        "KVM does not boot a kernel here (QEMU ended with status 1: failed to set MSR 0x10a): "
        "using TCG"
    )


def test_a_kvm_on_which_no_kernel_prints_a_line(
    room: Path, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "_BOOT_SECONDS", 0.5)
    qemu = qemu_at(program(FAKE_MONITOR.format(python=sys.executable, says=b"")))
    accel, note = choose(room, device, qemu=qemu)
    assert accel == "tcg"
    assert "timed out after 0.5 s waiting for a kernel to boot under KVM" in note


def test_a_kvm_that_boots(room: Path, device: Path) -> None:
    says = b"[    0.000000] Linux version 7.2.0\r\n"
    qemu = qemu_at(program(FAKE_MONITOR.format(python=sys.executable, says=says)))
    assert choose(room, device, qemu=qemu) == ("kvm", "")
    assert list((room / "tmp").iterdir()) == []


def test_a_qemu_that_greets_and_says_no_more(room: Path) -> None:
    """As one does that is stopped, or on a host that swaps: no wait is without a deadline."""
    silent = FAKE_MONITOR.replace("    monitor.sendall", "    continue\n    monitor.sendall")
    qemu = qemu_at(program(silent.format(python=sys.executable, says=b"")))
    profile = load_profile("one_window")
    with (
        tempfile.TemporaryFile() as log,
        running_qemu(
            lambda control, _fd: qemu_argv(qemu, profile, "tcg", control=control), log
        ) as machine,
        time_limit(10, "connect_monitor goes on waiting"),
        pytest.raises(InconclusiveError),
    ):
        machine.connect_monitor(seconds=1.0)


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    def expired(_number: int, _frame: object) -> NoReturn:
        pytest.fail(what)

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("no_guest")
def test_kvm_that_was_asked_for_and_is_not_there(
    harness: Harness, room: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = room / "no-kvm"
    chooser = functools.partial(choose_accelerator, device=device)
    monkeypatch.setattr("harness.runs.prepare.choose_accelerator", chooser)
    ended = harness("run", "exact_cover", "--kernel", kernel, "--accel", "kvm")
    assert_one_message(ended, f"{device} is not there", "--accel tcg")
    assert not (room / "evidence").exists()


@pytest.mark.usefixtures("no_guest")
def test_the_note_about_kvm_comes_once(
    harness: Harness, room: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_arguments: object) -> NoReturn:
        raise MachineLostError("QEMU ended with status 1", hint="none")

    device = room / "no-kvm"
    chooser = functools.partial(choose_accelerator, device=device)
    monkeypatch.setattr("harness.runs.prepare.choose_accelerator", chooser)
    monkeypatch.setattr("harness.runs.run_scenario.booted_guest", lost)
    ended = harness("run", "exact_cover", "exact_cover", "--kernel", kernel)
    assert ended.err == f"{device} is not there: using TCG\n"
    assert ended.code == 3


# --- several scenarios, and results ---------------------------------------------------------------


def use_verdicts(monkeypatch: pytest.MonkeyPatch, *endings: Verdict | BaseException) -> None:
    left = list(endings)

    def run(_host: Host, case: Case, *_arguments: object, **_more: object) -> RunResult:
        ending = left.pop(0)
        if isinstance(ending, BaseException):
            raise ending
        return RunResult(
            scenario=case.name,
            kernel_spec="debian:7.2",
            policy="per_range",
            verdict=ending,
            reason="why",
        )

    monkeypatch.setattr("harness.runs.run_scenario.run_scenario", run)


PASS, FAIL, LOST, UNBUILT = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.UNBUILDABLE


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ((PASS,), 0),
        ((FAIL,), 1),
        ((LOST,), 3),
        ((UNBUILT,), 4),
        ((PASS, PASS), 0),
        ((PASS, FAIL), 1),
        ((FAIL, PASS), 1),
        ((PASS, LOST), 3),
        ((LOST, UNBUILT), 4),
        ((UNBUILT, LOST), 4),
        ((LOST, FAIL), 1),
        ((UNBUILT, FAIL, PASS, LOST), 1),
    ],
)
def test_the_exit_code_of_several_runs(
    harness: Harness,
    monkeypatch: pytest.MonkeyPatch,
    verdicts: tuple[Verdict, ...],
    code: int,
) -> None:
    use_verdicts(monkeypatch, *verdicts)
    ended = harness("run", *["exact_cover"] * len(verdicts), "--json", "results.json")
    assert (ended.code, ended.err) == (code, "")
    names = [line.split(" ")[0] for line in ended.out.splitlines() if "exact_cover on " in line]
    assert names == [verdict.name for verdict in verdicts]
    results = json.loads(Path("results.json").read_text())
    assert [one["verdict"] for one in results] == names
    if len(verdicts) > 1:
        summary = ended.out.splitlines()[-1]
        counts = {f"{names.count(name)} {name}" for name in names}
        assert set(summary.split(", ")) == counts


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize(
    ("ending", "code"),
    [(KeyboardInterrupt(), 130), (UsageError("wrong", hint="right"), 2)],
    ids=["interrupted", "refused"],
)
def test_results_so_far_stay_when_a_later_run_breaks_off(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, ending: BaseException, code: int
) -> None:
    use_verdicts(monkeypatch, FAIL, ending)
    ended = harness("run", "exact_cover", "no_soft_reserved", "--json", "results.json")
    assert ended.code == code
    assert "Traceback" not in ended.err
    assert ended.out.startswith("FAIL exact_cover on ")
    assert [one["verdict"] for one in json.loads(Path("results.json").read_text())] == ["FAIL"]


@pytest.mark.usefixtures("no_guest")
def test_an_error_that_nobody_foresaw_never_looks_like_a_verdict(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 1 says that the kernel broke the contract: a bisection would believe it."""
    use_verdicts(monkeypatch, OSError(28, "No space left on device", "/evidence/verdict.json"))
    try:
        ended = harness("run", "exact_cover")
    except OSError:
        pytest.fail("the error reaches the interpreter, which ends with status 1: FAIL")
    assert ended.code not in (Verdict.PASS.value, Verdict.FAIL.value)
    assert "No space left on device" in ended.err


@pytest.mark.usefixtures("no_guest")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_results_that_do_not_fit_on_the_disk(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_verdicts(monkeypatch, PASS)
    try:
        ended = harness("run", "exact_cover", "--json", "/dev/full")
    except OSError:
        pytest.fail("the error reaches the interpreter, which ends with status 1: FAIL")
    assert ended.code not in (Verdict.PASS.value, Verdict.FAIL.value)
    assert "Traceback" not in ended.err
    assert "/dev/full" in ended.err
    assert "hint: " in ended.err


# --- list and doctor -----------------------------------------------------------------------------


def test_the_list_has_every_scenario_and_profile(harness: Harness, room: Path) -> None:
    ended = harness("list")
    assert (ended.code, ended.err) == (0, "")
    above, below = ended.out.removeprefix("scenarios:\n").split("profiles:\n")
    known = {issue.scenario for issue in load_known_issues().issues}
    for text, names in ((above, scenario_names()), (below, profile_names())):
        lines = text.splitlines()
        assert [line.split()[0] for line in lines] == list(names)
        assert all(len(line.split()) > 3 for line in lines), "each with its summary"
    marked = {line.split()[0] for line in above.splitlines() if line.endswith(" [known issue]")}
    assert marked == known & set(scenario_names())
    assert files(room) == set()


@pytest.mark.parametrize(
    ("checks", "code"),
    [
        ((Check("QEMU", "ok", "10.0.2"),), 0),
        ((Check("QEMU", "ok", "10.0.2"), Check("KVM", "warning", "absent", "be patient")), 0),
        ((Check("QEMU", "missing", "absent", "get one"), Check("KVM", "ok", "there")), 2),
    ],
)
def test_the_doctor(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, checks: tuple[Check, ...], code: int
) -> None:
    monkeypatch.setattr("harness.doctor.diagnose", lambda: checks)
    ended = harness("doctor")
    assert (ended.code, ended.err) == (code, "")
    lines = ended.out.splitlines()
    assert [line.split()[:2] for line in lines if "hint: " not in line] == [
        [check.state, check.name] for check in checks
    ]
    hints = [line.partition("hint: ")[2] for line in lines if "hint: " in line]
    assert hints == [check.hint for check in checks if check.hint]


def test_the_doctor_of_this_machine_changes_nothing_but_the_store(
    harness: Harness, room: Path
) -> None:
    ended = harness("doctor")
    assert ended.code in (0, 2)
    assert ended.err == ""
    assert "QEMU" in ended.out
    assert {path.relative_to(room).parts[:2] for path in files(room)} <= {("store", "qemu")}


@pytest.mark.parametrize("words", [("--help",), ("run", "-h"), ("boot", "--help"), ("--version",)])
def test_help_starts_nothing(harness: Harness, room: Path, words: Sequence[str]) -> None:
    ended = harness(*words)
    assert (ended.code, ended.err) == (0, "")
    assert files(room) == set()


# --- signals -------------------------------------------------------------------------------------

# Answers nothing and waits, as a harness finds it that is stopped in the middle.
WAITING_QEMU = """#!/bin/sh
echo $$ > "$0.new"
mv "$0.new" "$0.pid"
exec sleep 60
"""


@contextmanager
def waiting_harness(*words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A harness in a process of its own that waits for its QEMU, and the QEMU's process number."""
    qemu = program(WAITING_QEMU)
    argv = [sys.executable, "-c", "from harness.cli import main; main()", *words]
    # What ignores SIGINT, such as a shell's background job, leaves that to its children.
    with subprocess.Popen(
        [*argv, "--qemu", str(qemu)],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    ) as child:
        try:
            started = qemu.with_name("fake-qemu.pid")
            await_true(lambda: started.exists() or child.poll() is not None)
            assert child.poll() is None, child.communicate()
            yield child, int(started.read_text())
        finally:
            child.kill()


def await_true(wanted: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGTERM, 143, ""),
        (signal.SIGINT, 130, "harness: interrupted\n"),
        (signal.SIGKILL, -9, ""),
        (signal.SIGHUP, None, ""),
    ],
)
@pytest.mark.parametrize("command", ["run", "boot"])
def test_a_stopped_harness_leaves_nothing(
    room: Path, number: signal.Signals, status: int | None, said: str, command: str
) -> None:
    with waiting_harness(command, "exact_cover") as (child, qemu):
        before = files(room)
        child.send_signal(number)
        out, err = child.communicate(timeout=20)
        await_true(lambda: is_gone(qemu))
        assert (out, err) == ("", said)
        assert status is None or child.returncode == status
        assert child.returncode not in (0, 1)
        assert files(room) == before
