# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's command line: parameters of every guest, Soft Reserved ranges, denied drivers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.core.kernel_modules import module_name
from harness.platform.firmware_state import FirmwareState
from harness.platform.memory_range import MemoryRange, merge_adjacent

_SOFT_RESERVED = 0xEFFFFFFF
_RAM = 1

# Each with its reason. None of them changes what the cxl, dax and memory hotplug code does.
_ALWAYS = (
    "console=ttyS0",  # the serial log, and the line that reports that the guest is ready
    "printk.time=1",  # observation reads the times
    "log_buf_len=2M",  # the whole log must fit until it is read
    "panic=-1",  # a panic ends QEMU immediately, instead of halting the guest
    "unknown_nmi_panic",  # an unresponsive guest gets an NMI, and prints its backtraces
    "panic_print=0xc0",  # backtraces of all CPUs and of blocked tasks at a panic
    "nokaslr",  # traces of two runs can be compared; saves relocating
    "mitigations=off",  # boot time under TCG
    "cryptomgr.notests",  # boot time under TCG
    "init_on_alloc=0",  # boot time under TCG
    "swiotlb=512",  # the default takes 64 MiB for bounce buffers that no device here needs
    "tsc=nowatchdog",  # on a busy host, the watchdog marks a good TSC as unstable
    "no_timer_check",  # QEMU's timers need no check
    "random.trust_cpu=on",  # the SSH server's first random numbers without a wait
    "memhp_default_state=online",  # memory of kmem goes online automatically, as in the contract
)


def kernel_command_line(
    state: FirmwareState, added: Sequence[str] = (), async_probe: Sequence[str] = ()
) -> str:
    """Return the whole command line for a guest with this firmware state.

    Args:
        state: has the Soft Reserved ranges.
        added: more parameters.
        async_probe: drivers that probe asynchronously.
    """
    reserved = [
        argument
        for named in state.soft_reserved
        for argument in memmap_arguments(named.range, state.ram)
    ]
    later = [f"driver_async_probe={','.join(async_probe)}"] if async_probe else []
    return " ".join((*_ALWAYS, *reserved, *later, *added))


def memmap_arguments(span: MemoryRange, ram: Iterable[MemoryRange]) -> tuple[str, ...]:
    """Return the `memmap=` parameters that make a range Soft Reserved, over RAM or not.

    RAM is converted and the rest is added, so a range with both needs several parameters, and
    becomes several entries. Source: Linux, arch/x86/kernel/e820.c.
    """
    memory = merge_adjacent(part for bank in ram if (part := span.intersection(bank)) is not None)
    arguments = [(part, f"-{_RAM}") for part in memory]
    arguments += [(part, "") for part in span.minus(memory)]
    return tuple(
        f"memmap={part.size:#x}%{part.start:#x}{old}+{_SOFT_RESERVED:#x}"
        for part, old in sorted(arguments)
    )


def denied_modules(cmdline: Sequence[str], parameter: str = "module_blacklist") -> frozenset[str]:
    """Return the modules that a parameter denies, by the kernel's spelling.

    `module_blacklist=` and `initcall_blacklist=` are parameters of the kernel, and nothing bypasses
    them (kernel/module/main.c, init/main.c). `modprobe.blacklist=` is for modprobe, which ignores
    the aliases of a denied module and still loads it by its name: it keeps out only modules that
    udev would load.

    Args:
        cmdline: the kernel's parameters.
        parameter: `module_blacklist`, or `modprobe.blacklist`.
    """
    return frozenset(module_name(name) for name in _values(cmdline, parameter))


def denied_initcalls(cmdline: Sequence[str]) -> frozenset[str]:
    """Return the functions that a kernel with CONFIG_KALLSYMS does not call at boot."""
    return frozenset(_values(cmdline, "initcall_blacklist"))


def _values(cmdline: Sequence[str], parameter: str) -> Iterable[str]:
    for argument in cmdline:
        name, _, value = argument.partition("=")
        if name == parameter:
            yield from filter(None, value.split(","))
