# SPDX-License-Identifier: GPL-2.0-or-later
"""Collect a kernel's modules for a guest, and make the indexes for kmod's modprobe."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.core.deadline import Deadline
from harness.core.kernel_modules import ModulePlan
from harness.core.process import run
from harness.kernels.build.sandbox import find_sandbox
from harness.kernels.build.untrusted_files import UntrustedFolder
from harness.kernels.modules import find_modules, index_modules, module_order, open_module

_SECONDS = 120.0
# The indexes do not contain the release. That of the kernel could be any path.
_RELEASE = "0.0"


def guest_modules(
    modules: Path | None, requested: Iterable[str], programs: Path, folder: Path
) -> tuple[ModulePlan, dict[str, bytes]]:
    """Return the requested modules, their dependencies and softdeps, and their indexes.

    Args:
        modules: `Kernel.modules`.
        programs: the unpacked packages of the guest's programs, with kmod.
        folder: an empty folder for temporary files.

    Returns:
        The modules, and the content of `/lib/modules/RELEASE` by file name.

    Raises:
        UsageError: a module file cannot be read.
        CommandError: depmod failed.
    """
    plan = find_modules(index_modules(modules), requested)
    files = {}
    for module in plan.order:
        with open_module(module.path) as stream:
            files[f"{module.name}.ko"] = stream.read()
    names = [module.name for module in plan.order]
    # Of several modules with one alias, modprobe loads the first in this list first.
    first = {name: place for place, name in enumerate(module_order(modules))}
    names.sort(key=lambda name: first.get(name, len(first)))
    lists = {
        "modules.order": "".join(f"{name}.ko\n" for name in names).encode(),
        "modules.builtin": "".join(f"{name}.ko\n" for name in plan.built_in).encode(),
        "modules.builtin.modinfo": b"",
    }
    return plan, {**files, **module_indexes({**files, **lists}, programs, folder)}


def module_indexes(files: Mapping[str, bytes], programs: Path, folder: Path) -> dict[str, bytes]:
    """Return the indexes that depmod makes of modules.

    A module is untrusted: depmod runs in the sandbox, and may write to one folder only.

    Args:
        files: modules and lists of them, content by file name.
        programs: the unpacked packages with kmod; it runs with its own loader and libraries.
        folder: an empty folder for temporary files.

    Raises:
        CommandError: depmod failed.
    """
    tree, output = folder / "tree", folder / "indexes"
    inside = Path("lib", "modules", _RELEASE)
    (tree / inside).mkdir(parents=True)
    (output / inside).mkdir(parents=True)
    for name, content in files.items():
        (tree / inside / name).write_bytes(content)
    sandbox = find_sandbox()
    kmod = sandbox.place(programs, "programs")
    argv = sandbox.argv(
        [
            str(kmod / "lib64/ld-linux-x86-64.so.2"),
            *("--library-path", str(kmod / "usr/lib/x86_64-linux-gnu")),
            str(kmod / "usr/sbin/depmod"),
            *("-C", "/dev/null", "-b", str(sandbox.place(tree, "tree"))),
            *("-o", str(sandbox.place(output, "indexes")), _RELEASE),
        ],
        env={},
        read_only={programs: kmod, tree: sandbox.place(tree, "tree")},
        writable={output: sandbox.place(output, "indexes")},
        cwd=Path("/"),
    )
    run(argv, deadline=Deadline(_SECONDS, "depmod to end", hint="is the host overloaded?"))
    made = UntrustedFolder(output)
    indexes = {}
    for name in sorted(os.listdir(output / inside)):
        with made.open(str(inside / name)) as stream:
            indexes[name] = stream.read()
    return indexes
