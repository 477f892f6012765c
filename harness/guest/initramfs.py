# SPDX-License-Identifier: GPL-2.0-or-later
"""Make the guest's initramfs: a part for each kernel, in the store, and a part for each run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from harness.core.cache import Store
from harness.core.files import require_whole
from harness.core.kernel import Kernel
from harness.core.kernel_modules import MODPROBE, ModulePlan
from harness.core.progress import Progress
from harness.guest.cpio import CpioWriter
from harness.guest.keys import RunKeys
from harness.guest.userland import find_program, library_closure

# The modules that the guest needs for the login.
BOOT_MODULES = ("virtio_pci", "virtio_net")

# The modules that scenarios load. With all of them, one initramfs serves every scenario of a
# kernel.
SCENARIO_MODULES = (
    *("cxl_acpi", "cxl_pci", "cxl_mem", "cxl_port", "cxl_pmem"),
    *("dax_hmem", "dax_cxl", "kmem", "device_dax"),
)

_PROGRAMS = ("busybox", "dropbear", "cxl", "daxctl", "kmod", "chrt")

_APPLETS = (
    *("sh", "mount", "mkdir", "ifconfig", "insmod", "rmmod", "lsmod", "cat", "ls"),
    *("echo", "grep", "dmesg", "uname", "sleep", "usleep", "ln", "rm", "cp", "mv", "find", "ps"),
    *("kill", "poweroff", "reboot", "cksum", "dd", "od", "head", "tail", "sort", "wc", "awk"),
    *("sed", "cut", "tr", "readlink", "basename", "dirname", "true", "false", "test", "env"),
    *(
        "chmod",
        "id",
        "setsid",
        "df",
        "free",
        "top",
        "vi",
        "less",
        "more",
        "hexdump",
        "devmem",
        "lspci",
        "taskset",
    ),
)

_ARCHIVE = "initramfs.cpio"
_MANIFEST = "manifest.json"

_FSTAB = b"""\
proc /proc proc defaults 0 0
sysfs /sys sysfs defaults 0 0
devtmpfs /dev devtmpfs defaults 0 0
"""

# Part of the key. Increment it for a change of the archive that does not show in its inputs.
_FORM = 4


@dataclass(frozen=True)
class SharedInitramfs:
    """The part that all runs of a kernel share.

    Attributes:
        archive: the cpio archive.
        depends: its modules in load order, each with those that modprobe loads first.
        missing: requested modules that the kernel lacks, with the reason.
    """

    archive: Path
    depends: dict[str, tuple[str, ...]]
    missing: dict[str, str]

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of its modules, in load order."""
        return tuple(self.depends)


def shared_initramfs(
    kernel: Kernel,
    requested: Sequence[str],
    userland: Path,
    store: Store,
    progress: Progress,
    modules_in: Callable[[Path], tuple[ModulePlan, Mapping[str, bytes]]],
) -> SharedInitramfs:
    """The part that all runs of a kernel share, from the store; made if it does not exist.

    Args:
        kernel: the kernel.
        requested: modules to include, with their dependencies.
        userland: the unpacked packages of the guest's programs.
        store: where it is stored.
        progress: gets a report when it is made.
        modules_in: gets a work folder, and returns the modules and the files of
            `/lib/modules/RELEASE` by name; called only to make the initramfs.

    Raises:
        DamagedEntryError: its entry in the store, or that of the guest's programs, is damaged.
    """
    parts = (
        *(_FORM, kernel.identity, userland.parent.name, _script("init.sh"), _script("observe.sh")),
        _script("while_pending.sh"),
        *(*_PROGRAMS, *_APPLETS, "", *requested),
    )
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def make(folder: Path) -> None:
        require_whole(userland.parent, (userland.name,))
        work = folder / "modules"
        work.mkdir()
        plan, files = modules_in(work)
        shutil.rmtree(work)
        with (folder / _ARCHIVE).open("wb") as output:
            archive = CpioWriter(output)
            _add_programs(archive, userland)
            for name, content in files.items():
                archive.add_file(f"lib/modules/{kernel.release}/{name}", content)
            archive.close()
        (folder / _MANIFEST).write_text(json.dumps(_manifest(plan, kernel, store)))

    entry = store.build(
        "initramfs", key, make, what=f"the initramfs of {kernel.release}", progress=progress
    )
    require_whole(entry, (_ARCHIVE, _MANIFEST))
    manifest = json.loads((entry / _MANIFEST).read_text())
    with suppress(OSError):  # read-only stores have no time of last use
        os.utime(entry / _MANIFEST)
    depends = {name: tuple(needed) for name, needed in manifest["depends"].items()}
    return SharedInitramfs(entry / _ARCHIVE, depends, manifest["missing"])


