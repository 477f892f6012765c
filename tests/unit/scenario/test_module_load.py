# SPDX-License-Identifier: GPL-2.0-or-later
"""The loads that a scenario asks for, and the orders that module dependencies allow."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import one_window

from harness.core.errors import UsageError
from harness.scenario.checks import check_scenario
from harness.scenario.module_load import Load, LoadPlan, TooManyOrdersError, loads_of, orders_of
from harness.scenario.scenario import read_scenario

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


def test_what_it_needs_through_another_counts_as_well() -> None:
    depends = {"a": (), "between": ("a",), "b": ("between",)}
    assert orders_of(("b", "a"), depends) == (("a", "b"),)


@given(st.data())
def test_the_orders_are_the_permutations_that_keep_the_dependencies(data: st.DataObject) -> None:
    names = [f"m{number}" for number in range(data.draw(st.integers(0, 5)))]
    depends = {
        name: tuple(data.draw(st.lists(st.sampled_from(names[:at]), unique=True)) if at else [])
        for at, name in enumerate(names)
    }
    wanted = data.draw(st.permutations(names))
    orders = orders_of(wanted, depends)

    def allowed(order: tuple[str, ...]) -> bool:
        return all(order.index(b) < order.index(a) for a in order for b in depends[a])

    assert set(orders) == {one for one in itertools.permutations(wanted) if allowed(one)}
    if allowed(tuple(wanted)):
        assert orders[0] == tuple(wanted)


def test_the_place_of_what_is_built_in_means_nothing() -> None:
    assert orders_of(("kmem", "cxl-acpi", "dax_hmem"), {"kmem": (), "cxl_acpi": ()}) == (
        ("kmem", "cxl-acpi"),
        ("cxl-acpi", "kmem"),
    )


def test_more_orders_than_anybody_waits_for_are_refused() -> None:
    names = tuple("abcdefgh")
    with pytest.raises(TooManyOrdersError, match="8 modules"):
        orders_of(names, dict.fromkeys(names, ()))


def test_every_load_gets_as_many_guests_as_asked_for() -> None:
    assert loads_of(("a", "b"), {}, 3) == (Load("in_order", ("a", "b")),) * 3
    assert loads_of(LoadPlan(parallel=("a", "b")), {}) == (Load("at_once", ("a", "b")),) * 3
    assert len(loads_of(LoadPlan(parallel=("a",), times=5), {}, 2)) == 10
    built_in = LoadPlan(modalias=("a", "built_in"))
    assert loads_of(built_in, {"a": ()}) == (Load("by_modalias", ("a",)),)
    orders = loads_of(LoadPlan(all_orders=("a", "b"), times=2), {"a": (), "b": ()})
    assert [str(one) for one in orders] == ["a, b", "a, b", "b, a", "b, a"]


@pytest.mark.parametrize(
    ("load", "text", "option"),
    [
        (Load("in_order", ("a", "b")), "a, b", "a,b"),
        (Load("in_order", ()), "nothing", "none"),
        (Load("at_once", ("a", "b")), "all at once: a, b", "parallel"),
        (Load("by_modalias", ("a",)), "by modalias: a", "modalias"),
    ],
)
def test_a_load_is_named_for_people_and_for_the_command_line(
    load: Load, text: str, option: str
) -> None:
    assert (str(load), load.option()) == (text, option)


@pytest.mark.parametrize(
    ("load", "words"),
    [
        ("{}", ["guest.load", "asks for no module"]),
        ("{all_orders: [kmem], parallel: [kmem]}", ["all_orders and parallel"]),
        ("{all_orders: [kmem, kmem]}", ["guest.load.all_orders[1]", "names kmem twice"]),
        ("{parallel: [cxl_mem]}", ["guest.load.parallel[0]", "guest.missing takes away"]),
        ("{all_order: [kmem]}", ["unknown key 'all_order'", "did you mean all_orders"]),
        ("{parallel: [kmem], times: 0}", ["guest.load.times", ">= 1"]),
        ("{modalias: ['../x']}", ["guest.load.modalias[0]"]),
    ],
)
def test_a_load_that_cannot_be_is_refused(load: str, words: list[str]) -> None:
    text = (
        "summary: a\nsource: b\nprofile: c\nexpect: {per_range: {}, all_or_nothing: {}}\n"
        f"guest: {{missing: [cxl-mem], load: {load}}}\n"
    )
    with pytest.raises(UsageError) as refused:
        check_scenario(read_scenario(text, "s.yaml"), one_window())
    said = f"{refused.value} {refused.value.where} {refused.value.hint}"
    assert "s.yaml:5" in said
    for word in words:
        assert word in said
