# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure whole runs of the harness, the floor, and memory."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from harness.guest.initramfs import write_run_initramfs
from harness.guest.keys import RunKeys
from harness.machine.console import console_pipe
from harness.machine.qemu_argv import Boot, ConsolePipe, qemu_argv
from harness.runs.prepare import Host, Prepared

_SECONDS = 3600


def floor(host: Host, prepared: Prepared, folder: Path) -> float:
    """Seconds from starting QEMU to its end, with a guest that powers off immediately.

    The same QEMU with the same command line, kernel and initramfs as a run of the scenario has.
    """
    initramfs = folder / "initramfs"
    with initramfs.open("wb") as archive:
        write_run_initramfs(
            archive, prepared.bootable.initramfs, RunKeys(), "floor", prepared.acpi_tables
        )
    near, far_fd = console_pipe()
    with os.fdopen(near, "rb", buffering=0) as console, os.fdopen(far_fd, "wb", buffering=0) as far:
        boot = Boot(
            prepared.bootable.kernel.image,
            initramfs,
            f"{prepared.command_line} rdinit=/bin/poweroff -- -f",
            ConsolePipe(far.fileno(), folder / "serial.log"),
        )
        argv = qemu_argv(host.qemu, prepared.case.profile, prepared.bootable.accel, boot=boot)
        reader = threading.Thread(target=_drain, args=(console,), daemon=True)
        reader.start()
        begin = time.monotonic()
        subprocess.run(argv, pass_fds=(far.fileno(),), check=True, timeout=300)
        seconds = time.monotonic() - begin
        far.close()
        reader.join()
        return seconds


def _drain(console: IO[bytes]) -> None:
    """Read a console until it closes: a guest with a full console blocks."""
    while console.read(1 << 16):
        pass


def harness(*words: str, **environment: str) -> float:
    """Seconds from starting the harness to its end, which must be a verdict about a kernel."""
    begin = time.monotonic()
    done = subprocess.run(
        ["harness", *words],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        env=os.environ | environment,
    )
    seconds = time.monotonic() - begin
    if done.returncode not in (0, 1):
        sys.exit(f"bench: harness {' '.join(words)}:\n{done.stdout}{done.stderr}")
    return seconds


def peak_memory(words: Sequence[str]) -> float:
    """Return the peak memory of the harness and its QEMU in MiB (PSS, polled)."""
    most = 0
    with subprocess.Popen(["harness", *words], stdout=subprocess.DEVNULL) as run:
        while run.poll() is None:
            most = max(most, sum(_memory_of(pid) for pid in (run.pid, *_children_of(run.pid))))
            time.sleep(0.02)
    return most / 1024


def _children_of(pid: int) -> list[int]:
    """The processes that any of a process's threads has started."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(word) for word in path.read_text().split()]
    return found


def _memory_of(pid: int) -> int:
    """Return the PSS of a process in KiB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def alternate(pairs: int, what: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Measure several functions alternately, for equal conditions."""
    taken: dict[str, list[float]] = {name: [] for name in what}
    for _ in range(pairs):
        for name, measure in what.items():
            taken[name].append(measure())
    return taken


def show(taken: Mapping[str, Sequence[float]]) -> None:
    """Print the median and all values of each measurement."""
    width = max(map(len, taken))
    for name, seconds in taken.items():
        spread = " ".join(f"{one:.2f}" for one in sorted(seconds))
        print(f"{name.ljust(width)}  median {statistics.median(seconds):.2f} s   ({spread})")


def show_ratio(name: str, upper: Sequence[float], lower: Sequence[float]) -> None:
    """Print the ratio of two measurements, by pairs and by medians."""
    pairs = statistics.median(a / b for a, b in zip(upper, lower, strict=True))
    medians = statistics.median(upper) / statistics.median(lower)
    print(f"{name}: median of pairs {pairs:.2f}, of medians {medians:.2f}")
