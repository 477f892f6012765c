# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernels to which a scenario applies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from harness.core.kernel import Kernel
from harness.core.kernel_version import kernel_version
from harness.runs.requirements import NotApplicableError, check_kernel, check_removable
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario_files import Case, load_case

REQUEST = KernelRequest("build:linux")


def about(**needs: object) -> Case:
    case = load_case("exact_cover")
    kernel = msgspec.structs.replace(case.scenario.kernel, **needs)
    scenario = msgspec.structs.replace(case.scenario, kernel=kernel)
    return replace(case, document=replace(case.document, value=scenario))


def kernel(release: str, config: Path | None = None) -> Kernel:
    return Kernel("build:linux", release, Path("vmlinuz"), None, config, "id")


@pytest.mark.parametrize(
    "release", ["7.1.0", "7.1.0-rc1+", "7.2.13+deb14-cloud-amd64", "8.0.1", "mine"]
)
def test_a_kernel_that_is_new_enough(release: str) -> None:
    check_kernel(about(since="7.1"), kernel(release), REQUEST)


@pytest.mark.parametrize("release", ["7.0.9", "6.12.107+deb13-cloud-amd64", "6.99"])
def test_a_kernel_that_is_too_old(release: str, tmp_path: Path) -> None:
    with pytest.raises(NotApplicableError, match=f"Linux 7.1 or later.* is {release[:3]}") as said:
        check_kernel(about(since="7.1"), kernel(release), REQUEST)
    assert "--series" in said.value.hint
    # What is on top may be what the scenario is about.
    check_kernel(about(since="7.1"), kernel(release), replace(REQUEST, series=tmp_path))


def test_a_kernel_that_was_built_otherwise(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("CONFIG_CXL_REGION=y\n# CONFIG_DEV_DAX_KMEM is not set\n")
    check_kernel(about(config={"CXL_REGION": "enabled"}), kernel("7.2", config), REQUEST)
    with pytest.raises(NotApplicableError, match=r"DEV_DAX_KMEM=m.* was built with DEV_DAX_KMEM=n"):
        check_kernel(about(config={"DEV_DAX_KMEM": "m"}), kernel("7.2", config), REQUEST)
    with pytest.raises(NotApplicableError, match="has no config file"):
        check_kernel(about(config={"DEV_DAX_KMEM": "m"}), kernel("7.2"), REQUEST)


@pytest.mark.parametrize(
    ("release", "version"),
    [("7.2.13+deb14", (7, 2, 13)), ("7.3-rc7", (7, 3, 0)), ("next-20261120", (0, 0, 0))],
)
def test_versions(release: str, version: tuple[int, int, int]) -> None:
    assert kernel_version(release) == version


def test_a_driver_that_is_built_in_cannot_be_taken_away() -> None:
    case = load_case("no_region")
    assert case.scenario.guest.missing == ("cxl_pci",)
    check_removable(case, ("cxl_acpi", "cxl_pci"))
    with pytest.raises(NotApplicableError, match=r"removes cxl_pci, .* built in"):
        check_removable(case, ("cxl_acpi",))
