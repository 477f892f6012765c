# SPDX-License-Identifier: GPL-2.0-or-later
"""Which QEMU runs the machines, and whether it can: asked of QEMU itself, once a binary."""

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

# Part of the name of a cache entry: raise it when the questions below change.
_QUESTIONS = 1

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
"""What every machine of the harness is made of: a device, or its property, or a machine option."""

_ASKED_DEVICES = {
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
    """One QEMU program and what it said about itself.

    Attributes:
        path: absolute path, symbolic links kept.
        version: major, minor, micro.
        version_text: what `--version` prints after "version", the distribution's revision included.
        identity: sha256 (hex) over the program's bytes and its version text.
        seccomp: whether `-sandbox on` works here.
        features: what it has of REQUIRED_FEATURES and of the optional devices, sorted.
    """

    path: Path
    version: tuple[int, int, int]
    version_text: str
    identity: str
    seccomp: bool
    features: tuple[str, ...]

    def has(self, feature: str) -> bool:
        """Whether a feature, named as in REQUIRED_FEATURES, is there."""
        return feature in self.features

    def too_old(self) -> bool:
        """Whether it is older than MINIMUM."""
        return self.version[:2] < MINIMUM

    def lacking(self) -> tuple[str, ...]:
        """The required features that are not there."""
        return tuple(name for name in REQUIRED_FEATURES if name not in self.features)


def require_qemu(binary: str | None = None) -> QemuBinary:
    """Find a QEMU that can be a CXL machine.

    Args:
        binary: path or name of the program; None means HARNESS_QEMU, or qemu-system-x86_64 on PATH.

    Raises:
        UsageError: it is absent, older than MINIMUM, or built without what a CXL machine needs.
        DeadlineExpiredError: it does not answer.
    """
    path, asked_by = find_qemu(binary)
    found = examine(path)
    if found.too_old():
        raise UsageError(
            f"QEMU {found.version_text} is too old: {MINIMUM[0]}.{MINIMUM[1]} or later is needed",
            where=asked_by,
            hint=install_qemu_hint(),
        )
    if found.lacking():
        raise UsageError(
            f"QEMU {found.version_text} is built without what a CXL machine needs: "
            + ", ".join(found.lacking()),
            where=asked_by,
            hint=install_qemu_hint(),
        )
    return found


def find_qemu(binary: str | None = None) -> tuple[Path, str]:
    """The absolute path of QEMU, and words for who asked for that one.

    Raises:
        UsageError: there is no such program.
    """
    from_environment = os.environ.get(_VARIABLE)
    if binary:
        name, asked_by = binary, binary
    elif from_environment:
        name, asked_by = from_environment, f"{_VARIABLE}={from_environment}"
    else:
        name, asked_by = _NAME, f"{_NAME} on PATH"
    found = shutil.which(name)
    if found is None:
        raise UsageError(
            "there is no such program; the harness needs "
            f"QEMU {MINIMUM[0]}.{MINIMUM[1]} or later for x86-64",
            where=asked_by,
            hint=install_qemu_hint(),
        )
    return Path(found).absolute(), asked_by


def examine(path: Path) -> QemuBinary:
    """Ask one QEMU program, or the store if it has been asked before. It may turn out unfit.

    Raises:
        UsageError: it is not QEMU, or cannot start an empty PC.
        DeadlineExpiredError: it does not answer.
    """
    entry = _cache_entry(path)
    known = _recall(entry)
    if known is not None:
        return known
    deadline = Deadline(
        _PROBE_SECONDS, f"{path} to say what it can do", hint=f"try it by hand: {path} --version"
    )
    version, version_text = _ask_version(path, deadline)
    found = QemuBinary(
        path=path,
        version=version,
        version_text=version_text,
        identity=_identity(path, version_text),
        seccomp=_start(path, "none", deadline, "-sandbox", "on").status == 0,
        features=_ask_features(path, deadline),
    )
    # An unfit one is asked again each time: it may have been the machine's fault.
    if not found.too_old() and not found.lacking():
        _remember(entry, found)
    return found


def install_qemu_hint() -> str:
    """How to get a new enough QEMU on this machine's distribution."""
    install = for_this_distribution(_INSTALL_QEMU, "install QEMU 10.0 or later")
    return f"{install}; or name another QEMU in {_VARIABLE}"


def for_this_distribution(words: Mapping[str, str], otherwise: str) -> str:
    """Pick from words keyed by the ID of os-release (debian, ubuntu, fedora, arch, suse).

    A distribution that is not listed gets the words of the first one that it says it is like.
    """
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return otherwise
    for name in (release.get("ID", ""), *release.get("ID_LIKE", "").split()):
        if name in words:
            return words[name]
    return otherwise


def _ask_version(path: Path, deadline: Deadline) -> tuple[tuple[int, int, int], str]:
    answer = run([path, "--version"], deadline=deadline, check=False)
    match = re.match(r"QEMU emulator version ((\d+)\.(\d+)(?:\.(\d+))?.*)", answer.stdout)
    if answer.status != 0 or match is None:
        raise UsageError(
            f"--version is not answered as QEMU does: {_first_words(answer)}",
            where=str(path),
            hint=install_qemu_hint(),
        )
    return (int(match[2]), int(match[3]), int(match[4] or 0)), match[1]


def _ask_features(path: Path, deadline: Deadline) -> tuple[str, ...]:
    features = []
    for device, properties in _ASKED_DEVICES.items():
        # An unknown device is only visible by its absent list: QEMU 10.0 exits with 0 for it.
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
    features += [f"q35.{option}" for option in _ask_machine_options(path, deadline)]
    return tuple(sorted(features))


def _ask_machine_options(path: Path, deadline: Deadline) -> tuple[str, ...]:
    # `-machine q35,help` lists neither of the two, so a machine has to be made.
    options = ("cxl", "hmat")
    if _start(path, "q35,cxl=on,hmat=on", deadline).status == 0:
        return options
    plain = _start(path, "q35", deadline)
    if plain.status != 0:
        raise UsageError(
            f"QEMU cannot even start an empty q35 machine: {_first_words(plain)}",
            where=shlex.join(plain.argv),
            hint=install_qemu_hint(),
        )
    return tuple(name for name in options if _start(path, f"q35,{name}=on", deadline).status == 0)


def _start(path: Path, machine: str, deadline: Deadline, *more: str) -> Completed:
    """Start a machine that never runs, and let it quit: status 0 when it could be made."""
    quiet = ("-nodefaults", "-display", "none", "-S", "-monitor", "stdio")
    argv = [str(path), "-machine", machine, "-m", "64M", *more, *quiet]
    return run(argv, deadline=deadline, check=False, stdin="quit\n")


def _help(path: Path, option: str, argument: str, deadline: Deadline) -> Completed:
    return run([path, option, argument], deadline=deadline, check=False)


def _first_words(answer: Completed) -> str:
    said = (answer.stderr.strip() or answer.stdout.strip()).splitlines()
    return said[0] if said else f"status {answer.status}, no output"


def _identity(path: Path, version_text: str) -> str:
    with path.open("rb") as program:
        digest = hashlib.file_digest(program, "sha256")
    digest.update(version_text.encode())
    return digest.hexdigest()


def _cache_entry(path: Path) -> Path:
    stat = path.stat()
    key = f"{_QUESTIONS}\0{path}\0{stat.st_size}\0{stat.st_mtime_ns}"
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
    """Write a cache entry whole or not at all; a store that cannot be written is no cache."""
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
