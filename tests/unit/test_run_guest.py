# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from dataclasses import replace

import pytest
from machines import observed

from harness.errors import GuestLostError
from harness.model.load import Load
from harness.runs.run_guest import require_loaded

SEEN = replace(observed("100-1ff : System RAM"), modules=("kmem", "dax_hmem"))


def test_a_module_that_was_loaded_and_is_not_there_is_noticed() -> None:
    files = ("kmem", "dax_hmem", "cxl_acpi")
    require_loaded(Load("in_order", ("kmem", "dax-hmem")), files, SEEN)
    with pytest.raises(GuestLostError, match="/proc/modules lacks cxl_acpi"):
        require_loaded(Load("in_order", ("kmem", "cxl_acpi")), files, SEEN)


def test_a_driver_that_is_built_in_is_no_module() -> None:
    require_loaded(Load("in_order", ("kmem", "cxl_acpi")), ("kmem",), SEEN)
