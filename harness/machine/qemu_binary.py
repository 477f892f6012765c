# SPDX-License-Identifier: GPL-2.0-or-later
"""Find QEMU and query its version and features, once for each binary."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from harness.core.deadline import Deadline
from harness.core.errors import UsageError
from harness.core.paths import store_root
from harness.core.process import Completed, run

MINIMUM = (10, 0)
_NAME = "qemu-system-x86_64"
_VARIABLE = "HARNESS_QEMU"
_PROBE_SECONDS = 30.0

# Part of the name of a cache entry. Increment it when the queries below change.
_QUERIES = 1

REQUIRED_FEATURES = (
    "cxl-type3",
    "cxl-type3.volatile-memdev",
    "cxl-rp",
    "pxb-cxl",
    "pxb-cxl.hdm_for_passthrough",
    "q35.cxl",
    "q35.hmat",
    "netdev.user",
)
"""Devices, their properties and machine options that every machine of the harness needs."""

_QUERIED_DEVICES = {
    "cxl-type3": ("volatile-memdev",),
    "cxl-rp": (),
    "cxl-upstream": (),
    "cxl-downstream": (),
    "pxb-cxl": ("hdm_for_passthrough",),
    "sp-mem": (),
}

_INSTALL_QEMU = {
    "debian": "run ci/setup, or apt-get install qemu-system-x86 (Debian 12: -t bookworm-backports)",
    "ubuntu": "apt-get install qemu-system-x86 (new enough from Ubuntu 25.10 on)",
    "fedora": "dnf install qemu-system-x86 (new enough from Fedora 43 on)",
    "arch": "pacman -S qemu-system-x86",
    "suse": "zypper install qemu-x86",
}


@dataclass(frozen=True)
class QemuBinary:
    """A QEMU program and its features.

    Attributes:
        path: absolute path, symbolic links kept.
        version: major, minor, micro.
        version_text: the output of `--version` after "version", with the distribution's revision.
        identity: sha256 (hex) over the program's bytes and its version text.
        seccomp: whether `-sandbox on` works here.
        features: its REQUIRED_FEATURES and optional devices, sorted.
    """

    path: Path
    version: tuple[int, int, int]
    version_text: str
    identity: str
    seccomp: bool
    features: tuple[str, ...]

    def has(self, feature: str) -> bool:
        """True if it has a feature, named as in REQUIRED_FEATURES."""
        return feature in self.features

    def too_old(self) -> bool:
        """True if it is older than MINIMUM."""
        return self.version[:2] < MINIMUM

    def lacking(self) -> tuple[str, ...]:
        """The required features that it lacks."""
        return tuple(name for name in REQUIRED_FEATURES if name not in self.features)


def require_qemu(binary: str | None = None) -> QemuBinary:
    """Find a QEMU that supports CXL machines.

    Args:
        binary: path or name of the program; None means HARNESS_QEMU, or qemu-system-x86_64 on PATH.

    Raises:
        UsageError: it is missing, older than MINIMUM, or built without CXL.
        DeadlineExpiredError: it does not respond.
    """
    path, source = find_qemu(binary)
    qemu = examine(path)
    if qemu.too_old():
        raise UsageError(
            f"QEMU {qemu.version_text} is too old: {MINIMUM[0]}.{MINIMUM[1]} or later is needed",
            where=source,
            hint=install_qemu_hint(),
        )
    if qemu.lacking():
        raise UsageError(
            f"QEMU {qemu.version_text} lacks features that a CXL machine needs: "
            + ", ".join(qemu.lacking()),
            where=source,
            hint=install_qemu_hint(),
        )
    return qemu


def find_qemu(binary: str | None = None) -> tuple[Path, str]:
    """The absolute path of QEMU, and where it was configured.

    Raises:
        UsageError: no such program.
    """
    from_environment = os.environ.get(_VARIABLE)
    if binary:
        name, source = binary, binary
    elif from_environment:
        name, source = from_environment, f"{_VARIABLE}={from_environment}"
    else:
        name, source = _NAME, f"{_NAME} on PATH"
    found = shutil.which(name)
    if found is None:
        raise UsageError(
            "there is no such program; the harness needs "
            f"QEMU {MINIMUM[0]}.{MINIMUM[1]} or later for x86-64",
            where=source,
            hint=install_qemu_hint(),
        )
    return Path(found).absolute(), source


def examine(path: Path) -> QemuBinary:
    """Query a QEMU program, or take the stored result. It may lack required features.

    Raises:
        UsageError: it is not QEMU, or cannot start an empty PC.
        DeadlineExpiredError: it does not respond.
    """
    entry = _cache_entry(path)
    known = _recall(entry)
    if known is not None:
        return known
    deadline = Deadline(
        _PROBE_SECONDS, f"{path} to list its features", hint=f"try it by hand: {path} --version"
    )
    version, version_text = _query_version(path, deadline)
    found = QemuBinary(
        path=path,
        version=version,
        version_text=version_text,
        identity=_identity(path, version_text),
        seccomp=_start(path, "none", deadline, "-sandbox", "on").status == 0,
        features=_query_features(path, deadline),
    )
    # An unfit one is queried again each time: this host may have been the reason.
    if not found.too_old() and not found.lacking():
        _remember(entry, found)
    return found


def install_qemu_hint() -> str:
    """The hint to install a new enough QEMU on this machine's distribution."""
    install = for_this_distribution(_INSTALL_QEMU, "install QEMU 10.0 or later")
    return f"{install}; or name another QEMU in {_VARIABLE}"