def _manifest(plan: ModulePlan, kernel: Kernel, store: Store) -> dict[str, Any]:
    image = kernel.image
    return {
        "depends": plan.loaded_before(),
        "missing": {module.name: str(module) for module in plan.missing},
        # Removed together with its kernel, if that is the store's too.
        "kernel": {
            "identity": kernel.identity,
            "spec": kernel.spec,
            "release": kernel.release,
            "stored": image.parent.name == kernel.identity and image.is_relative_to(store.root),
        },
    }


def write_run_initramfs(
    output: IO[bytes],
    shared: SharedInitramfs,
    keys: RunKeys,
    token: str,
    acpi_tables: dict[str, bytes],
) -> None:
    """Write ACPI overrides, the shared part and the run's keys.

    Args:
        output: gets the whole initramfs.
        shared: see `shared_initramfs`.
        keys: the run's SSH keys.
        token: the first word of the guest's own lines on the console.
        acpi_tables: tables that replace the firmware's, by signature.
    """
    write_acpi_tables(output, acpi_tables)
    with shared.archive.open("rb") as archive:
        shutil.copyfileobj(archive, output, 1 << 20)
    last = CpioWriter(output)
    boot_modules = " ".join(name for name in BOOT_MODULES if name in shared.modules)
    last.add_file("etc/harness", f"token={token}\nboot_modules='{boot_modules}'\n".encode())
    last.add_file("etc/dropbear_host_key", keys.host_key_file(), 0o600)
    last.add_folder("root", 0o700)
    last.add_folder("root/.ssh", 0o700)
    last.add_file("root/.ssh/authorized_keys", keys.authorized_keys(), 0o600)
    last.close()


def write_acpi_tables(output: IO[bytes], tables: dict[str, bytes]) -> None:
    """Write the archive of ACPI tables that replace the firmware's, if there are any.

    The kernel looks for them only in the first, uncompressed archive of the initramfs.

    Args:
        output: the beginning of the initramfs.
        tables: tables by signature.
    """
    if not tables:
        return
    archive = CpioWriter(output)
    for signature, table in sorted(tables.items()):
        archive.add_file(f"kernel/firmware/acpi/{signature.lower()}.aml", table)
    archive.close()


def _add_programs(archive: CpioWriter, userland: Path) -> None:
    archive.add_device("dev/console", 5, 1)
    for folder in ("proc", "sys", "tmp", "run", "sbin"):
        archive.add_folder(folder)
    for name in _PROGRAMS:
        archive.add_file(f"bin/{name}", find_program(userland, name).read_bytes(), 0o755)
    for path in library_closure(userland, _PROGRAMS):
        archive.add_file(path.relative_to(userland).as_posix(), path.read_bytes(), 0o755)
    for applet in _APPLETS:
        archive.add_link(f"bin/{applet}", "/bin/busybox")
    archive.add_link(MODPROBE[1:], "/bin/kmod")  # also called by the kernel itself
    archive.add_file("init", _script("init.sh").encode(), 0o755)
    archive.add_file("bin/observe", _script("observe.sh").encode(), 0o755)
    archive.add_file("bin/while_pending", _script("while_pending.sh").encode(), 0o755)
    archive.add_file("etc/fstab", _FSTAB)
    archive.add_file("etc/shell", f"alias modprobe={MODPROBE}\n".encode())
    archive.add_file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    archive.add_file("etc/group", b"root:x:0:\n")
    archive.add_file("etc/shells", b"/bin/sh\n")


def _script(name: str) -> str:
    return (Path(__file__).parent / name).read_text()
