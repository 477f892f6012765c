# SPDX-License-Identifier: GPL-2.0-or-later
"""Run make, report its progress, and find the first error in its output."""

from __future__ import annotations

import errno
import os
import re
import select
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.core.deadline import Deadline
from harness.core.errors import HarnessError, UnbuildableError, UsageError
from harness.core.process import spawn

_SECONDS = 4 * 3600.0
_TICK = 1.0
_COMPILED = re.compile(rb"^  (?:CC|AS|HOSTCC|CC \[M\]|AS \[M\])\s", re.M)
_ERROR = re.compile(
    r"^.*?(?:\b(?:fatal )?error:|undefined reference|: multiple definition of"
    r"|\*\*\* (?!\[)|^ERROR: modpost|internal compiler error|Killed signal).*$",
    re.M,
)
_STOPPED = re.compile(r"^make(?:\[\d+\])?: \*\*\* .*$", re.M)
_AFTER = 7
# A shell, and bubblewrap, end with status 128 + N when a program was killed by signal N.
_KILLED = 128
_MEMORY_HINT = "perhaps the host has too little memory: close other programs and try again"
_HEADERS = {"gelf.h": "libelf-dev", "libelf.h": "libelf-dev", "openssl/": "libssl-dev"}


class MakeKilledError(UnbuildableError):
    """make was killed: a file that it was writing may be incomplete."""


def run_make(
    argv: Sequence[str],
    log: Path,
    files: Callable[[int], None],
    *,
    hide: Sequence[Path] = (),
    what: str = "the kernel to be built",
) -> int:
    """Run a make command to its end.

    Args:
        log: its output is appended to this file.
        files: called every second with the number of files compiled so far.
        hide: folders that are removed from error messages.
        what: the awaited event, for the deadline.

    Returns:
        The number of files compiled.

    Raises:
        MakeKilledError: make was killed.
        UnbuildableError: make failed.
        UsageError: a header is not installed.
        OSError: the disk is full.
    """
    begin = log.stat().st_size if log.exists() else 0
    deadline = Deadline(_SECONDS, what, hint=f"see its output in {log}")
    count = 0
    with log.open("ab", buffering=0) as output:
        read, write = os.pipe()
        try:
            with spawn(argv, stdout=write, stderr=write) as child:
                os.close(write)
                write = -1
                tail = b""
                while True:
                    ready, _, _ = select.select([read], [], [], min(_TICK, deadline.check()))
                    chunk = os.read(read, 1 << 16) if ready else b""
                    if ready and not chunk:
                        break
                    output.write(chunk)
                    lines, _, rest = (tail + chunk).rpartition(b"\n")
                    count += len(_COMPILED.findall(lines))
                    tail = rest
                    files(count)
                child.wait(timeout=deadline.check())
        finally:
            os.close(read)
            if write >= 0:
                os.close(write)
    status = child.returncode
    if status < 0 or status > _KILLED:
        number = -status if status < 0 else status - _KILLED
        raise MakeKilledError(
            f"make was killed, by signal {number}", where=str(log), hint=_MEMORY_HINT
        )
    if status != 0:
        with log.open("rb") as output:
            output.seek(begin)
            text = output.read().decode(errors="replace")
        raise failure(text, log, hide)
    return count


def failure(text: str, log: Path, hide: Sequence[Path] = ()) -> HarnessError:
    """Return the error that explains the output of make.

    Raises:
        OSError: the disk is full.
    """
    for code in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(code) in text:
            raise OSError(code, os.strerror(code))
    for folder in hide:
        text = text.replace(f"{folder}/", "")
    shown = first_error(text)
    for header, package in _HEADERS.items():
        if re.search(rf"{re.escape(header)}\S*: No such file", text):
            return UsageError(
                f"a header that the build needs is not installed:\n{shown}",
                where=str(log),
                hint=f"on Debian: apt-get install {package}",
            )
    if re.search(r"\*\*\* (?:C compiler|Linker|Assembler) is too old", text):
        return UsageError(
            f"the toolchain is too old for this source:\n{shown}",
            where=str(log),
            hint="install a newer one; the newest clang-N on PATH is used, on Debian 12: "
            "apt-get install clang-19 lld-19 llvm-19",
        )
    killed = "internal compiler error: Killed" in text or "Killed signal terminated" in text
    return UnbuildableError(
        f"the kernel does not build:\n{shown}",
        where=str(log),
        hint=f"a compiler was killed, {_MEMORY_HINT}"
        if killed
        else "this file has the whole output",
    )


def first_error(text: str) -> str:
    """Return the first error with the lines that belong to it."""
    match = _ERROR.search(text) or _STOPPED.search(text)
    if match is None:
        return "\n".join(f"  {line}" for line in text.splitlines()[-_AFTER:])
    before = text[: match.start()].splitlines()
    head = [line for line in before[-2:] if re.search(r": In function |In file included ", line)]
    rest = text[match.start() :].splitlines()
    lines = [rest[0]]
    for line in rest[1:_AFTER]:
        if _STOPPED.match(line) or re.match(r"  [A-Z]+(?: \[M\])?\s+\S+$", line):
            break
        lines.append(line)
    return "\n".join(f"  {line}" for line in (*head, *lines))
