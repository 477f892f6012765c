# SPDX-License-Identifier: GPL-2.0-or-later
"""Add files and lines to traces, with the kernel's own scripts/decode_stacktrace.sh."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from harness.core.deadline import Deadline
from harness.core.errors import DeadlineExpiredError, HarnessError
from harness.core.kernel import Kernel
from harness.core.process import CommandError, run
from harness.kernels.build.sandbox import Sandbox, build_environment, find_sandbox
from harness.kernels.store import DECODERS

_SECONDS = 120.0
_PROGRAMS = ("bash", "addr2line", "nm", "readelf")
_CODE = re.compile(r"\S\+0x[0-9a-f]+/0x[0-9a-f]+")


class NotDecodableError(HarnessError):
    """The traces of this kernel cannot be decoded."""


def has_code(lines: Sequence[str]) -> bool:
    """Return whether these lines contain addresses of the kernel's code."""
    return any(_CODE.search(line) for line in lines)


def decode_trace(
    kernel: Kernel, lines: Sequence[str], sandbox: Sandbox | None = None
) -> tuple[str, ...]:
    """Return the lines of a trace with files and line numbers added.

    The script comes from the kernel's source, like the Makefiles: it runs in the sandbox.

    Args:
        kernel: the kernel that printed them.
        lines: as it printed them.
        sandbox: confines the script; None for this host's.

    Raises:
        NotDecodableError: names what is missing.
    """
    vmlinux, scripts = kernel.symbols, kernel.scripts
    if vmlinux is None:
        raise _impossible("the kernel has no vmlinux", "use a kernel that was built here")
    if not _has_lines(vmlinux):
        raise _impossible(
            "it was built without debug information", "build it with --config debug_info"
        )
    if scripts is None:
        raise _impossible(f"the kernel has no {DECODERS[0]}", "build it again")
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        raise _impossible(
            f"{', '.join(missing)} is not installed", "on Debian: apt-get install bash binutils"
        )
    sandbox = sandbox or find_sandbox()
    vmlinux, scripts = vmlinux.resolve(), scripts.resolve()
    modules = (kernel.modules or vmlinux.parent).resolve()
    argv = sandbox.argv(
        ["bash", str(scripts / DECODERS[0]), str(vmlinux), "auto", str(modules)],
        env=build_environment(sandbox.places(vmlinux.parent, vmlinux.parent, Path("/tmp"))),
        read_only={folder: folder for folder in (vmlinux.parent, scripts, modules)},
        writable={},
        cwd=vmlinux.parent,
    )
    deadline = Deadline(
        _SECONDS, f"{DECODERS[0]} to decode a trace", hint="is the host overloaded?"
    )
    try:
        done = run(argv, deadline=deadline, stdin="".join(f"{line}\n" for line in lines))
    except (CommandError, DeadlineExpiredError) as error:
        raise _impossible(error.message, error.hint) from error
    return tuple(line for line in done.stdout.splitlines() if line.strip())


def _has_lines(vmlinux: Path) -> bool:
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with vmlinux.open("rb") as stream:
            return ELFFile(stream).get_section_by_name(".debug_line") is not None
    except (ELFError, OSError):
        return False


def _impossible(why: str, hint: str) -> NotDecodableError:
    return NotDecodableError(why, hint=hint)