def for_this_distribution(texts: Mapping[str, str], default: str) -> str:
    """Pick a text by the ID of os-release (debian, ubuntu, fedora, arch, suse), or ID_LIKE."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return default
    for name in (release.get("ID", ""), *release.get("ID_LIKE", "").split()):
        if name in texts:
            return texts[name]
    return default


def _query_version(path: Path, deadline: Deadline) -> tuple[tuple[int, int, int], str]:
    answer = run([path, "--version"], deadline=deadline, check=False)
    match = re.match(r"QEMU emulator version ((\d+)\.(\d+)(?:\.(\d+))?.*)", answer.stdout)
    if answer.status != 0 or match is None:
        raise UsageError(
            f"not QEMU: --version prints {_first_line(answer)}",
            where=str(path),
            hint=install_qemu_hint(),
        )
    return (int(match[2]), int(match[3]), int(match[4] or 0)), match[1]


def _query_features(path: Path, deadline: Deadline) -> tuple[str, ...]:
    features = []
    for device, properties in _QUERIED_DEVICES.items():
        # QEMU 10.0 exits with 0 for an unknown device: only the list of options is missing.
        answer = _help(path, "-device", f"{device},help", deadline)
        if f"{device} options:" not in answer.stdout:
            continue
        features.append(device)
        features += [
            f"{device}.{name}"
            for name in properties
            if re.search(rf"^\s*{re.escape(name)}=", answer.stdout, re.MULTILINE)
        ]
    if re.search(r"^user$", _help(path, "-netdev", "help", deadline).stdout, re.MULTILINE):
        features.append("netdev.user")
    features += [f"q35.{option}" for option in _query_machine_options(path, deadline)]
    return tuple(sorted(features))


def _query_machine_options(path: Path, deadline: Deadline) -> tuple[str, ...]:
    # `-machine q35,help` lists neither of the two, so try to create such machines.
    options = ("cxl", "hmat")
    if _start(path, "q35,cxl=on,hmat=on", deadline).status == 0:
        return options
    plain = _start(path, "q35", deadline)
    if plain.status != 0:
        raise UsageError(
            f"QEMU cannot start an empty q35 machine: {_first_line(plain)}",
            where=shlex.join(plain.argv),
            hint=install_qemu_hint(),
        )
    return tuple(name for name in options if _start(path, f"q35,{name}=on", deadline).status == 0)


def _start(path: Path, machine: str, deadline: Deadline, *more: str) -> Completed:
    """Create a machine that never runs, and quit: status 0 when that succeeds."""
    quiet = ("-nodefaults", "-display", "none", "-S", "-monitor", "stdio")
    argv = [str(path), "-machine", machine, "-m", "64M", *more, *quiet]
    return run(argv, deadline=deadline, check=False, stdin="quit\n")


def _help(path: Path, option: str, argument: str, deadline: Deadline) -> Completed:
    return run([path, option, argument], deadline=deadline, check=False)


def _first_line(answer: Completed) -> str:
    lines = (answer.stderr.strip() or answer.stdout.strip()).splitlines()
    return lines[0] if lines else f"status {answer.status}, no output"


def _identity(path: Path, version_text: str) -> str:
    with path.open("rb") as program:
        digest = hashlib.file_digest(program, "sha256")
    digest.update(version_text.encode())
    return digest.hexdigest()


def _cache_entry(path: Path) -> Path:
    stat = path.stat()
    key = f"{_QUERIES}\0{path}\0{stat.st_size}\0{stat.st_mtime_ns}"
    return store_root() / "qemu" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _recall(entry: Path) -> QemuBinary | None:
    try:
        return msgspec.json.decode(entry.read_bytes(), type=QemuBinary, dec_hook=_decode_path)
    except (OSError, msgspec.MsgspecError):
        return None


def _decode_path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"{value!r} is not a {kind.__name__}")


def _remember(entry: Path, found: QemuBinary) -> None:
    """Write a cache entry atomically, if the store is writable."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=entry.parent, delete=False) as draft:
            try:
                draft.write(msgspec.json.encode(found, enc_hook=str))
                draft.close()
                os.replace(draft.name, entry)
            except BaseException:
                Path(draft.name).unlink(missing_ok=True)
                raise
    except OSError:
        return
