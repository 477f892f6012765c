# SPDX-License-Identifier: GPL-2.0-or-later
"""The loads of a scenario, and the orders that module dependencies allow."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.scenario.module_load import Load, LoadPlan, TooManyOrdersError, loads_of, orders_of

DEPENDS = {
    "cxl_acpi": ("cxl_core",),
    "cxl_core": (),
    "cxl_mem": ("cxl_core", "cxl_port"),
    "cxl_port": ("cxl_core",),
    "cxl_pci": ("cxl_core", "cxl_mem"),
    "dax_hmem": ("dax",),
    "dax": (),
    "dax_cxl": ("dax_hmem", "cxl_core"),
    "kmem": ("dax",),
}
ALL = ("cxl_acpi", "cxl_pci", "cxl_mem", "dax_hmem", "kmem", "dax_cxl")


def test_a_module_never_comes_before_one_that_it_needs() -> None:
    orders = orders_of(ALL, DEPENDS)
    assert len(orders) == len(set(orders)) == 180  # 6! halved for each of two dependencies
    for order in orders:
        assert order.index("cxl_mem") < order.index("cxl_pci")
        assert order.index("dax_hmem") < order.index("dax_cxl")
        assert sorted(order) == sorted(ALL)


def test_indirect_dependencies_count() -> None:
    depends = {"a": (), "between": ("a",), "b": ("between",)}
    assert orders_of(("b", "a"), depends) == (("a", "b"),)


@given(st.data())
def test_the_orders_are_the_permutations_that_keep_the_dependencies(data: st.DataObject) -> None:
    names = [f"m{number}" for number in range(data.draw(st.integers(0, 5)))]
    depends = {
        name: tuple(data.draw(st.lists(st.sampled_from(names[:at]), unique=True)) if at else [])
        for at, name in enumerate(names)
    }
    requested = data.draw(st.permutations(names))
    orders = orders_of(requested, depends)

    def allowed(order: tuple[str, ...]) -> bool:
        return all(order.index(b) < order.index(a) for a in order for b in depends[a])

    assert set(orders) == {one for one in itertools.permutations(requested) if allowed(one)}
    if allowed(tuple(requested)):
        assert orders[0] == tuple(requested)


def test_built_in_modules_have_no_place_in_an_order() -> None:
    assert orders_of(("kmem", "cxl_acpi", "dax_hmem"), {"kmem": (), "cxl_acpi": ()}) == (
        ("kmem", "cxl_acpi"),
        ("cxl_acpi", "kmem"),
    )


def test_too_many_orders_are_refused() -> None:
    names = tuple("abcdefgh")
    with pytest.raises(TooManyOrdersError, match="8 modules"):
        orders_of(names, dict.fromkeys(names, ()))


def test_every_load_gets_the_requested_number_of_guests() -> None:
    assert loads_of(("a", "b"), {}, 3) == (Load("in_order", ("a", "b")),) * 3
    assert loads_of(LoadPlan(parallel=("a", "b")), {}) == (Load("at_once", ("a", "b")),) * 3
    assert len(loads_of(LoadPlan(parallel=("a",), times=5), {}, 2)) == 10
    built_in = LoadPlan(modalias=("a", "built_in"))
    assert loads_of(built_in, {"a": ()}) == (Load("by_modalias", ("a",)),)
    orders = loads_of(LoadPlan(all_orders=("a", "b"), times=2), {"a": (), "b": ()})
    assert [str(one) for one in orders] == ["a, b", "a, b", "b, a", "b, a"]


def test_a_load_prints_its_modules_and_its_option() -> None:
    for load, text, option in (
        (Load("in_order", ("a", "b")), "a, b", "a,b"),
        (Load("in_order", ()), "nothing", "none"),
        (Load("at_once", ("a", "b")), "concurrently: a, b", "parallel"),
        (Load("by_modalias", ("a",)), "by modalias: a", "modalias"),
    ):
        assert (str(load), load.option()) == (text, option)


def test_module_names_are_spelled_as_the_kernel_spells_them() -> None:
    assert LoadPlan(all_orders=("dax-cxl", "kmem")).modules == ("dax_cxl", "kmem")
