# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from machines import committed, firmware_state, scenario_of

from harness.core.errors import UsageError
from harness.scenario.guest_memory import check_acpi_tables, check_page_structs

ONE_GIB = ["0-9ffff", "100000-3fffffff"]
RESERVED = {"sr0": {"node": 0}}  # where it lies, the state has
CXL_ONLY = ["cxl_acpi", "cxl_pci", "cxl_mem", "dax_cxl", "dax_hmem"]


def test_ram_that_cannot_hold_the_page_structs_is_refused_with_the_arithmetic() -> None:
    large = "1000000000-2fffffffff"  # 128 GiB
    state = firmware_state({"sr0": large}, decoders=[committed("d", large)], ram=ONE_GIB)
    firmware = {"soft_reserved": RESERVED}
    check_page_structs(scenario_of(firmware, load=CXL_ONLY), state)
    with pytest.raises(UsageError, match=r"of 128G need 2G .* RAM 16M, .* itself 192M") as caught:
        check_page_structs(scenario_of(firmware), state)
    assert str(caught.value.where).endswith(": profile")
    assert "nodes[0].memory of the profile by 1280M" in caught.value.hint
    enlarged = ["0-9ffff", "100000-8fffffff"]  # 1G and 1280M
    check_page_structs(
        scenario_of(firmware),
        firmware_state({"sr0": large}, decoders=[committed("d", large)], ram=enlarged),
    )


def test_the_largest_memory_of_a_guest_of_1_gib() -> None:
    def check(gib: int) -> None:
        text = f"1000000000-{0x1000000000 + (gib << 30) - 1:x}"
        state = firmware_state({"sr0": text}, decoders=[committed("d", text)], ram=ONE_GIB)
        check_page_structs(scenario_of({"soft_reserved": RESERVED}), state)

    check(51)
    with pytest.raises(UsageError, match="enlarge nodes"):
        check(52)


def test_a_range_over_the_acpi_tables_at_the_end_of_low_ram_is_refused() -> None:
    ram = ["100000-3fffffff", "40000000-7fffffff", "100000000-13fffffff"]
    for text in ("40000000-7ffdffff", "100000000-13fffffff"):
        document = scenario_of({"soft_reserved": RESERVED})
        check_acpi_tables(document, firmware_state({"sr0": text}, ram=ram))
    text = "40000000-7fffffff"
    document = scenario_of({"soft_reserved": RESERVED})
    with pytest.raises(UsageError, match=r"covers 7ffe0000-7fffffff.* ACPI tables") as caught:
        check_acpi_tables(document, firmware_state({"sr0": text}, ram=ram))
    assert "firmware.soft_reserved.sr0" in str(caught.value.where)
    assert "a node above 4 GiB" in caught.value.hint
