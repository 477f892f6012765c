# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from harness.kernels.build.kernel_config import parse_config

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


def test_values() -> None:
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


def test_the_last_line_counts() -> None:
    assert parse_config("CONFIG_A=y\n# CONFIG_A is not set\n").value("A") == "n"
    assert parse_config("# CONFIG_A is not set\nCONFIG_A=m\n").value("A") == "m"


def test_something_else_is_not_a_configuration() -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse_config("CONFIG_A=y\nhello\n")
