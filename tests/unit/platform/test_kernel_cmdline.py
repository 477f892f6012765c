# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from machines import firmware_state, span

from harness.platform.kernel_cmdline import (
    denied_initcalls,
    denied_modules,
    kernel_command_line,
    memmap_arguments,
)
from harness.platform.memory_range import MemoryRange, merge_adjacent

PAGE = 4096
pages = st.builds(
    lambda start, size: MemoryRange.of_size(start * PAGE, size * PAGE),
    st.integers(0, 60),
    st.integers(1, 20),
)
MEMMAP = re.compile(r"memmap=(0x[0-9a-f]+)%(0x[0-9a-f]+)(-1)?\+0xefffffff")


def test_ram_is_converted_and_everything_else_is_added() -> None:
    ram = [span("0-3fffffff"), span("180000000-1ffffffff")]
    assert memmap_arguments(span("180000000-1ffffffff"), ram) == (
        "memmap=0x80000000%0x180000000-1+0xefffffff",
    )
    assert memmap_arguments(span("5d0000000-64fffffff"), ram) == (
        "memmap=0x80000000%0x5d0000000+0xefffffff",
    )


def test_a_range_over_ram_and_window_has_a_parameter_for_each_part_in_order() -> None:
    ram = [span("1c0000000-1ffffffff"), span("180000000-1bfffffff")]
    assert memmap_arguments(span("1a0000000-22fffffff"), ram) == (
        # One entry for adjacent RAM of two nodes.
        "memmap=0x60000000%0x1a0000000-1+0xefffffff",
        "memmap=0x30000000%0x200000000+0xefffffff",
    )


@given(pages, st.lists(pages, max_size=4))
def test_the_parameters_cover_the_range_once_and_convert_ram(
    whole: MemoryRange, ram: list[MemoryRange]
) -> None:
    ram = list(merge_adjacent(ram))
    parts = []
    for argument in memmap_arguments(whole, ram):
        match = MEMMAP.fullmatch(argument)
        assert match is not None
        part = MemoryRange.of_size(int(match[2], 16), int(match[1], 16))
        parts.append(part)
        if match[3]:
            assert any(one.contains(part) for one in ram)
        else:
            assert not any(one.overlaps(part) for one in ram)
    assert merge_adjacent(parts) == (whole,)
    assert sum(part.size for part in parts) == whole.size


def test_every_guest_gets_the_common_parameters() -> None:
    words = kernel_command_line(firmware_state({})).split(" ")
    for word in ("console=ttyS0", "panic=-1", "printk.time=1", "memhp_default_state=online"):
        assert word in words
    assert not any(word.startswith("memmap=") for word in words)


def test_soft_reserved_ranges_and_the_scenario_s_parameters_come_last() -> None:
    state = firmware_state(
        {"a": "180000000-1bfffffff", "b": "5d0000000-64fffffff"}, ram=["180000000-1ffffffff"]
    )
    words = kernel_command_line(state, ["memhp_default_state=offline", "x"]).split(" ")
    assert words[-4:] == [
        "memmap=0x40000000%0x180000000-1+0xefffffff",
        "memmap=0x80000000%0x5d0000000+0xefffffff",
        "memhp_default_state=offline",
        "x",
    ]


def test_parameters_are_separated_by_single_spaces() -> None:
    state = firmware_state({"a": "5d0000000-64fffffff"})
    line = kernel_command_line(state, ["x"])
    assert re.fullmatch(r"[!-~]+( [!-~]+)*", line)


def test_denied_modules_and_initcalls() -> None:
    for cmdline, modules, initcalls in (
        ([], set(), set()),
        (["module_blacklist=a,b-c", "quiet"], {"a", "b_c"}, set()),
        (["module_blacklist=a", "module_blacklist=b"], {"a", "b"}, set()),
        (["initcall_blacklist=f,g"], set(), {"f", "g"}),
        (["module_blacklist="], set(), set()),
        (["modprobe.blacklist=a", "x.module_blacklist=b"], set(), set()),
    ):
        assert denied_modules(cmdline) == modules
        assert denied_initcalls(cmdline) == initcalls
