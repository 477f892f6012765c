# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest

from harness.core.errors import UnbuildableError, UsageError
from harness.kernels.build.config import (
    FRAGMENTS,
    ConfigPlan,
    check_config,
    fragment_names,
    plan_config,
)
from harness.kernels.build.kconfig_expression import Dependency, dependencies, holding_back
from harness.kernels.build.kernel_config import parse_config
from harness.kernels.build.unmet_options import Option, merge, parse_fragment, render, unmet

FAKE_KERNEL = Path(__file__).resolve().parents[2] / "data" / "fake_kernel"


def values(options: tuple[Option, ...]) -> dict[str, str]:
    return {option.name: option.value for option in options}


def test_a_fragment() -> None:
    text = """\
# why
CONFIG_A=y
# CONFIG_B is not set
CONFIG_C="text \\"quoted\\""

# optional: since Linux 6.14
CONFIG_D=0x10
CONFIG_E=-3

CONFIG_F=n
"""
    options = parse_fragment(text, "x.config")
    assert values(options) == {
        **{"A": "y", "B": "n", "C": '"text \\"quoted\\""', "D": "0x10", "E": "-3", "F": "n"}
    }
    assert [option.name for option in options if option.optional] == ["D", "E"]
    assert options[1].where == "x.config:3"
    assert parse_config(render(options)).value("C") == 'text "quoted"'


@pytest.mark.parametrize(
    "line", ["A=y", "CONFIG_A", "CONFIG_A=", "CONFIG_A=yes", "CONFIG_A=y # why", "config_a=y"]
)
def test_what_is_no_fragment(line: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_fragment(f"CONFIG_X=y\n{line}\n", "x.config")
    assert caught.value.where == "x.config:2"
    assert "CONFIG_NAME=value" in caught.value.hint


def test_the_later_fragment_counts() -> None:
    base, more = (parse_fragment(text, "x") for text in ("CONFIG_A=m\nCONFIG_B=y", "CONFIG_A=n"))
    assert values(merge([base, more])) == {"B": "y", "A": "n"}
    assert render(merge([base, more])) == "CONFIG_B=y\n# CONFIG_A is not set\n"


def test_what_did_not_stick() -> None:
    asked = parse_fragment(
        'CONFIG_A=y\nCONFIG_B=n\nCONFIG_C="x"\nCONFIG_D=n\n# optional: old\nCONFIG_E=y', "x"
    )
    have = parse_config('CONFIG_A=m\nCONFIG_B=y\nCONFIG_C="x"\n')
    assert [(one.option.name, one.found) for one in unmet(asked, have)] == [("A", "m"), ("B", "y")]


KCONFIG = """\
menuconfig OUTER
        tristate "Outer"

if OUTER && !NEVER

config INNER
        tristate "Inner"
        default OUTER
        help
          depends on HELP

          config FALSE

          More help.
        depends on ONE || \\
                TWO # a comment
        depends on (A = "x" || B != y) && NR >= 4

menu "A menu"
        depends on MENU

config DEEP
        bool

endmenu

endif

config INNER
        depends on THREE
"""


def test_dependencies() -> None:
    found = dependencies(KCONFIG, "Kconfig", "INNER")
    assert found is not None
    assert [(one.where, one.text) for one in found] == [
        ("Kconfig:4", "OUTER && !NEVER"),
        ("Kconfig:15", "ONE || TWO"),
        ("Kconfig:17", '(A = "x" || B != y) && NR >= 4'),
        ("Kconfig:30", "THREE"),
    ]
    deep = dependencies(KCONFIG, "Kconfig", "DEEP")
    assert deep is not None
    assert [one.text for one in deep] == ["OUTER && !NEVER", "MENU"]
    assert dependencies(KCONFIG, "Kconfig", "OUTER") == ()
    assert dependencies(KCONFIG, "Kconfig", "FALSE") is None


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("Y", 2), ("M", 1), ("N", 0), ("ABSENT", 0), ("!Y", 0), ("!M", 1), ("!ABSENT", 2),
        ("Y && M", 1), ("N || M", 1), ("!Y || Y && M", 1), ("(N || Y) && Y", 2),
        ("M || !M", 1), ("Y || !Y", 2), ("N || !N", 2),
        ("M = m", 2), ("M != m", 0), ('T = "x"', 2), ("NR >= 4", 2), ("NR < 4", 0),
        ("M < Y", 2), ("Y <= M", 0), ("NR > 0x20", 0), ("!(M = y)", 2),
    ],
)  # fmt: skip
def test_expressions(text: str, level: int) -> None:
    have = parse_config('CONFIG_Y=y\nCONFIG_M=m\n# CONFIG_N is not set\nCONFIG_T="x"\nCONFIG_NR=8')
    condition = Dependency(text, "Kconfig:1")
    assert (holding_back(condition, have, "y") is None) == (level == 2)
    assert (holding_back(condition, have, "m") is None) == (level >= 1)


