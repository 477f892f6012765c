# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest reaches of this machine, and what of this machine reaches the guest: SECURITY.md."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import paramiko
import pytest
from bench_fixtures import EARLY, Bench, await_true

from harness.core.deadline import Deadline
from harness.guest import modules
from harness.guest.ssh import GuestShell
from harness.plugins.pytest_plugin import asked_kernel
from harness.runs.guest_run import Judging
from harness.runs.prepare import Host
from harness.runs.session import Session
from harness.scenario.known_issues import KnownIssues
from harness.scenario.scenario_files import load_case

pytestmark = pytest.mark.guest

InGuest = Callable[[Callable[[GuestShell], None]], None]


@pytest.fixture
def in_guest(
    harness_host: Host,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> InGuest:
    """Does something in a guest, in place of its first step."""

    def run(act: Callable[[GuestShell], None]) -> None:
        done: list[bool] = []

        def instead(shell: GuestShell, *_: object) -> None:
            if not done:
                done.append(True)
                act(shell)

        monkeypatch.setattr(modules, "load_module", instead)
        kernel = asked_kernel(request.config)
        judging = Judging("per_range", tmp_path, KnownIssues(issues=()))
        with Session(harness_host, judging) as session:
            session.run(load_case("exact_cover"), kernel)
        assert done

    return run


def said(shell: GuestShell, command: str) -> str:
    return shell.run(command, Deadline(60, command)).output


def test_a_guest_reaches_nothing_of_the_network(in_guest: InGuest) -> None:
    def act(shell: GuestShell) -> None:
        with socket.create_server(("0.0.0.0", 0)) as listener:
            listener.setblocking(False)
            port = listener.getsockname()[1]
            assert "10.0.2.15" in said(shell, "ifconfig eth0"), "there is a network at all"
            said(shell, "busybox route add default gw 10.0.2.2")
            own = socket.gethostbyname(socket.gethostname())
            for address in ("10.0.2.2", "10.0.2.3", "127.0.0.1", own):
                call = f"echo hello | timeout 3 busybox nc -w 2 {address} {port}; echo ended $?"
                assert "ended 0" not in said(shell, call), address
            assert "Address" not in said(shell, "timeout 5 busybox nslookup localhost 10.0.2.3")
            with pytest.raises(BlockingIOError):
                listener.accept()

    in_guest(act)


def test_a_guest_sees_no_file_or_device_of_the_host(in_guest: InGuest) -> None:
    def act(shell: GuestShell) -> None:
        assert said(shell, "ls /sys/block").split() == []
        kinds = said(shell, "cat /sys/bus/virtio/devices/*/device").split()
        assert kinds == ["0x0001"], "a network card, no shared folder, no socket"
        mounts = {line.split()[2] for line in said(shell, "cat /proc/mounts").splitlines()}
        assert mounts <= {"rootfs", "proc", "sysfs", "devtmpfs", "tmpfs"}
        assert said(shell, "ls /sys/firmware/qemu_fw_cfg/by_name/opt 2>/dev/null") == ""

    in_guest(act)


def status_of(process: int, field: str) -> str:
    text = Path(f"/proc/{process}/status").read_text()
    match = re.search(rf"^{field}:\s*(.*)$", text, re.M)
    assert match is not None
    return match[1]


def test_the_qemu_of_a_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.environment["API_TOKEN"] = "hunter2"
    with bench.started("run", "exact_cover") as child:
        machine = bench.await_console(EARLY)
        child.send_signal(signal.SIGSTOP)  # so that the guest does not end meanwhile
        assert status_of(machine, "Seccomp") == "2", "it is under a system call filter"
        assert b"hunter2" not in Path(f"/proc/{machine}/environ").read_bytes()
        targets = [os.readlink(one) for one in Path(f"/proc/{machine}/fd").iterdir()]
        files = {one for one in targets if one.startswith("/") and not one.startswith("/dev/")}
        outside = [one for one in files if not one.startswith(("/memfd:", str(bench.evidence)))]
        assert outside == [], "no file but its evidence and its memory is open"
        ports = listening(machine)
        assert [address for address, _ in ports] == ["0100007F"], "on the loopback device alone"
        await_true(lambda: refuses_strangers(ports[0][1]), "an SSH server", seconds=120)
        child.kill()


def listening(process: int) -> list[tuple[str, int]]:
    """Address, in hexadecimal as the kernel has it, and port of its listening sockets."""
    sockets = {os.readlink(one) for one in Path(f"/proc/{process}/fd").iterdir()}
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if f"socket:[{words[9]}]" in sockets and words[3] in ("0A", "07"):
                address, _, port = words[1].partition(":")
                found.append((address, int(port, 16)))
    return found


def refuses_strangers(port: int) -> bool:
    """Whether the guest's server lets in nobody without its key; False before there is one."""
    try:
        transport = paramiko.Transport(socket.create_connection(("127.0.0.1", port), 5))
        transport.banner_timeout = 5
        transport.start_client(timeout=10)
    except (OSError, EOFError, paramiko.SSHException):
        return False
    with transport:
        try:
            transport.auth_none("root")
        except paramiko.BadAuthenticationType as error:
            assert error.allowed_types == ["publickey"]
        else:
            pytest.fail("no key was asked for")
        with pytest.raises(paramiko.SSHException):
            transport.auth_publickey("root", paramiko.ECDSAKey.generate())
    return True
