# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines that die, hang, or never come up, and a harness that is killed while it has one."""

from __future__ import annotations

import json
import lzma
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import GuestCrashedError
from harness.guest.ssh import GuestShell
from harness.model.known_issues import KnownIssues
from harness.model.verdict import Verdict
from harness.paths import SCENARIOS
from harness.pytest_plugin import asked_kernel
from harness.runs import run_scenario as runs
from harness.runs.catalogue import load_case
from harness.runs.prepare import Host

pytestmark = pytest.mark.guest

# Against hanging only.
SECONDS = 240.0

EARLY = "Linux version"
LATE = "harness: modprobe"


@dataclass(frozen=True)
class Bench:
    """A place of its own for harnesses in processes of their own: evidence, /tmp and store.

    Attributes:
        root: everything is below it.
        program: the installed command.
        options: accelerator and QEMU, as pytest was given them.
        environment: of every harness.
    """

    root: Path
    program: Path
    options: tuple[str, ...]
    environment: dict[str, str] = field(repr=False)

    @property
    def evidence(self) -> Path:
        return self.root / "evidence"

    @property
    def store(self) -> Path:
        return self.root / "store"

    def words(self, command: str, *more: str) -> list[str]:
        where = ("--evidence", str(self.evidence)) if command == "run" else ()
        return [str(self.program), command, *self.options, *where, *more]

    def finish(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(*words),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    @contextmanager
    def started(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            self.words(*words),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background job ignores SIGINT, and so would what it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        ) as child:
            try:
                yield child
            finally:
                child.kill()

    def machines(self) -> list[int]:
        """The QEMUs that write their console into this evidence."""
        log = f"{self.evidence}/".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if any(b"logfile=" + log in word for word in words):
                found.append(int(path.parent.name))
        return found

    def await_console(self, text: str) -> int:
        """Wait until a guest has said this; its QEMU."""
        await_true(
            lambda: any(
                text in log.read_text(errors="replace")
                for log in self.evidence.glob("*/serial.log")
            ),
            f"{text!r} on a console",
        )
        (machine,) = self.machines()
        return machine

    def leftovers(self) -> list[Path]:
        """What lies in /tmp and in the store's work folder."""
        folders = (self.root / "tmp", self.store / "tmp" / "work", self.store / "tmp" / "locks")
        return [path for folder in folders if folder.is_dir() for path in folder.iterdir()]

    def forget(self, *kinds: str) -> None:
        """Let the store lack what it has of these kinds."""
        for kind in kinds:
            shutil.rmtree(self.store / kind)


def await_true(wanted: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end, f"there never was {what}"
        time.sleep(0.005)


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


def copy_store(full: Path, into: Path) -> None:
    """A store with links to everything that another has: what is added does not reach that."""
    for kind in ("accelerators", "initramfs", "kernels", "layouts", "qemu", "userland"):
        (into / kind).mkdir(parents=True)
        for entry in full.glob(f"{kind}/*"):
            (into / kind / entry.name).symlink_to(entry)
    shutil.copytree(full / "aliases", into / "aliases", symlinks=True)


def scenario(bench: Bench, *parameters: str) -> str:
    """The file of a scenario that adds these parameters to the kernel's command line."""
    text = (SCENARIOS / "exact_cover.yaml").read_text()
    path = bench.root / "mine.yaml"
    added = f"kernel: {{cmdline: [{', '.join(parameters)}]}}\nguest:\n"
    path.write_text(text.replace("guest:\n", added))
    return str(path)


def assert_inconclusive(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == Verdict.INCONCLUSIVE.value, done.stdout + done.stderr
    assert done.stdout.startswith("INCONCLUSIVE ")
    assert "Traceback" not in done.stderr
    for word in ("hint: ", "evidence: ", *words):
        assert word in done.stdout


def finished(child: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = child.communicate(timeout=SECONDS)
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)


# --- guests that never come up -------------------------------------------------------------------


def test_a_guest_that_panics_before_it_is_ready(bench: Bench) -> None:
    done = bench.finish("run", scenario(bench, "rdinit=/nonexistent"))
    assert_inconclusive(done, "panicked before it reached userspace", "serial.log")
    (folder,) = bench.evidence.iterdir()
    assert "Kernel panic - not syncing" in (folder / "serial.log").read_text(errors="replace")
    assert json.loads((folder / "verdict.json").read_text())["verdict"] == "INCONCLUSIVE"
    assert bench.machines() == []


def test_a_guest_that_hangs(bench: Bench) -> None:
    done = bench.finish("run", scenario(bench, "rdinit=/bin/cat"), "--timeout", "4")
    assert_inconclusive(done, "timed out after 4 s waiting for the guest to say that it is ready")
    assert bench.machines() == []
    assert bench.leftovers() == []


# Answers all questions as the real one does, and dies of the real machine. Its connections close
# before it has ended, as those of every process do.
DYING_QEMU = """#!{python}
import os, sys, time
if "-append" in sys.argv:
    os.closerange(3, 256)
    time.sleep(0.2)
    sys.exit("out of luck")
os.execv({real!r}, [{real!r}, *sys.argv[1:]])
"""


def test_a_qemu_that_does_not_start(bench: Bench, harness_host: Host) -> None:
    qemu = bench.root / "qemu"
    qemu.write_text(DYING_QEMU.format(python=sys.executable, real=str(harness_host.qemu.path)))
    qemu.chmod(0o755)
    done = bench.finish("run", "exact_cover", "--accel", "tcg", "--qemu", str(qemu))
    assert_inconclusive(done, "QEMU ended with status 1: out of luck")
    (folder,) = bench.evidence.iterdir()
    assert (folder / "qemu.log").read_text() == "out of luck\n"


def test_a_qemu_that_stands_still(bench: Bench) -> None:
    with bench.started("run", "exact_cover", "--timeout", "5") as child:
        os.kill(bench.await_console(EARLY), signal.SIGSTOP)
        assert_inconclusive(finished(child), "timed out after 5 s waiting for the guest")
    assert bench.machines() == []


# --- kernels that do not fit together ------------------------------------------------------------


@pytest.fixture
def kernel(bench: Bench, harness_host: Host) -> Path:
    """A folder with the store's kernel, all files of which are links."""
    printed = bench.finish("boot", "--print", "one_window")
    argv = shlex.split(printed.stdout)
    stored = Path(argv[argv.index("-kernel") + 1]).parent
    copy = bench.root / "kernel"
    for path in stored.rglob("*"):
        if path.is_file():
            to = copy / path.relative_to(stored)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.symlink_to(path)
    return copy


def rebuild_for_another_release(folder: Path, name: str) -> str:
    """Replace a module by what another kernel would have had; that kernel's release."""
    (path,) = folder.rglob(f"{name}.ko.xz")
    content = lzma.decompress(path.read_bytes())
    match = re.search(rb"vermagic=([^ ]+) ", content)
    assert match is not None
    other = b"9" + match[1][1:]
    path.unlink()
    path.with_suffix("").write_bytes(content.replace(b"vermagic=" + match[1], b"vermagic=" + other))
    return other.decode()


def test_modules_of_another_kernel(bench: Bench, kernel: Path) -> None:
    other = rebuild_for_another_release(kernel, "kmem")
    done = bench.finish("run", "exact_cover", "--kernel", f"image:{kernel}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"harness: image:{kernel}: a kernel whose modules do not match")
    assert f"kmem.ko is of {other}" in done.stderr
    assert "  hint: build image and modules again" in done.stderr
    assert not bench.evidence.exists()


def test_a_module_that_the_guest_needs_first_of_another_kernel(bench: Bench, kernel: Path) -> None:
    rebuild_for_another_release(kernel, "virtio_net")
    done = bench.finish("run", "exact_cover", "--kernel", f"image:{kernel}")
    assert_inconclusive(done, "the guest could not start: ", "virtio_net")


# --- stores that cannot be written ---------------------------------------------------------------

# A file system of its own over the store's folder, which nobody else sees, and what is left in it.
IN_NAMESPACE = """
set -e
mount -t tmpfs -o "$SIZE" harness-test "$HARNESS_STORE"
cp -a "$STORE_CONTENT/." "$HARNESS_STORE"
[ -z "$READ_ONLY" ] || mount -o remount,ro "$HARNESS_STORE"
set +e
"$@"
status=$?
find "$HARNESS_STORE/tmp" -mindepth 2 >"$LEFT" 2>/dev/null
exit $status
"""


@pytest.fixture(scope="session")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words that start a program which may mount file systems that nobody else sees."""
    folder = tmp_path_factory.mktemp("mount")
    for words in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        mount = ["mount", "-t", "tmpfs", "harness-test", str(folder)]
        if shutil.which(words[0]) and subprocess.run([*words, *mount]).returncode == 0:
            return words
    pytest.skip("this user may not mount anything, not even in a namespace of its own")


def in_namespace(
    bench: Bench, namespace: Sequence[str], size: str, *words: str, read_only: bool = False
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a harness whose store has a file system of its own; what it leaves of temporary files."""
    content = bench.store.rename(bench.root / "content")
    bench.store.mkdir()
    left = bench.root / "left"
    done = subprocess.run(
        [*namespace, "sh", "-c", IN_NAMESPACE, "sh", *bench.words(*words)],
        env=bench.environment
        | {
            "SIZE": size,
            "STORE_CONTENT": str(content),
            "READ_ONLY": "yes" if read_only else "",
            "LEFT": str(left),
        },
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return done, left.read_text().split()


@pytest.mark.parametrize("command", ["run", "boot"])
def test_a_full_store(bench: Bench, namespace: list[str], command: str) -> None:
    bench.forget("initramfs")
    done, left = in_namespace(bench, namespace, "size=1m", command, "exact_cover")
    assert_refused(done, f"harness: {bench.store}: the store is full: ", "free some space")
    assert left == []
    assert not bench.evidence.exists()


def test_a_store_without_room_for_a_single_file(bench: Bench, namespace: list[str]) -> None:
    bench.forget("layouts")
    entries = 1 + sum(1 for _ in bench.store.rglob("*"))
    done, left = in_namespace(bench, namespace, f"nr_inodes={entries + 1}", "run", "exact_cover")
    assert_refused(done, f"harness: {bench.store}: the store is full: ", "free some space")
    assert left == []


@pytest.mark.parametrize("kind", ["initramfs", "layouts"])
def test_a_read_only_store_that_lacks_something(
    bench: Bench, namespace: list[str], kind: str
) -> None:
    bench.forget(kind)
    done, _ = in_namespace(bench, namespace, "size=8m", "run", "exact_cover", read_only=True)
    assert_refused(done, f"harness: {bench.store}: the store cannot be written: ", "HARNESS_STORE")
    assert not bench.evidence.exists()


def test_a_read_only_store_that_has_everything_will_do(bench: Bench, namespace: list[str]) -> None:
    words = ("boot", "--print", "exact_cover")
    done, _ = in_namespace(bench, namespace, "size=8m", *words, read_only=True)
    assert done.returncode == 0, done.stderr
    assert "-append" in shlex.split(done.stdout)


def test_evidence_that_has_no_room(bench: Bench, namespace: list[str]) -> None:
    """Status 1 would say that the kernel broke the contract."""
    bench.evidence.mkdir()
    script = 'mount -t tmpfs -o size=8k harness-test "$0" && exec "$@"'
    done = subprocess.run(
        [*namespace, "sh", "-c", script, str(bench.evidence), *bench.words("run", "exact_cover")],
        env=bench.environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode not in (Verdict.PASS.value, Verdict.FAIL.value), done.stderr
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stdout + done.stderr


def assert_refused(done: subprocess.CompletedProcess[str], start: str, *words: str) -> None:
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    last = done.stderr.splitlines()[-2:]
    assert last[0].startswith(start), done.stderr
    assert last[1].startswith("  hint: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


# --- guests and machines that are lost on the way ------------------------------------------------


def test_a_kernel_that_panics_in_a_step_of_the_scenario(
    harness_host: Host,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds: list[float] = []

    def crash(shell: GuestShell, *_arguments: object) -> None:
        begin = time.monotonic()
        try:
            shell.run("echo c > /proc/sysrq-trigger", Deadline(120, "the guest to die"))
        except GuestCrashedError:
            seconds.append(time.monotonic() - begin)
            raise

    monkeypatch.setattr(runs, "load_module", crash)
    result = runs.run_scenario(
        harness_host,
        load_case("exact_cover"),
        asked_kernel(request.config),
        "per_range",
        tmp_path,
        KnownIssues(issues=()),
    )
    assert result.verdict is Verdict.FAIL
    assert len(seconds) == 1
    assert seconds[0] < 30, "the dead guest was waited for"
    (finding,) = result.findings
    assert finding.rule == "6"
    assert "the guest's kernel panicked: sysrq triggered crash" in finding.text
    trace = "\n".join(finding.dmesg)
    serial = Path(result.evidence, "serial.log").read_text(errors="replace")
    for text in (trace, serial):
        assert "Kernel panic - not syncing: sysrq triggered crash" in text
        assert "Call Trace:" in text
        assert "sysrq_handle_crash" in text
        assert "</TASK>" in text, "the trace has its end"
    assert json.loads(Path(result.evidence, "verdict.json").read_text())["verdict"] == "FAIL"


@pytest.mark.parametrize("moment", [EARLY, LATE])
def test_a_qemu_that_is_killed(bench: Bench, moment: str) -> None:
    with bench.started("run", "exact_cover") as child:
        os.kill(bench.await_console(moment), signal.SIGKILL)
        assert_inconclusive(finished(child), "QEMU ended killed by signal 9")
    (folder,) = bench.evidence.iterdir()
    assert json.loads((folder / "verdict.json").read_text())["verdict"] == "INCONCLUSIVE"
    assert bench.leftovers() == []


@pytest.mark.parametrize(
    ("number", "moment", "status"),
    [
        (signal.SIGKILL, EARLY, -signal.SIGKILL),
        (signal.SIGTERM, LATE, 128 + signal.SIGTERM),
        (signal.SIGINT, EARLY, 128 + signal.SIGINT),
    ],
)
def test_a_harness_that_is_killed_leaves_no_machine(
    bench: Bench, number: signal.Signals, moment: str, status: int
) -> None:
    with bench.started("run", "exact_cover") as child:
        bench.await_console(moment)
        child.send_signal(number)
        done = finished(child)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert done.stdout == "", "no verdict"
    await_true(lambda: bench.machines() == [], "an end of QEMU", seconds=10)
    assert bench.leftovers() == []
    (folder,) = bench.evidence.iterdir()
    assert moment in (folder / "serial.log").read_text(errors="replace")
    assert shlex.split((folder / "qemu.argv").read_text().replace("\\\n", " "))[0].startswith("/")
    for name in ("kernel.json", "firmware.json"):
        assert json.loads((folder / name).read_text())
    assert not (folder / "verdict.json").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_harness_was_building_is_swept(bench: Bench, number: signal.Signals) -> None:
    whole = bench.store / "initramfs"
    whole.rename(bench.root / "initramfs")
    with bench.started("boot", "--print", "exact_cover") as child:
        await_true(
            lambda: child.poll() is not None or any(bench.store.glob("tmp/work/initramfs.*/*")),
            "a half-written initramfs",
        )
        child.send_signal(number)
        assert finished(child).returncode not in (0, 1)
    assert bool(bench.leftovers()) == (number is signal.SIGKILL)
    assert not whole.exists(), "a half-written entry looks whole"
    # The next harness that builds anything, here something else, cleans up.
    (bench.root / "initramfs").rename(whole)
    bench.forget("layouts")
    again = bench.finish("boot", "--print", "exact_cover")
    assert again.returncode == 0, again.stderr
    assert bench.leftovers() == []


# --- two at once ---------------------------------------------------------------------------------


def test_two_runs_at_once_do_not_meet(bench: Bench) -> None:
    """They also find the same two store entries missing."""
    bench.forget("initramfs", "layouts")
    ports: dict[int, set[int]] = {}
    with (
        bench.started("run", "exact_cover") as one,
        bench.started("run", "exact_cover") as two,
    ):
        while one.poll() is None or two.poll() is None:
            for machine in bench.machines():
                ports.setdefault(machine, set()).update(listening(machine))
            time.sleep(0.05)
        ended = [finished(one), finished(two)]
    for done in ended:
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith("PASS exact_cover")
    assert len(list(bench.evidence.iterdir())) == 2
    assert [len(used) for used in ports.values()] == [1, 1], ports
    assert len(set.union(*ports.values())) == 2, ports
    assert bench.leftovers() == []


def listening(process: int) -> set[int]:
    """The TCP ports of this host's loopback on which a process listens."""
    sockets = set()
    try:
        for path in Path(f"/proc/{process}/fd").iterdir():
            sockets.add(os.readlink(path))
    except OSError:
        pass  # it has ended, or has closed a file
    ports = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        address, _, port = words[1].partition(":")
        if f"socket:[{words[9]}]" in sockets and words[3] == "0A" and address == "0100007F":
            ports.add(int(port, 16))
    return ports
