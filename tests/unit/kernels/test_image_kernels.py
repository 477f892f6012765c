# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.kernel import Kernel
from harness.core.progress import SilentProgress
from harness.kernels.image import read_release
from harness.kernels.resolve import resolve_kernel

RELEASE = "7.2.1-mine+"


def resolve(path: Path) -> Kernel:
    return resolve_kernel(f"image:{path}", Store(path / "no store"), SilentProgress())


def image(path: Path, release: str = RELEASE) -> Path:
    head = bytearray(0x400)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x100)
    text = f"{release} (builder@host) #1 SMP\0".encode()
    head[0x300 : 0x300 + len(text)] = text
    return put(path, bytes(head))


def module(path: Path, release: str = RELEASE) -> Path:
    return put(path, b"name=x\0vermagic=" + release.encode() + b" SMP preempt\0")


def put(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A kernel tree as `make` leaves it, in a folder whose name means nothing."""
    top = tmp_path / "cxl"
    image(top / "arch/x86/boot/bzImage")
    put(top / ".config", b"CONFIG_DEV_DAX_KMEM=m\n")
    put(top / "include/config/kernel.release", f"{RELEASE}\n".encode())
    module(top / "drivers/dax/kmem.ko")
    module(top / "fs/fat/fat.ko")
    put(top / "modules.order", b"drivers/dax/kmem.o\nfs/fat/fat.o\n")
    return top


def test_a_built_tree(tree: Path) -> None:
    kernel = resolve(tree)
    assert kernel.release == RELEASE
    assert kernel.image == tree / "arch/x86/boot/bzImage"
    assert (kernel.modules, kernel.config) == (tree, tree / ".config")
    by_image = resolve(kernel.image)
    assert (by_image.modules, by_image.identity) == (tree, kernel.identity)


def test_a_tree_that_is_not_built(tmp_path: Path) -> None:
    put(tmp_path / "Kbuild")
    with pytest.raises(UsageError, match="not built"):
        resolve(tmp_path)


def test_the_identity_depends_on_image_modules_and_config(tree: Path) -> None:
    seen = {resolve(tree).identity}
    assert resolve(tree).identity in seen
    os.utime(tree / "drivers/dax/kmem.ko", ns=(1, 1))
    seen.add(resolve(tree).identity)
    put(tree / ".config", b"CONFIG_DEV_DAX_KMEM=y\n")
    seen.add(resolve(tree).identity)
    with (tree / "arch/x86/boot/bzImage").open("ab") as stream:
        stream.write(b"more")
    seen.add(resolve(tree).identity)
    put(tree / "modules.order", b"drivers/dax/kmem.o\n")
    seen.add(resolve(tree).identity)
    assert len(seen) == 5


@pytest.mark.parametrize("name", ["vmlinuz", "bzImage"])
@pytest.mark.parametrize("folder", ["modules", f"lib/modules/{RELEASE}"])
def test_a_folder_with_an_image(tmp_path: Path, name: str, folder: str) -> None:
    image(tmp_path / name)
    put(tmp_path / "config")
    module(tmp_path / folder / "kernel/drivers/dax/kmem.ko")
    kernel = resolve(tmp_path)
    assert kernel.modules == tmp_path / folder
    assert kernel.config == tmp_path / "config"
    assert resolve(tmp_path / name).modules == kernel.modules


def test_an_unpacked_or_installed_kernel(tmp_path: Path) -> None:
    image(tmp_path / f"boot/vmlinuz-{RELEASE}")
    put(tmp_path / f"boot/config-{RELEASE}")
    module(tmp_path / f"lib/modules/{RELEASE}/kernel/kmem.ko")
    for path in (tmp_path, tmp_path / f"boot/vmlinuz-{RELEASE}"):
        kernel = resolve(path)
        assert kernel.modules == tmp_path / f"lib/modules/{RELEASE}"
        assert kernel.config == tmp_path / f"boot/config-{RELEASE}"


def test_a_bare_image(tmp_path: Path) -> None:
    kernel = resolve(image(tmp_path / "my-kernel"))
    assert (kernel.modules, kernel.config) == (None, None)


def test_modules_of_another_kernel(tree: Path) -> None:
    module(tree / "drivers/dax/kmem.ko", "7.1.0-other")
    with pytest.raises(UsageError, match="modules do not match") as caught:
        resolve(tree)
    assert RELEASE in caught.value.message
    assert "drivers/dax/kmem.ko is of 7.1.0-other" in caught.value.message


def test_an_image_older_than_its_tree(tree: Path) -> None:
    put(tree / "include/config/kernel.release", b"7.2.1-newer\n")
    with pytest.raises(UsageError, match=r"kernel\.release is of 7\.2\.1-newer"):
        resolve(tree)


def test_several_kernels_in_a_folder(tmp_path: Path) -> None:
    image(tmp_path / "vmlinuz-1")
    image(tmp_path / "vmlinuz-2")
    with pytest.raises(UsageError, match="vmlinuz-1, vmlinuz-2"):
        resolve(tmp_path)


def test_files_that_are_not_images(tmp_path: Path) -> None:
    for content, message in (
        (b"", "not an x86 kernel image"),
        (b"\x7fELF" + bytes(0x400), "not an x86 kernel image"),
        (bytes(0x202) + b"HdrS" + bytes(8) + b"\x01\x00" + bytes(0x200), "has no release"),
    ):
        path = put(tmp_path / "file", content)
        for read in (read_release, resolve):
            with pytest.raises(UsageError, match=message):
                read(path)


def test_paths_without_a_kernel(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the folder has no kernel") as caught:
        resolve(tmp_path)
    assert "bzImage" in caught.value.hint
    with pytest.raises(UsageError, match="no such file"):
        resolve(tmp_path / "nowhere")
