# SPDX-License-Identifier: GPL-2.0-or-later
"""Find the compiler and the other programs of a kernel build."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from harness.core.deadline import Deadline
from harness.core.errors import UsageError
from harness.core.process import run
from harness.scenario.kernel_request import Toolchain

# Each: the program, and its Debian package.
_COMMON = (("make", "make"), ("flex", "flex"), ("bison", "bison"), ("bc", "bc"), ("lz4", "lz4"))
_OF_GCC = (("gcc", "gcc libc6-dev"), ("ld", "binutils"))
_OF_CLANG = (
    ("clang", "clang libc6-dev"), ("ld.lld", "lld"), ("llvm-ar", "llvm"), ("llvm-nm", "llvm"),
)  # fmt: skip
_HEADERS = "libelf-dev libssl-dev"
_MEMINFO = Path("/proc/meminfo")
_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.M)
_KILOBYTES_OF_A_COMPILER = 512 << 10


@dataclass(frozen=True)
class FoundToolchain:
    """A toolchain of this host.

    Attributes:
        kind: `gcc` or `clang`.
        suffix: the end of the names of clang's programs, such as `-19`.
        version: the versions that compiler and linker print, one line each.
        ccache: compilations are cached.
    """

    kind: Toolchain
    version: str
    ccache: bool
    suffix: str = ""

    @property
    def make_words(self) -> tuple[str, ...]:
        """The variables for make."""
        compiler = f"{'ccache ' if self.ccache else ''}{self.kind}{self.suffix}"
        llvm = (f"LLVM={self.suffix or 1}",) if self.kind == "clang" else ()
        return (*llvm, f"CC={compiler}", f"HOSTCC={compiler}")


def find_toolchain(kind: Toolchain) -> FoundToolchain:
    """Return the toolchain on PATH.

    Raises:
        UsageError: a program is missing; the hint names the packages.
    """
    suffix = _newest_clang() if kind == "clang" else ""
    of_clang = tuple((f"{program}{suffix}", package) for program, package in _OF_CLANG)
    needs = (*_COMMON, *(of_clang if kind == "clang" else _OF_GCC))
    missing = [(program, package) for program, package in needs if shutil.which(program) is None]
    if missing:
        packages = dict.fromkeys(word for _, names in missing for word in names.split())
        raise UsageError(
            f"cannot build a kernel without {', '.join(name for name, _ in missing)}",
            where="--llvm" if kind == "clang" else None,
            hint=f"on Debian: apt-get install {' '.join(packages)} {_HEADERS}",
        )
    programs = (f"clang{suffix}", f"ld.lld{suffix}") if kind == "clang" else ("gcc", "ld")
    version = "\n".join(_first_line(program) for program in programs)
    return FoundToolchain(kind, version, shutil.which("ccache") is not None, suffix)


def _newest_clang() -> str:
    """Return the suffix of the newest clang on PATH; empty for `clang` itself, or without clang.

    The `clang` of a distribution can be too old for the kernel for years.
    """
    found = {
        int(match[1]): path.name.removeprefix("clang")
        for folder in os.get_exec_path()
        for path in Path(folder).glob("clang-*")
        if (match := re.fullmatch(r"clang-(\d+)", path.name))
    }
    if shutil.which("clang") is not None:
        match = re.search(r"version (\d+)", _first_line("clang"))
        if match is None or int(match[1]) >= max(found, default=0):
            return ""
    return found[max(found)] if found else ""


def jobs() -> int:
    """Return how many compilers may run concurrently, by cores and by memory."""
    cores = len(os.sched_getaffinity(0))
    # Not the free pages of sysconf: the page cache takes most of these.
    available = _AVAILABLE.search(_MEMINFO.read_text())
    if available is None:
        return cores
    return max(1, min(cores, int(available[1]) // _KILOBYTES_OF_A_COMPILER))


def _first_line(program: str) -> str:
    hint = f"run {program} --version by hand; is it broken?"
    deadline = Deadline(30, f"{program} --version", hint=hint)
    return run([program, "--version"], deadline=deadline).stdout.partition("\n")[0]
