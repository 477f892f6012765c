# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds a real kernel: minutes in an empty store, nothing in one that has it."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from harness.contract.result import Verdict
from harness.core.progress import TerminalProgress
from harness.kernels.build.config import parse_config
from harness.kernels.modules import find_modules, index_modules
from harness.kernels.resolve import resolve_kernel
from harness.plugins.pytest_plugin import report_text
from harness.runs.guest_run import Judging
from harness.runs.prepare import Host
from harness.runs.session import Session
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.known_issues import KnownIssues
from harness.scenario.scenario_files import load_case

pytestmark = pytest.mark.guest

SPEC = "build:debian:7.2"
WANTED = ("cxl_acpi", "cxl_pci", "cxl_mem", "cxl_port", "dax_hmem", "kmem", "dax_cxl")


def _must_not_build(*_arguments: object) -> NoReturn:
    pytest.fail("a kernel that is in the store is built again")


def test_a_kernel_built_from_source_owns_what_it_should(
    harness_host: Host, known_issues: KnownIssues, tmp_path: Path
) -> None:
    progress = TerminalProgress()
    kernel = resolve_kernel(SPEC, harness_host.store, progress)
    assert kernel.release.startswith("7.2.")
    assert kernel.config is not None
    assert parse_config(kernel.config.read_text()).value("DEV_DAX_HMEM") == "m"
    plan = find_modules(index_modules(kernel.modules), WANTED)
    assert plan.missing == ()
    assert {module.release for module in plan.order} == {kernel.release}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("harness.kernels.build.build.build", _must_not_build)
        assert resolve_kernel(SPEC, harness_host.store, progress) == kernel
    with Session(harness_host, Judging("per_range", tmp_path, known_issues)) as session:
        result = session.run(load_case("exact_cover"), KernelRequest(SPEC))
    assert result.verdict is Verdict.PASS, report_text(result)
