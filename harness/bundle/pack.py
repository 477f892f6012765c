# SPDX-License-Identifier: GPL-2.0-or-later
"""One run in one file, for another person: its evidence, and what is needed to run it again.

A bundle is a ZIP file. Its first member, `bundle.json`, names every other one with its size and
SHA-256; nothing is unpacked that is not named there, and nothing outside the folder asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness.contract.result import RunResult
from harness.core.errors import UsageError
from harness.kernels.build.series import read_series
from harness.runs.evidence import KERNEL_MANIFEST, LAYOUT, PROFILE, SCENARIO
from harness.runs.result_files import VERDICT, load_runs

INDEX = "bundle.json"
SERIES = "series"
_FORM = 1
_NEEDED = (VERDICT, SCENARIO, PROFILE, LAYOUT)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*){0,3}\Z")
_MOST_FILES = 2000
_MOST_BYTES = 256 << 20
# What zipfile raises when a file is none, or is damaged.
_DAMAGE = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError),
    *(RuntimeError, ValueError, LookupError, ArithmeticError),
)
# The earliest date that a ZIP file can have: bundles of the same evidence are the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Packed:
    """A bundle that was written.

    Attributes:
        path: the file.
        files: how many files are in it.
        notes: what could not be packed, and why.
    """

    path: Path
    files: int
    notes: tuple[str, ...]


def pack(folder: Path, target: Path) -> Packed:
    """Write one run's evidence to a file, whole or not at all.

    The patches of the run's series go with it, where they still are what the kernel was built from.

    Raises:
        UsageError: the folder is not the whole evidence of one run, or the file exists or cannot
            be written.
    """
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            f"there is no {' and no '.join(missing)} in it",
            where=str(folder),
            hint="name the evidence folder of one run that has ended; evidence of older versions "
            "has no scenario in it: run the scenario again",
        )
    (run,) = load_runs([folder / VERDICT])
    if target.exists():
        raise UsageError(
            "there is such a file already", where=str(target), hint="name another with -o"
        )
    contents = {name: path.read_bytes() for name, path in _files(folder)}
    patches, notes = _series(run.record, contents)
    contents.update(patches)
    index = {
        "form": _FORM,
        "harness": _version(),
        "scenario": run.record.scenario,
        "kernel": run.record.spec,
        "files": {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in sorted(contents.items())
        },
    }
    part = target.with_name(f".{target.name}.part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            archive.writestr(_member(INDEX), json.dumps(index, indent=1) + "\n")
            for name, data in sorted(contents.items()):
                archive.writestr(_member(name), data)
        part.replace(target)
    except OSError as error:
        raise UsageError(
            f"cannot be written: {os.strerror(error.errno or 0)}",
            where=str(target),
            hint="free some space, or name another file with -o",
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return Packed(target, len(contents), notes)


def unpack(bundle: Path, folder: Path) -> Path:
    """Unpack a bundle into an empty folder, once every byte of it has been checked.

    Returns:
        the folder, which is then one run's evidence.

    Raises:
        UsageError: the file is no bundle, was damaged or changed, or is larger than any of ours.
    """
    try:
        with zipfile.ZipFile(bundle) as archive:
            files = _checked_files(archive, bundle)
            for name, data in files:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    except FileNotFoundError:
        raise UsageError(
            "there is no such file", where=str(bundle), hint="name what harness bundle wrote"
        ) from None
    except _DAMAGE as error:
        raise _bad(bundle, f"not a bundle: {error or type(error).__name__}") from None
    except OSError as error:
        raise _bad(bundle, f"cannot be unpacked: {error.strerror or error}") from None
    return folder


def _checked_files(archive: zipfile.ZipFile, bundle: Path) -> list[tuple[str, bytes]]:
    """Every file that the index names, with its content as the index says."""
    named = _index(archive, bundle)
    listed = [one.filename for one in archive.infolist() if one.filename != INDEX]
    if len(listed) != len(set(listed)) or set(listed) != set(named):
        raise _bad(bundle, "it holds other files than its index names")
    files = []
    for name, said in sorted(named.items()):
        if not _NAME.match(name) or name == INDEX:
            raise _bad(bundle, f"it holds a file with the name {name!r}")
        size, digest = said
        with archive.open(name) as member:
            data = member.read(size + 1)
        if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
            raise _bad(bundle, f"{name} is not what the index says: the bundle was damaged")
        files.append((name, data))
    missing = [name for name in _NEEDED if name not in named]
    if missing:
        raise _bad(bundle, f"there is no {' and no '.join(missing)} in it")
    return files


def _index(archive: zipfile.ZipFile, bundle: Path) -> dict[str, tuple[int, str]]:
    try:
        with archive.open(INDEX) as member:
            raw = json.loads(member.read(_MOST_FILES * 400))
        if raw["form"] != _FORM:
            raise _bad(bundle, f"a bundle of another form, {raw['form']!r}")
        files = {
            str(name): (int(one["size"]), str(one["sha256"])) for name, one in raw["files"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _bad(bundle, f"not a bundle: its index makes no sense ({error})") from None
    sizes = [size for size, _ in files.values()]
    if len(files) > _MOST_FILES or any(size < 0 for size in sizes) or sum(sizes) > _MOST_BYTES:
        raise _bad(bundle, "it is larger than the evidence of any run")
    return files


def _bad(bundle: Path, message: str) -> UsageError:
    return UsageError(
        message, where=str(bundle), hint="get the file again from whoever ran harness bundle"
    )


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of the evidence by name; links lead elsewhere and are left out."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not path.is_symlink() and _NAME.match(name):
            yield name, path


def _series(
    record: RunResult, contents: Mapping[str, bytes]
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The patches of the run's series, when they are still those that the kernel was built from."""
    try:
        built = json.loads(contents[KERNEL_MANIFEST])["series"]
        path = Path(built["path"])
        wanted = [(str(one["name"]), str(one["sha256"])) for one in built["patches"]]
    except (KeyError, TypeError, ValueError):
        if record.request.series is not None:
            return {}, ("the series is not in it: the evidence does not say what it was",)
        return {}, ()
    try:
        series = read_series(path)
        patches = series.patches[: len(wanted)]
    except UsageError as error:
        return {}, (f"the series is not in it: {error.where}: {error.message}",)
    if [(one.name, hashlib.sha256(one.data).hexdigest()) for one in patches] != wanted:
        return {}, (f"the series is not in it: {path} was changed since the kernel was built",)
    # Numbered, so that they apply in this order whatever they are called.
    files = {
        f"{number:04}-{re.sub(r'[^A-Za-z0-9._+-]', '_', one.name)}": one.data
        for number, one in enumerate(patches, 1)
    }
    if series.repair_whitespace:
        order = json.dumps(list(files))
        files["series.yaml"] = f"order: {order}\nrepair_whitespace: true\n".encode()
    return {f"{SERIES}/{name}": content for name, content in files.items()}, ()


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, _DATE)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = 0o644 << 16
    return member


def _version() -> str:
    try:
        return version("cxl-ownership-harness")
    except PackageNotFoundError:
        return "unknown"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of an unpacked bundle, empty where the file is missing or is something else."""
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return raw if isinstance(raw, dict) else {}
