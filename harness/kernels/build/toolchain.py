# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiler and the other programs that a kernel build takes."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from harness.core.deadline import Deadline
from harness.core.errors import UsageError
from harness.core.process import run
from harness.kernels.request import Toolchain

# Each: the program, and the Debian package that brings it.
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
    """A toolchain of this machine.

    Attributes:
        kind: `gcc` or `clang`.
        suffix: what the names of clang's programs end in, such as `-19`.
        version: what compiler and linker say of themselves, one line each.
        ccache: whether compilations are cached.
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
    """The toolchain on PATH.

    Raises:
        UsageError: something is missing; the hint has the packages.
    """
    suffix = _newest_clang() if kind == "clang" else ""
    of_clang = tuple((f"{program}{suffix}", package) for program, package in _OF_CLANG)
    needs = (*_COMMON, *(of_clang if kind == "clang" else _OF_GCC))
    missing = [(program, package) for program, package in needs if shutil.which(program) is None]
    if missing:
        packages = dict.fromkeys(word for _, names in missing for word in names.split())
        raise UsageError(
            f"a kernel cannot be built here without {', '.join(name for name, _ in missing)}",
            where="--llvm" if kind == "clang" else None,
            hint=f"on Debian: apt-get install {' '.join(packages)} {_HEADERS}",
        )
    programs = (f"clang{suffix}", f"ld.lld{suffix}") if kind == "clang" else ("gcc", "ld")
    version = "\n".join(_first_line(program) for program in programs)
    return FoundToolchain(kind, version, shutil.which("ccache") is not None, suffix)


def _newest_clang() -> str:
    """The suffix of the newest clang on PATH, none where that is `clang` itself or there is none.

    Distributions keep `clang` for years at a version that is too old for the kernel.
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
    """How many compilers may run at once, by cores and by memory."""
    cores = len(os.sched_getaffinity(0))
    # Not the free pages of sysconf: files that were read lately take most of these.
    available = _AVAILABLE.search(_MEMINFO.read_text())
    if available is None:
        return cores
    return max(1, min(cores, int(available[1]) // _KILOBYTES_OF_A_COMPILER))


def _first_line(program: str) -> str:
    hint = f"{program} --version does not answer; is it broken?"
    deadline = Deadline(30, f"{program} --version", hint=hint)
    return run([program, "--version"], deadline=deadline).stdout.partition("\n")[0]
