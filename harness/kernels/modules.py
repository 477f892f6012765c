# SPDX-License-Identifier: GPL-2.0-or-later
"""Find and read the modules of a kernel, in an installed folder or a build tree."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO

from harness.core.errors import UsageError
from harness.core.kernel_modules import (
    KernelModule,
    ModulePlan,
    module_name,
    parse_modinfo,
    plan_modules,
)

_NAME = re.compile(r"[A-Za-z0-9_]+")
_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")
_HINT = "delete the file or its store entry, and fetch or build the kernel again"


@dataclass(frozen=True)
class ModuleIndex:
    """The module files of a kernel, which were not read yet.

    Attributes:
        files: module files by name, without hyphens.
        built_in: names of modules that are built in.
    """

    files: Mapping[str, Path]
    built_in: frozenset[str]


def is_build_tree(folder: Path) -> bool:
    """Return whether a kernel was built in a folder, in contrast to one of installed modules."""
    return (folder / "include" / "config").is_dir()


def module_files(folder: Path) -> tuple[Path, ...]:
    """Return the module files of a kernel, in a stable order.

    Args:
        folder: `Kernel.modules`: an installed folder (with `kernel/` and perhaps `updates/`), or a
            build tree, where `modules.order` lists the modules.
    """
    if is_build_tree(folder):
        return tuple(_files_of_tree(folder))
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        found += (Path(parent, name) for name in sorted(names) if name.endswith(_SUFFIXES))
    return tuple(found)


def index_modules(folder: Path | None) -> ModuleIndex:
    """Find the modules of a kernel; of two with the same name, take the one outside `kernel/`.

    Args:
        folder: `Kernel.modules`, see `module_files`; None gives an empty index.
    """
    if folder is None:
        return ModuleIndex(MappingProxyType({}), frozenset())
    files: dict[str, Path] = {}
    for path in module_files(folder):
        name = _name_of(path.name)
        if name not in files or path.relative_to(folder).parts[0] != "kernel":
            files[name] = path
    listed = folder / "modules.builtin"
    lines = listed.read_text().split() if listed.exists() else ()
    built_in = frozenset(_name_of(line.rpartition("/")[2]) for line in lines)
    return ModuleIndex(MappingProxyType(files), built_in)


def module_order(folder: Path | None) -> tuple[str, ...]:
    """Return a kernel's modules in the order of its Makefiles, empty where it is unknown."""
    if folder is None or not (folder / "modules.order").exists():
        return ()
    lines = (folder / "modules.order").read_text().split()
    return tuple(module_name(Path(line).stem) for line in lines)


def find_modules(index: ModuleIndex, requested: Iterable[str]) -> ModulePlan:
    """Return the requested modules with their dependencies, in load order.

    A name that the kernel lacks is in the plan's `missing`, not an error.

    Raises:
        UsageError: a module file cannot be read.
    """

    def read(name: str) -> KernelModule | None:
        path = index.files.get(name)
        return None if path is None else read_module(path)

    return plan_modules(requested, read=read, available=index.files, built_in=index.built_in)


def read_module(path: Path) -> KernelModule:
    """Read the description of a module from its file, plain or compressed.

    Raises:
        UsageError: the file is not a kernel module.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    with open_module(path) as stream:
        try:
            section = ELFFile(stream).get_section_by_name(".modinfo")
        except ELFError as error:
            raise _not_a_module(path, str(error)) from error
        if section is None:
            raise _not_a_module(path, "it has no .modinfo section")
        module = parse_modinfo(section.data(), path)
    if _NAME.fullmatch(module.name) is None:  # it is used as a file name
        raise _not_a_module(path, f"its name is {module.name!r}")
    return module


def read_vermagic(path: Path) -> str:
    """Return the vermagic of a module file, in a millisecond, without an ELF parser.

    Raises:
        UsageError: the file has no vermagic.
    """
    with open_module(path) as stream:
        _, found, rest = stream.read().partition(b"vermagic=")
    if not found:
        raise _not_a_module(path, "it has no vermagic")
    return rest.partition(b"\0")[0].decode(errors="replace")


def open_module(path: Path) -> IO[bytes]:
    """Open a module file for reading, decompressed; seekable.

    Raises:
        UsageError: it cannot be decompressed.
    """
    if path.suffix == ".ko":
        return path.open("rb")
    data = path.read_bytes()
    try:
        return io.BytesIO(_decompress(path.suffix, data))
    except Exception as error:  # each library has its own error class
        raise _not_a_module(path, f"it cannot be decompressed: {error}") from error


def _decompress(suffix: str, data: bytes) -> bytes:
    if suffix == ".xz":
        import lzma

        return lzma.decompress(data)
    if suffix == ".gz":
        import gzip

        return gzip.decompress(data)
    import zstandard

    # The kernel's build streams through zstd, so the header lacks the size.
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


def _files_of_tree(tree: Path) -> Iterable[Path]:
    order = tree / "modules.order"
    for line in order.read_text().split() if order.exists() else ():
        # Since Linux 6.3 the list has objects; before 5.3 or so it began with kernel/.
        stem = line.rpartition(".")[0] + ".ko"
        for name in (stem, stem.removeprefix("kernel/")):
            if (path := tree / name).exists():
                yield path
                break


def _name_of(file_name: str) -> str:
    return module_name(file_name.partition(".ko")[0])


def _not_a_module(path: Path, why: str) -> UsageError:
    return UsageError(f"not a kernel module: {why}", where=str(path), hint=_HINT)
