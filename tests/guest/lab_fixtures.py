# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts behind SSH on one machine: network namespaces, each with an sshd and a store of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from harness.core.deadline import Deadline
from harness.core.paths import PROJECT
from harness.core.process import CommandError, run, spawn

_HINT = "network namespaces need root, iproute2 and openssh-server"


def command(*words: str | Path, check: bool = True) -> str:
    deadline = Deadline(20, str(words[0]), hint=_HINT)
    return run(words, deadline=deadline, check=check, hint=_HINT).stdout


class LabRoom:
    """One such host.

    Attributes:
        name: what it is called.
        store: its store.
    """

    def __init__(self, name: str, number: int, folder: Path) -> None:
        self.name = name
        self.folder = folder / name
        self.store = self.folder / "store"
        tag = f"{os.getpid() % 100000}{number}"
        self.space = f"own{tag}"
        self._link, self._inner = f"ov{tag}", f"oi{tag}"
        # From the block for tests of networks, RFC 2544.
        third = os.getpid() % 250
        self._near, self._far = (
            f"198.18.{third}.{4 * number + 1}",
            f"198.18.{third}.{4 * number + 2}",
        )

    @contextmanager
    def running(self, worker: tuple[str, ...] = ()) -> Iterator[None]:
        """The host, for the length of the block."""
        self.folder.mkdir()
        (self.folder / "tmp").mkdir()
        with ExitStack() as stack:
            command("ip", "netns", "add", self.space)
            stack.callback(command, "ip", "netns", "del", self.space, check=False)
            stack.callback(self.kill)
            command("ip", "link", "add", self._link, "type", "veth", "peer", "name", self._inner,
                    "netns", self.space)  # fmt: skip
            stack.callback(command, "ip", "link", "del", self._link, check=False)
            command("ip", "addr", "add", f"{self._near}/30", "dev", self._link)
            command("ip", "link", "set", self._link, "up")
            within = ("ip", "-n", self.space)
            command(*within, "addr", "add", f"{self._far}/30", "dev", self._inner)
            command(*within, "link", "set", self._inner, "up")
            command(*within, "link", "set", "lo", "up")
            stack.enter_context(self._sshd())
            yield

    @contextmanager
    def _sshd(self) -> Iterator[None]:
        for key in ("host", "user"):
            command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key)
        shutil.copy(self.folder / "user.pub", self.folder / "authorized")
        Path("/run/sshd").mkdir(exist_ok=True)
        config = self.folder / "sshd_config"
        config.write_text(
            f"ListenAddress {self._far}\nHostKey {self.folder}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.folder}/authorized\nStrictModes no\n"
            "PasswordAuthentication no\nPermitRootLogin yes\n"
        )
        public = (self.folder / "host.pub").read_text()
        (self.folder / "known").write_text(f"{self._far} {public}")
        with (self.folder / "sshd.log").open("wb") as log:
            argv = ("ip", "netns", "exec", self.space, shutil.which("sshd") or "/usr/sbin/sshd",
                    "-D", "-e", "-f", str(config))  # fmt: skip
            with spawn(argv, stderr=log):
                deadline = Deadline(20, f"sshd of {self.name}", hint=_HINT)
                while b"listening" not in (self.folder / "sshd.log").read_bytes():
                    deadline.check()
                yield

    def entry(self, guests: int = 1, command: tuple[str, ...] = ()) -> str:
        """Its entry in a file of hosts."""
        options = [
            "-F", "none", "-i", str(self.folder / "user"),
            "-o", f"UserKnownHostsFile={self.folder}/known", "-o", "StrictHostKeyChecking=yes",
        ]  # fmt: skip
        started = command or (
            "env", f"PYTHONPATH={PROJECT}", f"HARNESS_STORE={self.store}",
            f"TMPDIR={self.folder}/tmp", f"PATH={os.environ['PATH']}",
            sys.executable, "-m", "harness",
        )  # fmt: skip
        return (
            f"- {{name: {self.name}, ssh: root@{self._far}, guests: {guests},\n"
            f"   options: {options},\n   command: {list(started)}}}\n"
        )

    def pids(self) -> list[int]:
        """What runs there."""
        return [int(pid) for pid in command("ip", "netns", "pids", self.space, check=False).split()]

    def kill(self) -> None:
        """End all that runs there at once, as if its power were cut."""
        command("ip", "link", "set", self._link, "down", check=False)
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def cut_off(self) -> None:
        """Take its network away; what runs there does not notice."""
        command("ip", "link", "set", self._link, "down")

    def has_kernel(self) -> bool:
        """Whether its store has one."""
        return any((self.store / "kernels").glob("*/vmlinuz"))


@contextmanager
def lab(folder: Path, *names: str) -> Iterator[list[LabRoom]]:
    """Several such hosts; the test is skipped where they cannot be made."""
    if os.geteuid() != 0 or not shutil.which("ip") or not Path("/usr/sbin/sshd").exists():
        pytest.skip(_HINT)
    probe = f"own{os.getpid() % 100000}p"
    try:
        command("ip", "netns", "add", probe)
        command("ip", "netns", "del", probe)
    except CommandError as error:
        pytest.skip(f"{_HINT}: {error.message}")
    with ExitStack() as stack:
        rooms = [LabRoom(name, number, folder) for number, name in enumerate(names)]
        for room in rooms:
            stack.enter_context(room.running())
        yield rooms


def as_text(process: subprocess.Popen[str]) -> str:
    """What a process says to its end."""
    said, _ = process.communicate(timeout=900)
    return said
