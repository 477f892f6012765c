# SPDX-License-Identifier: GPL-2.0-or-later
"""A harness in a process of its own, with a store and evidence of its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness.contract.result import Verdict
from harness.core.paths import SCENARIOS

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
        self.await_text(text)
        (machine,) = self.machines()
        return machine

    def await_text(self, text: str) -> None:
        """Wait until a guest has said this."""
        await_true(
            lambda: any(
                text in log.read_text(errors="replace")
                for log in self.evidence.glob("*/serial.log")
            ),
            f"{text!r} on a console",
        )

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
    assert done.returncode == Verdict.INCONCLUSIVE.exit_code, done.stdout + done.stderr
    assert done.stdout.startswith("INCONCLUSIVE ")
    assert "Traceback" not in done.stderr
    for word in ("hint: ", "evidence: ", *words):
        assert word in done.stdout


def finished(child: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = child.communicate(timeout=SECONDS)
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)
