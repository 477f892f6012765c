# SPDX-License-Identifier: GPL-2.0-or-later
"""Every scenario, on the kernel that --kernel names."""

import pytest

from harness.contract.result import RunResult
from harness.plugins.pytest_plugin import assert_owners


@pytest.mark.guest
def test_ownership(scenario_result: RunResult) -> None:
    assert_owners(scenario_result)
