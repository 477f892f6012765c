# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's initramfs: a part for each kernel, kept in the store, and a part for each run."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from harness.guest.cpio import CpioWriter
from harness.guest.keys import RunKeys
from harness.guest.userland import find_program, library_closure
from harness.model.kernel import Kernel
from harness.model.kernel_modules import ModulePlan
from harness.progress import Progress
from harness.store import Store

# What the guest needs before anybody can log in.
BOOT_MODULES = ("virtio_pci", "virtio_net")

# What scenarios load. With all of them in it, one initramfs serves every scenario of a kernel.
SCENARIO_MODULES = (
    *("cxl_acpi", "cxl_pci", "cxl_mem", "cxl_port", "cxl_pmem"),
    *("dax_hmem", "dax_cxl", "kmem", "device_dax"),
)

_PROGRAMS = ("busybox", "dropbear", "cxl", "daxctl")

_APPLETS = (
    *("sh", "mount", "mkdir", "ifconfig", "modprobe", "insmod", "rmmod", "lsmod", "cat", "ls"),
    *("echo", "grep", "dmesg", "uname", "sleep", "usleep", "ln", "rm", "cp", "mv", "find", "ps"),
    *("kill", "poweroff", "reboot", "cksum", "dd", "od", "head", "tail", "sort", "wc", "awk"),
    *("sed", "cut", "tr", "readlink", "basename", "dirname", "true", "false", "test", "env"),
    *("chmod", "id", "df", "free", "top", "vi", "less", "more", "hexdump", "devmem", "lspci"),
)

# Part of the key: raise it when the archive changes in a way that its inputs do not show.
_FORM = 1


def initramfs_for(
    kernel: Kernel,
    plan: ModulePlan,
    userland: Path,
    store: Store,
    progress: Progress,
    read_module: Callable[[Path], bytes],
) -> Path:
    """The part that all runs of a kernel share, from the store, made when it is not there.

    Args:
        kernel: the kernel.
        plan: the modules to include, in load order.
        userland: the unpacked packages of the guest's programs.
        store: where it is kept.
        progress: hears that it is being made.
        read_module: gives a module's bytes, decompressed.
    """
    key = hashlib.sha256(
        json.dumps(
            [
                *(_FORM, kernel.identity, userland.parent.name, _script("init.sh"), _script("observe.sh")),
                _APPLETS,
                [module.name for module in plan.order],
            ]
        ).encode()
    ).hexdigest()[:32]

    def make(folder: Path) -> None:
        with (folder / "initramfs.cpio").open("wb") as output:
            archive = CpioWriter(output)
            _add_programs(archive, userland)
            _add_modules(archive, kernel.release, plan, read_module)
            archive.close()

    entry = store.build(
        "initramfs", key, make, what=f"the initramfs of {kernel.release}", progress=progress
    )
    return entry / "initramfs.cpio"


def write_run_initramfs(
    base: Path, keys: RunKeys, token: str, modules: Sequence[str], acpi_tables: dict[str, bytes],
    output: Path,
) -> None:  # fmt: skip
    """Put ACPI overrides, the shared part and the run's keys together into one file.

    Args:
        base: what `initramfs_for` returned.
        keys: the run's SSH keys.
        token: the word by which the harness knows the guest's own lines on the console.
        modules: modules to load before the network comes up.
        acpi_tables: tables that replace the firmware's, by signature.
        output: the file to write.
    """
    with output.open("wb") as archive:
        if acpi_tables:
            # The kernel looks for these in the first, uncompressed archive only.
            first = CpioWriter(archive)
            for signature, table in sorted(acpi_tables.items()):
                first.add_file(f"kernel/firmware/acpi/{signature.lower()}.aml", table)
            first.close()
        with base.open("rb") as shared:
            shutil.copyfileobj(shared, archive, 1 << 20)
        last = CpioWriter(archive)
        settings = f"token={token}\nboot_modules='{' '.join(modules)}'\n"
        last.add_file("etc/harness", settings.encode())
        last.add_file("etc/dropbear_host_key", keys.host_key_file(), 0o600)
        last.add_folder("root", 0o700)
        last.add_folder("root/.ssh", 0o700)
        last.add_file("root/.ssh/authorized_keys", keys.authorized_keys(), 0o600)
        last.close()


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
    archive.add_link("sbin/modprobe", "/bin/busybox")
    archive.add_file("init", _script("init.sh").encode(), 0o755)
    archive.add_file("bin/observe", _script("observe.sh").encode(), 0o755)
    archive.add_file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    archive.add_file("etc/group", b"root:x:0:\n")
    archive.add_file("etc/shells", b"/bin/sh\n")


def _add_modules(
    archive: CpioWriter, release: str, plan: ModulePlan, read_module: Callable[[Path], bytes]
) -> None:
    root = f"lib/modules/{release}"
    by_name = {module.name: module for module in plan.order}
    lines = io.StringIO()
    for module in plan.order:
        archive.add_file(f"{root}/{module.name}.ko", read_module(module.path))
        needed = _all_needed(module.name, {name: one.depends for name, one in by_name.items()})
        lines.write(f"{module.name}.ko:{''.join(f' {name}.ko' for name in needed)}\n")
    archive.add_file(f"{root}/modules.dep", lines.getvalue().encode())
    aliases = "".join(
        f"alias {alias} {module.name}\n" for module in plan.order for alias in module.aliases
    )
    archive.add_file(f"{root}/modules.alias", aliases.encode())
    archive.add_folder("etc/modprobe.d")


def _all_needed(name: str, depends: dict[str, tuple[str, ...]]) -> Iterable[str]:
    """What a module needs, directly or not, the nearest first, as depmod writes it."""
    found: dict[str, None] = {}
    queue = list(depends[name])
    while queue:
        one = queue.pop(0)
        if one in depends:
            found.pop(one, None)
            found[one] = None
            queue.extend(depends[one])
    return found


def _script(name: str) -> str:
    return (Path(__file__).parent / name).read_text()
