# SPDX-License-Identifier: GPL-2.0-or-later
"""Check the RAM that a guest boots with: space for ACPI tables and page structs."""

from __future__ import annotations

from harness.contract.expected import contract_owners
from harness.platform.firmware_state import FirmwareState
from harness.platform.memory_range import GIB, KIB, MIB, MemoryRange, format_size
from harness.scenario.scenario import POLICIES, Scenario
from harness.scenario.yaml_document import Document

# The kernel has a struct page of 64 bytes for each page of 4 KiB.
_PAGES_SHARE = 64
# For the kernel, its initramfs and the commands of a run, without page structs. Measured with
# exact_cover on debian:7.2 (two CPUs, QEMU 10.0.2, TCG), with RAM of 128M to 1G and CXL memory of
# 1G to 51G: 124M in addition to the page structs are enough, and with 110M the kernel reports
# "vmemmap alloc failure" while kmem adds the memory. 6.18 and 6.12 were tried with 141M only. 192M
# is also enough with 8 CPUs, and while daxctl reconfigures the device twice. The shadow that KASAN
# keeps, an eighth of the memory, is not counted.
_GUEST_NEEDS = 192 * MIB
# SeaBIOS keeps the ACPI tables at the end of the RAM below 4 GiB.
_ACPI_TABLES = 128 * KIB


def check_acpi_tables(document: Document[Scenario], state: FirmwareState) -> None:
    """Refuse Soft Reserved ranges over the ACPI tables."""
    low = [bank.end for bank in state.ram if bank.end < 4 * GIB]
    if not low:
        return
    tables = MemoryRange(max(low) + 1 - _ACPI_TABLES, max(low))
    for reserved in state.soft_reserved:
        if reserved.range.overlaps(tables):
            raise document.error(
                f"firmware.soft_reserved.{reserved.name}",
                f"covers {tables}, where the firmware keeps the ACPI tables",
                hint="end it before them, or use a node above 4 GiB: with at least 2816M of RAM, "
                "QEMU puts what exceeds 2G there, so enlarge the nodes before it",
            )


def check_page_structs(document: Document[Scenario], state: FirmwareState) -> None:
    """Refuse a guest whose RAM cannot hold the page structs of its memory."""
    sizes = {judged.name: judged.range.size for judged in state.judged_ranges()}
    mapped = max(
        sum(sizes[name] for name, owner in owners.items() if owner.use in ("system_ram", "devdax"))
        for policy in POLICIES
        for owners in contract_owners(document.value, state, policy)
    )
    reserved = [named.range for named in state.soft_reserved]
    ram = sum(part.size for bank in state.ram for part in bank.minus(reserved))
    ram = -(-ram // MIB) * MIB  # without the VGA hole, which the nodes' memory counts
    structs, own_structs = mapped // _PAGES_SHARE, ram // _PAGES_SHARE
    lacking = _GUEST_NEEDS + structs + own_structs - ram
    if lacking > 0:
        # RAM that is added needs page structs as well.
        added = lacking * _PAGES_SHARE // (_PAGES_SHARE - 1)
        missing = -(-added // (128 * MIB)) * 128 * MIB
        raise document.error(
            "profile",
            f"the page structs of {format_size(mapped)} need {format_size(structs)} (64 bytes for "
            f"each 4 KiB), those of the RAM {format_size(own_structs)}, and the guest itself "
            f"{format_size(_GUEST_NEEDS)}: more than its {format_size(ram)} of RAM",
            hint=f"enlarge nodes[0].memory of the profile by {format_size(missing)}, or leave kmem "
            "out of guest.load",
        )
