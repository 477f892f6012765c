# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's command line: what every guest gets, and the Soft Reserved ranges of a scenario."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.platform.firmware_state import FirmwareState
from harness.platform.memory_range import MemoryRange, merge_adjacent

_SOFT_RESERVED = 0xEFFFFFFF
_RAM = 1

# Each with its reason. None of them changes what the cxl, dax and memory hotplug code does.
_ALWAYS = (
    "console=ttyS0",  # the serial log, and the line that says that the guest is ready
    "printk.time=1",  # observation reads the times
    "log_buf_len=2M",  # nothing of the log may be lost before it is read
    "panic=-1",  # a panic ends QEMU at once, instead of a guest that stands still
    "unknown_nmi_panic",  # a guest that answers nothing is sent an NMI, and says what it was at
    "panic_print=0xc0",  # at a panic, what all CPUs were at, and what tasks wait for
    "nokaslr",  # traces of two runs can be compared; saves relocating
    "mitigations=off",  # boot time under TCG
    "cryptomgr.notests",  # boot time under TCG
    "init_on_alloc=0",  # boot time under TCG
    "swiotlb=512",  # 64 MiB of host memory for bounce buffers that no device here needs
    "tsc=nowatchdog",  # a busy host makes the watchdog give up a clock that is fine
    "no_timer_check",  # QEMU's timers need no check
    "random.trust_cpu=on",  # the SSH server's first random numbers without a wait
    "memhp_default_state=online",  # kmem's memory goes online by itself, as the contract wants
)


def kernel_command_line(
    state: FirmwareState, added: Sequence[str] = (), async_probe: Sequence[str] = ()
) -> str:
    """The whole command line for a guest with this firmware state.

    Args:
        state: whose Soft Reserved ranges the kernel is told of.
        added: more parameters.
        async_probe: drivers that probe asynchronously.
    """
    reserved = [
        argument
        for one in state.soft_reserved
        for argument in memmap_arguments(one.range, state.ram)
    ]
    later = [f"driver_async_probe={','.join(async_probe)}"] if async_probe else []
    return " ".join((*_ALWAYS, *reserved, *later, *added))


def memmap_arguments(span: MemoryRange, ram: Iterable[MemoryRange]) -> tuple[str, ...]:
    """`memmap=` parameters that make a range Soft Reserved, whatever lies there.

    RAM must be converted and the rest added, so a range that has both needs several parameters, and
    becomes several entries. Source: Linux, arch/x86/kernel/e820.c.
    """
    memory = merge_adjacent(part for one in ram if (part := span.intersection(one)) is not None)
    arguments = [(part, f"-{_RAM}") for part in memory]
    arguments += [(part, "") for part in span.minus(memory)]
    return tuple(
        f"memmap={part.size:#x}%{part.start:#x}{old}+{_SOFT_RESERVED:#x}"
        for part, old in sorted(arguments)
    )
