# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from harness.contract.module_holders import (
    HeldError,
    check_unloadable,
    parse_holders,
    workable_orders,
)

# As the guest of debian:7.2 prints it.
MODULES = """\
dax_cxl 12288 0 - Live 0xffffffffc0637000
kmem 12288 0 - Live 0xffffffffc0636000
dax_hmem 20480 1 dax_cxl, Live 0xffffffffc0635000
cxl_pci 28672 0 - Live 0xffffffffc0633000
cxl_mem 16384 1 cxl_pci, Live 0xffffffffc0632000
cxl_acpi 28672 0 - Live 0xffffffffc0630000
cxl_pmem 24576 1 cxl_acpi, Live 0xffffffffc062e000
"""
HOLDERS = parse_holders(MODULES)


def test_holders_are_read_from_the_list_of_modules() -> None:
    assert HOLDERS["dax_hmem"] == ("dax_cxl",)
    assert HOLDERS["kmem"] == ()
    assert parse_holders("a 1 2 b,c, Live 0x0\n") == {"a": ("b", "c")}
    assert parse_holders("") == {}


def test_what_is_no_list_of_modules_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not a line of /proc/modules: 'cat: no'"):
        parse_holders("cat: no\n")


def test_what_holds_a_module_goes_before_it_in_every_workable_order() -> None:
    orders = workable_orders(("dax_hmem", "dax_cxl", "kmem", "cxl_acpi"), HOLDERS)
    assert len(orders) == len(set(orders)) == 12
    assert all(order.index("dax_cxl") < order.index("dax_hmem") for order in orders)
    # Before the ownership series dax_cxl does not use dax_hmem.
    free = {**HOLDERS, "dax_hmem": ()}
    assert len(workable_orders(("dax_hmem", "dax_cxl", "kmem", "cxl_acpi"), free)) == 24


def test_modules_that_hold_each_other_have_no_workable_order() -> None:
    # No step at all would be left, and what is not done cannot fail.
    with pytest.raises(HeldError, match="a, b hold each other"):
        workable_orders(("a", "b"), {"a": ("b",), "b": ("a",)})


def test_names_may_have_dashes() -> None:
    assert workable_orders(("dax-hmem", "dax-cxl"), HOLDERS) == (("dax-cxl", "dax-hmem"),)


def test_a_module_that_something_else_holds_has_no_workable_order() -> None:
    with pytest.raises(HeldError, match="dax_hmem is held by dax_cxl"):
        workable_orders(("dax_hmem", "kmem"), HOLDERS)
    check_unloadable(("dax_hmem", "dax_cxl"), HOLDERS)


def test_a_module_that_is_not_loaded_cannot_be_unloaded() -> None:
    with pytest.raises(HeldError, match="device_dax is not loaded as a module"):
        check_unloadable(("device_dax",), HOLDERS)


def test_a_permanent_module_is_held() -> None:
    with pytest.raises(HeldError, match=r"a is held by \[permanent\]"):
        check_unloadable(("a",), parse_holders("a 1 1 [permanent], Live 0x0\n"))
