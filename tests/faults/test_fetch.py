# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults while a kernel is fetched and unpacked by fake apt-get and dpkg-deb; no guest."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bench_fixtures import await_true

from harness.core.cache import Store
from harness.core.paths import PROJECT

# As the command line does it, with one kernel whose packages are already known.
HARNESS = """
import sys
from pathlib import Path
from harness.debian import apt
from harness.cli.options import explains_errors
from harness.kernels.debian.packages import _build
from harness.kernels.debian.versions import DebianKernel
from harness.kernels.spec import parse_kernel_spec
from harness.core.progress import SilentProgress
from harness.core.cache import Store

apt._DOWNLOAD_SECONDS = float(sys.argv[2])

@explains_errors
def fetch():
    kernel = DebianKernel("7.2.1-x", "7.2.1-1", (apt.Package("linux", "7.2.1-1", "sid", 5, ""),))
    store = Store(Path(sys.argv[1]))
    print(_build(parse_kernel_spec("debian:7.2"), kernel, store, SilentProgress()).name)

fetch()
"""
# Each program waits in the middle of its work while there is a file HOLD-<what>.
STAND_IN = """\
#!{python}
import os, pathlib, struct, sys, time
folder, words = pathlib.Path({folder!r}), sys.argv[1:]
def hold(what):
    (folder / f"reached-{{what}}").write_text(str(os.getpid()))
    while (folder / f"HOLD-{{what}}").exists():
        time.sleep(0.01)
if "update" in words:
    print("Get:1 http://mirror.invalid/debian sid InRelease [1 kB]")
elif "download" in words:
    half = pathlib.Path("linux_7.2.1-1_amd64.deb")
    half.write_bytes(b"ha")
    hold("download")
    half.write_bytes(b"whole")
elif words[0] == "--extract":
    root = pathlib.Path(words[2])
    image = bytearray(0x400)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x100)
    image[0x300:0x320] = b"7.2.1-x (me@here) #1 SMP".ljust(32, b"\\0")
    (root / "boot").mkdir()
    (root / "boot/vmlinuz-7.2.1-x").write_bytes(image)
    hold("unpack")
    (root / "boot/config-7.2.1-x").write_bytes(b"")
    (root / "lib/modules/7.2.1-x/kernel").mkdir(parents=True)
"""
PHASES = ("download", "unpack")


@dataclass(frozen=True)
class Fetching:
    """A place in which a harness fetches a kernel."""

    root: Path

    @property
    def store(self) -> Store:
        return Store(self.root / "store")

    def words(self, seconds: float = 60.0) -> list[str]:
        return [sys.executable, "-c", HARNESS, str(self.root / "store"), str(seconds)]

    def environment(self) -> dict[str, str]:
        return os.environ | {
            "PATH": f"{self.root / 'programs'}:{os.environ['PATH']}",
            "PYTHONPATH": str(PROJECT),
            "TMPDIR": str(self.root / "tmp"),
            "HARNESS_DEBIAN_MIRROR": "http://mirror.invalid/debian",
        }

    def start(
        self, seconds: float = 60.0, before: Callable[[], object] = lambda: None
    ) -> subprocess.Popen[str]:
        def prepare() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            before()

        return subprocess.Popen(
            self.words(seconds),
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=prepare,
        )

    def hold(self, phase: str) -> Path:
        path = self.root / f"HOLD-{phase}"
        path.touch()
        return path

    def await_phase(self, phase: str) -> int:
        """Wait for a phase; return the process that is in it."""
        path = self.root / f"reached-{phase}"
        await_true(lambda: path.exists() and path.read_text(), phase, seconds=30)
        return int(path.read_text())

    def temporary(self) -> list[Path]:
        places = (self.root / "tmp", *(self.root / "store" / "tmp").glob("*"))
        return [one for place in places for one in place.iterdir()]

    def kernels(self) -> list[str]:
        folder = self.root / "store" / "kernels"
        return [one.name for one in folder.iterdir()] if folder.exists() else []

    def assert_fetches_now(self) -> None:
        """The next harness fetches the kernel, and leaves no other file."""
        for hold in self.root.glob("HOLD-*"):
            hold.unlink()
        with self.start() as child:
            out, err = child.communicate(timeout=60)
        assert child.returncode == 0, err
        assert self.kernels() == [out.strip()]
        assert (self.root / "store" / "kernels" / out.strip() / "config").exists()
        assert self.temporary() == []


