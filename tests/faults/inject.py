# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the harness with one fault at the start of one phase.

Run as: python inject.py PHASE FAULT HARNESS-WORD...
The harness has no hook for this: one of its functions is wrapped here.
"""

from __future__ import annotations

import gc
import importlib
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

# The function whose call starts each phase, by its name in the calling module.
PHASES = {
    "kernel": "harness.runs.prepare:resolve_kernel",
    "initramfs": "harness.guest.initramfs:_add_programs",
    "start": "harness.runs.boot:running_qemu",
    "monitor": "harness.machine.qemu:Qemu.connect_monitor",
    "qtest": "harness.runs.boot:commit_decoders",
    "boot": "harness.runs.boot:_await_ready",
    "ssh": "harness.runs.boot:logged_in",
    "load": "harness.runs.attempt:load_modules",
    "observe": "harness.runs.guest_run:observe_settled",
    "judge": "harness.runs.guest_run:RunningGuest.judge",
    "report": "harness.reports.terminal:result_lines",
}
# Short waits for guests that never answer.
SHORTER = {
    "harness.guest.modules:_LOAD_SECONDS": 8.0,
    "harness.guest.observe:_SECONDS": 8.0,
    "harness.runs.boot:_LOGIN_SECONDS": 8.0,
}
_MONTH = 30 * 86400.0


def _only(kind: str) -> Any:
    """Return the only object of a class, by its name."""
    (found,) = [item for item in gc.get_objects() if type(item).__name__ == kind]
    return found


def _end_of_file(fd: int) -> None:
    """Let the next read find the end of the file; a read that has begun still gets data."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, fd)
    os.close(nothing)


def _in_guest(command: str) -> None:
    """Start a command in the guest without waiting for it."""
    _only("GuestShell")._channel.sendall(f"{command}\n".encode())
    time.sleep(0.5)


def _jump(seconds: float) -> None:
    real = time.time
    time.time = lambda: real() + seconds


def _limit(what: int, value: int) -> None:
    resource.setrlimit(what, (value, resource.getrlimit(what)[1]))


def _open_files() -> int:
    return max(int(name) for name in os.listdir("/proc/self/fd"))


def _memory_in_use() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


FAULTS: dict[str, Callable[[], object]] = {
    **{
        name: (lambda number=number: os.kill(os.getpid(), number))  # type: ignore[misc]
        for name, number in (
            ("SIGINT", signal.SIGINT),
            ("SIGTERM", signal.SIGTERM),
            ("SIGKILL", signal.SIGKILL),
        )
    },
    "QEMU killed": lambda: os.kill(_only("Qemu").pid, signal.SIGKILL),
    "QEMU stopped": lambda: os.kill(_only("Qemu").pid, signal.SIGSTOP),
    "QMP closes": lambda: _only("Qemu")._monitor_socket.shutdown(socket.SHUT_RDWR),
    "qtest closes": lambda: _only("Qemu").qtest._socket.shutdown(socket.SHUT_RDWR),
    "console closes": lambda: _end_of_file(_only("Qemu").console._fd),
    "SSH closes": lambda: _only("GuestShell")._channel.get_transport().sock.close(),
    "SSH silent": lambda: _in_guest("kill -STOP $PPID"),
    "disk full": lambda: _limit(resource.RLIMIT_FSIZE, 0),
    "no descriptors": lambda: _limit(resource.RLIMIT_NOFILE, _open_files() + 1),
    "no memory": lambda: _limit(resource.RLIMIT_AS, _memory_in_use() + (1 << 16)),
    "clock back": lambda: _jump(-_MONTH),
    "clock ahead": lambda: _jump(_MONTH),
    "console floods": lambda: _in_guest("(yes | head -c 3000000 >/dev/ttyS0) &"),
    "console never ends": lambda: _flood_console(),
    "console binary": lambda: _in_guest("(head -c 300000 /dev/urandom >/dev/ttyS0) &"),
    "guest clock jumps": lambda: _in_guest("busybox date -s 2037-01-01"),
    "guest panics": lambda: _in_guest("echo c >/proc/sysrq-trigger"),
    "guest reboots": lambda: _in_guest("reboot -f"),
    "guest powers off": lambda: _in_guest("poweroff -f"),
    "guest fills memory": lambda: _in_guest("tail /dev/zero >/dev/null"),
    "guest kills shell": lambda: _in_guest("kill -9 $$"),
    # More than the kernel log can hold, at a level that the console does not show.
    "guest floods log": lambda: _in_guest(
        f"i=0; while [ $i -lt 4000 ]; do echo '<7>{'flood' * 150}' >/dev/kmsg; i=$((i + 1)); done"
    ),
}


def _flood_console() -> None:
    """Let a command in the guest print forever; the limit is reached before the deadline."""
    importlib.import_module("harness.machine.console").MOST_BYTES = 1 << 17  # type: ignore[attr-defined]
    _in_guest("yes >/dev/ttyS0")


def _wrap(phase: str, fault: str) -> None:
    place, _, path = PHASES[phase].partition(":")
    owner: Any = importlib.import_module(place)
    *above, name = path.split(".")
    for part in above:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    done: list[bool] = []

    def faulty(*args: Any, **kwargs: Any) -> Any:
        if not done:
            done.append(True)
            sys.stderr.write(f"fault: {fault} at {phase}\n")
            sys.stderr.flush()
            FAULTS[fault]()
        return original(*args, **kwargs)

    setattr(owner, name, faulty)


def main() -> None:
    """Inject the fault, then run the harness."""
    _, phase, fault, *words = sys.argv
    for path, value in SHORTER.items():
        place, _, name = path.partition(":")
        assert hasattr(importlib.import_module(place), name)
        setattr(importlib.import_module(place), name, value)
    _wrap(phase, fault)
    from harness.cli.main import main as harness

    harness.main(words, prog_name="harness")


if __name__ == "__main__":
    main()
