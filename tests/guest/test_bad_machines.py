# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines that never come up, and stores and kernels that do not fit."""

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
from collections.abc import Sequence
from pathlib import Path

import pytest
from bench_fixtures import EARLY, SECONDS, Bench, assert_inconclusive, finished, scenario

from harness.contract.result import Verdict
from harness.runs.prepare import Host

pytestmark = pytest.mark.guest


def test_a_guest_that_panics_before_it_is_ready(bench: Bench) -> None:
    done = bench.finish("run", scenario(bench, "rdinit=/nonexistent"))
    assert_inconclusive(done, "panicked before it reached userspace", "serial.log")
    (folder,) = bench.evidence.iterdir()
    assert "Kernel panic - not syncing" in (folder / "serial.log").read_text(errors="replace")
    assert json.loads((folder / "verdict.json").read_text())["verdict"] == "INCONCLUSIVE"
    assert bench.machines() == []


def test_a_guest_that_hangs(bench: Bench) -> None:
    done = bench.finish("run", scenario(bench, "rdinit=/bin/cat"), "--timeout", "4")
    assert_inconclusive(done, "timed out after 4 s waiting for the guest to become ready")
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
    assert done.stderr.startswith(f"harness: image:{kernel}: the modules do not match the kernel")
    assert f"kmem.ko is of {other}" in done.stderr
    assert "  hint: build image and modules again" in done.stderr
    assert not bench.evidence.exists()


def test_a_module_that_the_guest_needs_first_of_another_kernel(bench: Bench, kernel: Path) -> None:
    rebuild_for_another_release(kernel, "virtio_net")
    done = bench.finish("run", "exact_cover", "--kernel", f"image:{kernel}")
    assert_inconclusive(done, "the guest could not start: ", "virtio_net")


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
    assert_refused(done, f"harness: {bench.store}: cannot write to the store: ", "HARNESS_STORE")
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
    assert done.returncode not in (Verdict.PASS.exit_code, Verdict.FAIL.exit_code), done.stderr
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
