# SPDX-License-Identifier: GPL-2.0-or-later
"""Drivers that the kernel's command line keeps from running.

`module_blacklist=` and `initcall_blacklist=` are the kernel's own: nothing gets round them
(kernel/module/main.c, init/main.c). `modprobe.blacklist=` is for modprobe, which by its manual
ignores a denied module's aliases and still loads it by name; so it denies nothing here, and says
what udev would not load.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.core.kernel_modules import module_name


def denied_modules(cmdline: Sequence[str], parameter: str = "module_blacklist") -> frozenset[str]:
    """Modules, by the kernel's spelling, that a parameter denies.

    Args:
        cmdline: the kernel's parameters.
        parameter: `module_blacklist`, or `modprobe.blacklist`.
    """
    return frozenset(module_name(name) for name in _values(cmdline, parameter))


def denied_initcalls(cmdline: Sequence[str]) -> frozenset[str]:
    """Functions that a kernel with CONFIG_KALLSYMS does not call at boot."""
    return frozenset(_values(cmdline, "initcall_blacklist"))


def _values(cmdline: Sequence[str], parameter: str) -> Iterable[str]:
    for argument in cmdline:
        name, _, value = argument.partition("=")
        if name == parameter:
            yield from filter(None, value.split(","))