@pytest.fixture
def fetching(tmp_path: Path) -> Iterator[Fetching]:
    programs = tmp_path / "programs"
    programs.mkdir()
    (tmp_path / "tmp").mkdir()
    for name in ("apt-get", "dpkg-deb"):
        (programs / name).write_text(STAND_IN.format(python=sys.executable, folder=str(tmp_path)))
        (programs / name).chmod(0o755)
    yield Fetching(tmp_path)
    for hold in tmp_path.glob("HOLD-*"):  # no process waits forever
        hold.unlink()


def gone(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_harness_that_is_killed(fetching: Fetching, phase: str, number: int, code: int) -> None:
    fetching.hold(phase)
    with fetching.start() as child:
        helper = fetching.await_phase(phase)
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
    assert child.returncode == code, err
    assert "Traceback" not in err
    await_true(lambda: gone(helper), "an end of what it started", seconds=10)
    assert fetching.kernels() == []
    if number != signal.SIGKILL:
        assert fetching.temporary() == []
    fetching.assert_fetches_now()


@pytest.mark.parametrize("phase", PHASES)
def test_a_helper_that_is_killed(fetching: Fetching, phase: str) -> None:
    fetching.hold(phase)
    with fetching.start() as child:
        os.kill(fetching.await_phase(phase), signal.SIGKILL)
        _, err = child.communicate(timeout=60)
    assert_explained(child, err)
    assert "was killed by signal 9" in err
    assert [*fetching.kernels(), *fetching.temporary()] == []
    fetching.assert_fetches_now()


@pytest.mark.parametrize("number", [signal.SIGSTOP, None])
def test_a_download_that_goes_silent(fetching: Fetching, number: int | None) -> None:
    fetching.hold("download")
    with fetching.start(seconds=2.0) as child:
        helper = fetching.await_phase("download")
        if number is not None:
            os.kill(helper, number)
        _, err = child.communicate(timeout=60)
    assert_explained(child, err)
    assert "timed out after 2 s waiting for the download of Linux 7.2.1-x" in err
    await_true(lambda: gone(helper), "an end of what it started", seconds=10)
    assert [*fetching.kernels(), *fetching.temporary()] == []
    fetching.assert_fetches_now()


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        (resource.RLIMIT_FSIZE, 1),
        (resource.RLIMIT_FSIZE, 600),
        (resource.RLIMIT_NOFILE, 5),
        (resource.RLIMIT_AS, 32 << 20),
        (resource.RLIMIT_AS, 24 << 20),
    ],
)
def test_a_limit_of_the_user(fetching: Fetching, limit: int, value: int) -> None:
    """A full disk, no file descriptors, no memory, also for the programs of the harness."""
    with fetching.start(before=lambda: resource.setrlimit(limit, (value, value))) as child:
        _, err = child.communicate(timeout=60)
    if limit != resource.RLIMIT_AS:  # with so little, Python may not even start
        assert_explained(child, err)
    assert len(fetching.kernels()) == (child.returncode == 0)
    shutil.rmtree(fetching.root / "tmp")  # of a Python that could not clean up
    (fetching.root / "tmp").mkdir()
    fetching.assert_fetches_now()


def test_a_full_tmp(fetching: Fetching) -> None:
    """The temporary files of the harness are small, and are written to another folder."""
    script = 'mount -t tmpfs -o size=4k,nr_inodes=2 full "$0" && { echo x > "$0/x"; exec "$@"; }'
    for words in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        argv = [*words, "sh", "-c", script, str(fetching.root / "tmp")]
        if subprocess.run([*argv, "true"], capture_output=True).returncode == 0:
            break
    else:
        pytest.skip("this user may not mount anything, not even in a namespace of its own")
    done = subprocess.run(
        [*argv, *fetching.words()],
        env=fetching.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert fetching.kernels() == [done.stdout.strip()]
    assert fetching.temporary() == []


def assert_explained(child: subprocess.Popen[str], err: str) -> None:
    assert child.returncode in (2, 3), err
    assert "Traceback" not in err
    assert err.startswith("harness: ") and "\n  hint: " in err
