# SPDX-License-Identifier: GPL-2.0-or-later
"""Find `image:PATH`: a kernel that the user has built or unpacked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import UsageError
from harness.core.kernel import Kernel
from harness.kernels.modules import is_build_tree, module_files, read_vermagic
from harness.kernels.spec import KernelSpec
from harness.kernels.store import found_scripts, found_symbols

_TREE_IMAGE = Path("arch", "x86", "boot", "bzImage")
_IMAGE_NAMES = ("vmlinuz", "bzImage")
_HINT = (
    "name a kernel tree that was built (it has arch/x86/boot/bzImage), a bzImage, or a folder "
    "with vmlinuz or bzImage, config, and modules/ or lib/modules/RELEASE"
)
# linux/Documentation/arch/x86/boot.rst: the magic number, and the pointer to the version string,
# relative to the end of the first sector.
_MAGIC_AT, _MAGIC = 0x202, b"HdrS"
_VERSION_AT, _SECTOR = 0x20E, 0x200
_VERSION_LENGTH = 256
# The drivers under test: a mismatch of these would spoil a verdict.
_CHECKED_FOLDERS = frozenset(("cxl", "dax"))


@dataclass(frozen=True)
class _Parts:
    image: Path
    modules: Path | None
    config: Path | None


def find_image(spec: KernelSpec) -> Kernel:
    """Return the kernel at a path: a built tree, an image, or a folder with an image in it.

    Raises:
        UsageError: the path has no kernel, or its modules are of another kernel.
    """
    path = Path(spec.value).expanduser().absolute()
    where = str(spec)
    try:
        image = _find_image_file(path, where)
        release = read_release(image)
        parts = _find_parts(path, image, release)
        files = module_files(parts.modules) if parts.modules is not None else ()
        _check_modules(release, parts.modules, files, where)
        identity = _identity(parts, files)
    except OSError as error:
        raise UsageError(str(error), where=where, hint=_HINT) from error
    return Kernel(
        spec=where,
        release=release,
        image=image,
        modules=parts.modules,
        config=parts.config,
        identity=identity,
        symbols=found_symbols(parts.modules or image.parent) or found_symbols(image.parent),
        # A tree that was built outside of its source has a link to the source.
        scripts=found_scripts(*(place for place in _source_folders(parts) if place.is_dir())),
    )


def _source_folders(parts: _Parts) -> tuple[Path, ...]:
    folder = parts.modules or parts.image.parent
    return folder, folder / "source", parts.image.parent


def read_release(image: Path) -> str:
    """Return the release (`uname -r`) in the header of a bzImage.

    Raises:
        UsageError: the file is not an x86 kernel image.
        OSError: the file cannot be read.
    """
    with image.open("rb") as stream:
        head = stream.read(0xFFFF + _SECTOR + _VERSION_LENGTH)
    pointer = int.from_bytes(head[_VERSION_AT : _VERSION_AT + 2], "little")
    if head[_MAGIC_AT : _MAGIC_AT + 4] != _MAGIC or pointer == 0:
        raise UsageError("not an x86 kernel image (bzImage)", where=str(image), hint=_HINT)
    text = (
        head[pointer + _SECTOR :][:_VERSION_LENGTH].partition(b"\0")[0].decode("ascii", "replace")
    )
    words = text.split()
    # The release is printed, and used in file names.
    if not words or not words[0].isprintable() or "/" in words[0]:
        raise UsageError("the kernel image has no release", where=str(image), hint=_HINT)
    return words[0]


def _find_image_file(path: Path, where: str) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise UsageError("there is no such file or folder", where=where, hint=_HINT)
    for image in (path / _TREE_IMAGE, *(path / name for name in _IMAGE_NAMES)):
        if image.is_file():
            return image
    named = [*sorted(path.glob("vmlinuz-*")), *sorted(path.glob("boot/vmlinuz-*"))]
    if len(named) > 1:
        names = ", ".join(str(file.relative_to(path)) for file in named)
        raise UsageError(
            f"the folder has several kernels: {names}",
            where=where,
            hint="name one of the files instead of the folder",
        )
    if named:
        return named[0]
    what = (
        "the kernel tree is not built" if (path / "Kbuild").exists() else "the folder has no kernel"
    )
    raise UsageError(what, where=where, hint=_HINT)


def _find_parts(path: Path, image: Path, release: str) -> _Parts:
    # An image below arch/x86/boot belongs to its tree, also where the user named the image.
    tree = image.parents[3] if len(image.parents) > 3 else image.parent
    if image == tree / _TREE_IMAGE and is_build_tree(tree):
        return _Parts(image, tree, _first((tree / ".config",)))
    base = image.parent
    top = path if path.is_dir() else base
    installed = [
        parent / lib / release
        for parent in dict.fromkeys((top, base, base.parent))
        for lib in ("lib/modules", "usr/lib/modules")
    ]
    places = (base / "modules", base / "modules" / release, *installed)
    modules = next((place for place in places if (place / "kernel").is_dir()), None)
    configs = [base / "config", base / f"config-{release}", base / ".config"]
    configs += [modules / "config"] if modules is not None else []
    return _Parts(image, modules, _first(configs))


def _first(paths: list[Path] | tuple[Path, ...]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _check_modules(release: str, modules: Path | None, files: tuple[Path, ...], where: str) -> None:
    if modules is None:
        return
    ours = [path for path in files if _CHECKED_FOLDERS & set(path.relative_to(modules).parts)]
    named = {path: read_vermagic(path).partition(" ")[0] for path in ours or files[:1]}
    written = modules / "include" / "config" / "kernel.release"
    if written.is_file():
        named[written] = written.read_text().strip()
    for path, module_release in named.items():
        if module_release != release:
            raise UsageError(
                f"the modules do not match the kernel: the image is {release}, "
                f"{path.relative_to(modules)} is of {module_release or 'no release'}",
                where=where,
                hint="build image and modules again, from one state of the source",
            )


def _identity(parts: _Parts, files: tuple[Path, ...]) -> str:
    """Return a digest of the image, the configuration, and the modules' names, sizes and times."""
    digest = hashlib.sha256(parts.image.read_bytes())
    digest.update(parts.config.read_bytes() if parts.config is not None else b"no config")
    for path in files:
        status = path.stat()
        name = str(path).removeprefix(f"{parts.modules}/")
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
