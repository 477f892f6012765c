# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest

from harness.core.errors import UnbuildableError, UsageError
from harness.kernels.build.config import (
    FRAGMENTS,
    ConfigPlan,
    Option,
    check_config,
    dependencies,
    fragment_names,
    parse_config,
    parse_fragment,
    plan_config,
)

FAKE_KERNEL = Path(__file__).resolve().parents[2] / "data" / "fake_kernel"


TEXT = """\
#
# Automatically generated file; DO NOT EDIT.
#
CONFIG_CC_VERSION_TEXT="gcc \\"14\\" = new"
CONFIG_CXL_BUS=y
CONFIG_DEV_DAX_HMEM=m
# CONFIG_CXL_REGION is not set
CONFIG_LOCALVERSION=""
CONFIG_NR_CPUS=64
CONFIG_PHYSICAL_START=0x1000000

# end of file
"""


def test_values_of_a_config() -> None:
    config = parse_config(TEXT)
    assert config.value("CXL_BUS") == "y"
    assert config.value("CONFIG_DEV_DAX_HMEM") == "m"
    assert config.value("CXL_REGION") == "n"
    assert config.value("NEVER_HEARD_OF") == "n"
    assert config.value("LOCALVERSION") == ""
    assert config.value("NR_CPUS") == "64"
    assert config.value("PHYSICAL_START") == "0x1000000"
    assert config.value("CC_VERSION_TEXT") == 'gcc "14" = new'


def test_enabled() -> None:
    config = parse_config(TEXT)
    assert [config.enabled(name) for name in ("CXL_BUS", "DEV_DAX_HMEM", "CXL_REGION", "X")] == [
        True, True, False, False,
    ]  # fmt: skip


def test_the_last_line_of_a_config_counts() -> None:
    assert parse_config("CONFIG_A=y\n# CONFIG_A is not set\n").value("A") == "n"
    assert parse_config("# CONFIG_A is not set\nCONFIG_A=m\n").value("A") == "m"


def test_another_text_is_not_a_config() -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse_config("CONFIG_A=y\nhello\n")


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
    assert parse_config(plan_of(text).text).value("C") == 'text "quoted"'


def test_a_line_that_is_not_of_a_fragment() -> None:
    for line in ("A=y", "CONFIG_A", "CONFIG_A=", "CONFIG_A=yes", "CONFIG_A=y # why", "config_a=y"):
        with pytest.raises(UsageError) as caught:
            parse_fragment(f"CONFIG_X=y\n{line}\n", "x.config")
        assert caught.value.where == "x.config:2"
        assert "CONFIG_NAME=value" in caught.value.hint


def test_the_later_fragment_counts(tmp_path: Path) -> None:
    for name, text in {"base": "CONFIG_A=m\nCONFIG_B=y\n", "more": "CONFIG_A=n\n"}.items():
        (tmp_path / f"{name}.config").write_text(text)
    plan = plan_config(["more"], tmp_path)
    assert values(plan.options) == {"B": "y", "A": "n"}
    assert plan.text == "CONFIG_B=y\n# CONFIG_A is not set\n"


def test_unmet_requests() -> None:
    plan = plan_of('CONFIG_A=y\nCONFIG_B=n\nCONFIG_C="x"\nCONFIG_D=n\n# optional: old\nCONFIG_E=y')
    have = parse_config('CONFIG_A=m\nCONFIG_B=y\nCONFIG_C="x"\n')
    with pytest.raises(UnbuildableError) as caught:
        check_config(plan, have, FAKE_KERNEL)
    named = [line.split(":")[0].strip() for line in caught.value.message.splitlines()[1:]]
    assert named == ["A", "B"]


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
    assert dependencies(KCONFIG, "Kconfig", "INNER") == (
        "Kconfig:4: if OUTER && !NEVER",
        "Kconfig:15: depends on ONE || TWO",
        'Kconfig:17: depends on (A = "x" || B != y) && NR >= 4',
        "Kconfig:30: depends on THREE",
    )
    assert dependencies(KCONFIG, "Kconfig", "DEEP") == (
        "Kconfig:4: if OUTER && !NEVER",
        "Kconfig:20: depends on MENU",
    )
    assert dependencies(KCONFIG, "Kconfig", "OUTER") == ()
    assert dependencies(KCONFIG, "Kconfig", "FALSE") == ()


def plan_of(text: str) -> ConfigPlan:
    return ConfigPlan(("x",), None, parse_fragment(text, "x.config"))


def test_an_unmet_request_is_explained() -> None:
    plan = plan_of("CONFIG_DEV_DAX_HMEM=y\nCONFIG_NOVEL=y\nCONFIG_CXL_REGION=n\n")
    have = parse_config(
        "CONFIG_DAX=y\nCONFIG_CXL_ACPI=m\nCONFIG_DEV_DAX_HMEM=m\nCONFIG_CXL_REGION=y\n"
    )
    with pytest.raises(UnbuildableError) as caught:
        check_config(plan, have, FAKE_KERNEL)
    assert caught.value.message.splitlines() == [
        "this source cannot be configured as requested:",
        "  DEV_DAX_HMEM: requested y (x.config:1), got m",
        "    drivers/dax/Kconfig:9: depends on CXL_ACPI || !CXL_ACPI (here CXL_ACPI=m)",
        "  NOVEL: requested y (x.config:2), this source has no such option",
        "  CXL_REGION: requested n (x.config:3), got y; another option selects it, or it cannot "
        "be turned off",
    ]
    check_config(plan_of("CONFIG_DAX=y\n"), have, FAKE_KERNEL)


def test_dependencies_that_are_met_are_not_listed() -> None:
    for text, expected in (
        ("", ["5: if DAX (here DAX=n)", "17: depends on CXL_REGION (here CXL_REGION=n)"]),
        ("CONFIG_DAX=y\nCONFIG_CXL_REGION=m\n", ["17: depends on CXL_REGION (here CXL_REGION=m)"]),
    ):
        with pytest.raises(UnbuildableError) as caught:
            check_config(plan_of("CONFIG_DEV_DAX_CXL=y\n"), parse_config(text), FAKE_KERNEL)
        lines = caught.value.message.splitlines()[2:]
        assert [line.strip() for line in lines] == [f"drivers/dax/Kconfig:{x}" for x in expected]


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
    with pytest.raises(UsageError, match=r"cannot read the \.config to start from"):
        plan_config([f"distro:{tmp_path / 'none'}"])
    path.write_text("hello\n")
    with pytest.raises(UsageError, match="line 1 is not a line") as caught:
        plan_config([f"distro:{path}"])
    assert "distro:PATH" in caught.value.hint
