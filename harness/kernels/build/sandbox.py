# SPDX-License-Identifier: GPL-2.0-or-later
"""Run untrusted builds in a sandbox, where bubblewrap is installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.deadline import Deadline
from harness.core.process import run

# The folders that programs need; all others, such as home folders, are hidden.
_SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt"),
    *("/nix/store", "/gnu/store"),
    *("/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d"),
    *("/etc/passwd", "/etc/group", "/etc/ssl/openssl.cnf"),
)
_HINT = "on Debian: apt-get install bubblewrap"


@dataclass(frozen=True)
class Places:
    """The paths of a build's folders inside of the sandbox."""

    source: Path
    output: Path
    ccache: Path


@dataclass(frozen=True)
class Sandbox:
    """The sandbox of this host.

    Attributes:
        bwrap: the bubblewrap program, or None where builds run unconfined.
        note: a message for the user, empty when builds are confined.
    """

    bwrap: str | None
    note: str = ""

    def places(self, source: Path, output: Path, ccache: Path) -> Places:
        """Return the paths at which a build sees its folders.

        In a sandbox they are the same for every build, so that the compiler's cache works for
        several sources, and no path of this host becomes part of a kernel.
        """
        return Places(
            self.place(source, "source"), self.place(output, "output"), self.place(ccache, "ccache")
        )

    def place(self, path: Path, name: str) -> Path:
        """Return the path at which a build sees a file or folder with this name in the sandbox."""
        return path if self.bwrap is None else Path("/harness", name)

    def argv(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        read_only: Mapping[Path, Path],
        writable: Mapping[Path, Path],
        cwd: Path,
    ) -> tuple[str, ...]:
        """Return the command line that runs a command confined.

        Args:
            env: its whole environment.
            read_only: files and folders that it can read, with their paths inside.
            writable: files and folders that it can write to, with their paths inside. It cannot
                replace them, but the folders may then contain anything, such as links.
            cwd: the folder that it starts in, inside.
        """
        if self.bwrap is None:
            assigned = [f"{name}={value}" for name, value in env.items()]
            return ("env", "--ignore-environment", f"--chdir={cwd}", *assigned, *command)
        words = [self.bwrap, "--unshare-all", "--die-with-parent", "--hostname", "harness"]
        words += ["--clearenv", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
        for path in (*_SYSTEM, *_folders_of_programs()):
            words += ["--ro-bind-try", path, path]
        for outside, inside in read_only.items():
            words += ["--ro-bind", str(outside), str(inside)]
        for outside, inside in writable.items():
            words += ["--bind", str(outside), str(inside)]
        for name, value in env.items():
            words += ["--setenv", name, value]
        return (*words, "--chdir", str(cwd), "--", *command)


def find_sandbox() -> Sandbox:
    """Return the sandbox of this host, after a test: containers and policies can forbid it."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return Sandbox(None, f"building without a sandbox: bubblewrap is not installed ({_HINT})")
    sandbox = Sandbox(bwrap)
    probe = sandbox.argv(["true"], env={"PATH": _path()}, read_only={}, writable={}, cwd=Path("/"))
    deadline = Deadline(20, "bubblewrap to start", hint="run bwrap by hand")
    done = run(probe, deadline=deadline, check=False)
    if done.status != 0:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Sandbox(
            None,
            f"building without a sandbox: bubblewrap cannot run here ({why}); "
            "unprivileged user namespaces may be turned off",
        )
    return sandbox


def build_environment(places: Places) -> dict[str, str]:
    """Return the whole environment of a build, with no variable of the user's but PATH."""
    return {
        "PATH": _path(),
        "HOME": "/nonexistent",
        "LC_ALL": "C.UTF-8",
        "TMPDIR": "/tmp",
        # The same source gives the same image.
        "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
        "KBUILD_BUILD_USER": "harness",
        "KBUILD_BUILD_HOST": "harness",
        "KBUILD_BUILD_VERSION": "1",
        "CCACHE_DIR": str(places.ccache),
        "CCACHE_NOHASHDIR": "1",
        "CCACHE_MAXSIZE": "5G",
        "CCACHE_UMASK": "077",
        # Headers that Kconfig has just written are younger than the compilation.
        "CCACHE_SLOPPINESS": "include_file_mtime,include_file_ctime",
    }


def _path() -> str:
    return os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")


def _folders_of_programs() -> tuple[str, ...]:
    """Return folders of a toolchain on PATH outside of the system's folders."""
    found = []
    for folder in _path().split(":"):
        if any(Path(folder, name).exists() for name in ("gcc", "clang", "ccache", "make")):
            real = Path(folder).resolve()
            if any(real.is_relative_to(folder) for folder in _SYSTEM):
                continue
            private = real.parent in (Path("/"), Path.home(), Path.home() / ".local")
            found.append(str(real if private else real.parent))
    return tuple(dict.fromkeys(found))
