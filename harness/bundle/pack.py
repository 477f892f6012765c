# SPDX-License-Identifier: GPL-2.0-or-later
"""Pack the evidence of one run into a ZIP file, and unpack it.

The first member, SHA256SUMS, names every other member with its SHA-256. Nothing is written before
all members have been checked.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import UsageError
from harness.core.files import SUMS
from harness.kernels.build.series import read_series
from harness.runs.evidence import KERNEL_MANIFEST, LAYOUT, PROFILE, SCENARIO
from harness.runs.result_files import VERDICT, load_runs

SERIES = "series"
_NEEDED = (VERDICT, SCENARIO, PROFILE, LAYOUT)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*){0,3}")
_SUM = re.compile(r"([0-9a-f]{64})  (.+)")
_MOST_FILES = 2000
_MOST_BYTES = 256 << 20
# Exceptions of zipfile for a damaged file, or one of another kind.
_DAMAGE = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError),
    *(RuntimeError, ValueError, LookupError, ArithmeticError),
)
# The earliest date of the format: bundles of the same evidence are the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Packed:
    """A bundle that was written.

    Attributes:
        files: the number of files in it.
        note: why the series is missing, or empty.
    """

    path: Path
    files: int
    note: str = ""


def check_evidence(folder: Path) -> None:
    """Require the files with which a run can be judged and run again.

    Raises:
        UsageError: one is missing.
    """
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            f"files are missing: {', '.join(missing)}",
            where=str(folder),
            hint="name the evidence folder of one run that has ended",
        )


def pack(folder: Path, target: Path) -> Packed:
    """Write the evidence of one run to a file, whole or not at all.

    The patches of its series are packed, too, if they still are those that the kernel was built
    from.

    Raises:
        UsageError: the folder is not the evidence of one run, or the file exists or cannot be
            written.
    """
    check_evidence(folder)
    (run,) = load_runs([folder / VERDICT])
    if target.exists():
        raise UsageError("the file exists", where=str(target), hint="name another file with -o")
    # A link leads out of the folder.
    contents = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
    contents = {name: data for name, data in contents.items() if _NAME.fullmatch(name)}
    patches, note = _series(contents, requested=run.record.request.series is not None)
    contents |= patches
    sums = "".join(f"{_digest(data)}  {name}\n" for name, data in contents.items())
    part = target.with_name(f".{target.name}.part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name, data in {SUMS: sums.encode(), **contents}.items():
                member = zipfile.ZipInfo(name, _DATE)
                member.compress_type = zipfile.ZIP_DEFLATED
                member.external_attr = 0o644 << 16
                archive.writestr(member, data)
        part.replace(target)
    except OSError as error:
        raise UsageError(
            f"the bundle cannot be written: {error.strerror}",
            where=str(target),
            hint="free some space, or name another file with -o",
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return Packed(target, len(contents), note)


def unpack(bundle: Path, folder: Path) -> None:
    """Unpack a bundle into an empty folder, after a check of everything in it.

    Raises:
        UsageError: the file is not a bundle, is damaged, or exceeds the limits of a bundle.
    """
    try:
        with zipfile.ZipFile(bundle) as archive:
            contents = _checked(archive, bundle)
        for name, data in contents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    except FileNotFoundError:
        raise UsageError(
            "there is no such file", where=str(bundle), hint="name a file of harness bundle"
        ) from None
    except _DAMAGE as error:
        raise _bad(bundle, f"not a bundle: {error or type(error).__name__}") from None
    except OSError as error:
        raise _bad(bundle, f"the bundle cannot be unpacked: {error.strerror or error}") from None


def _checked(archive: zipfile.ZipFile, bundle: Path) -> dict[str, bytes]:
    """The members by name, without SHA256SUMS, by which they were checked."""
    members = archive.infolist()
    sizes = [member.file_size for member in members]
    if len(members) > _MOST_FILES or sum(sizes) > _MOST_BYTES:
        raise _bad(bundle, "the bundle is larger than the evidence of any run")
    contents: dict[str, bytes] = {}
    for member in members:
        name = member.filename
        if not _NAME.fullmatch(name) or name in contents:
            raise _bad(bundle, f"the bundle has a file with the invalid name {name!r}")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _bad(bundle, f"{name} is compressed by an unknown method")
        with archive.open(member) as file:
            # No more than the size that it states, whatever it decompresses to.
            contents[name] = file.read(member.file_size + 1)
    lines = contents.pop(SUMS, b"").decode().splitlines()
    sums = {match[2]: match[1] for match in map(_SUM.fullmatch, lines) if match}
    if set(sums) != set(contents) or not sums:
        raise _bad(bundle, f"the bundle has other files than {SUMS} names")
    for name, data in contents.items():
        if _digest(data) != sums[name]:
            raise _bad(bundle, f"{name} is damaged: it does not match {SUMS}")
    missing = [name for name in _NEEDED if name not in contents]
    if missing:
        raise _bad(bundle, f"files are missing: {', '.join(missing)}")
    return contents


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _bad(bundle: Path, message: str) -> UsageError:
    return UsageError(
        message, where=str(bundle), hint="get the file again from the author of the bundle"
    )


def _series(contents: Mapping[str, bytes], *, requested: bool) -> tuple[dict[str, bytes], str]:
    """The patches from which the kernel was built, or the reason why they cannot be packed.

    Args:
        requested: whether the kernel was requested with a series.
    """
    try:
        built = json.loads(contents[KERNEL_MANIFEST])["series"]
        path = Path(built["path"])
        expected = [(str(patch["name"]), str(patch["sha256"])) for patch in built["patches"]]
    except (KeyError, TypeError, ValueError):
        reason = "the series is not packed: the evidence does not name its patches"
        return {}, reason if requested else ""
    try:
        series = read_series(path)
    except UsageError as error:
        return {}, f"the series is not packed: {error.where}: {error.message}"
    patches = series.patches[: len(expected)]
    if [(patch.name, _digest(patch.data)) for patch in patches] != expected:
        return {}, f"the series is not packed: {path} was changed since the kernel was built"
    # Numbers keep the order of the patches.
    files = {
        f"{number:04}-{re.sub(r'[^A-Za-z0-9._+-]', '_', patch.name)}": patch.data
        for number, patch in enumerate(patches, 1)
    }
    if series.repair_whitespace:
        order = json.dumps(list(files))
        files["series.yaml"] = f"order: {order}\nrepair_whitespace: true\n".encode()
    return {f"{SERIES}/{name}": content for name, content in files.items()}, ""