@pytest.mark.parametrize("text", ["$(cc-option,-g)", "A &&", "(A", "", "A B", "8 < B C"])
def test_what_cannot_be_told_holds_nothing_back(text: str) -> None:
    assert holding_back(Dependency(text, "x"), parse_config(""), "y") is None


def plan_of(text: str) -> ConfigPlan:
    return ConfigPlan(("x",), None, parse_fragment(text, "x.config"))


def test_an_option_that_does_not_stick_is_explained() -> None:
    plan = plan_of("CONFIG_DEV_DAX_HMEM=y\nCONFIG_NOVEL=y\nCONFIG_CXL_REGION=n\n")
    have = parse_config(
        "CONFIG_DAX=y\nCONFIG_CXL_ACPI=m\nCONFIG_DEV_DAX_HMEM=m\nCONFIG_CXL_REGION=y\n"
    )
    with pytest.raises(UnbuildableError) as caught:
        check_config(plan, have, FAKE_KERNEL)
    assert caught.value.message.splitlines() == [
        "this source cannot be configured as asked:",
        "  DEV_DAX_HMEM: asked for y (x.config:1), got m",
        "    drivers/dax/Kconfig:9: depends on CXL_ACPI || !CXL_ACPI (here CXL_ACPI=m)",
        "  NOVEL: asked for y (x.config:2), this source has none",
        "  CXL_REGION: asked for n (x.config:3), got y; another option selects it, or it cannot "
        "be turned off",
    ]
    check_config(plan_of("CONFIG_DAX=y\n"), have, FAKE_KERNEL)


def test_the_projects_fragments() -> None:
    names = fragment_names()
    assert set(names) == {
        *("base", "no_cxl_region", "no_dax_cxl", "no_soft_reserve", "no_kmem", "no_cxl"),
        *("builtin", "mixed", "hmem_builtin_cxl_module", "debug", "debug_info", "distro"),
    }
    for name in names:
        text = (FRAGMENTS / f"{name}.config").read_text()
        for group in text.split("\n\n"):
            assert group.lstrip().startswith("#"), f"{name}: a group without its reason:\n{group}"
    plan = plan_config(["no_cxl_region"])
    assert values(plan.options)["CXL_REGION"] == "n"
    assert values(plan.options)["CXL_BUS"] == "m"
    assert plan_config(["base"]).text == plan_config([]).text
    assert values(plan_config(["mixed"]).options)["CXL_ACPI"] == "y"


def test_a_wrong_name() -> None:
    with pytest.raises(UsageError, match="no fragment 'no_cxl_regoin'") as caught:
        plan_config(["no_cxl_regoin"])
    assert "close names: no_cxl_region" in caught.value.hint


def test_a_file_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "mine.config"
    path.write_text("CONFIG_MINE=y\n")
    assert values(plan_config([str(path)]).options)["MINE"] == "y"
    with pytest.raises(UsageError, match="not a line"):
        path.write_text("what\n")
        plan_config([str(path)])
    with pytest.raises(UsageError):
        plan_config([str(tmp_path)])


def test_a_whole_config_to_start_from(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("CONFIG_A=y\n")
    plan = plan_config([f"distro:{path}", "no_kmem"])
    assert plan.start == "CONFIG_A=y\n"
    assert "CXL_BUS" not in values(plan.options)
    assert plan.text.startswith("CONFIG_A=y\n")
    assert plan.text.endswith("# CONFIG_DEV_DAX_KMEM is not set\n")
    with pytest.raises(UsageError, match=r"no \.config to start from"):
        plan_config([f"distro:{tmp_path / 'none'}"])
