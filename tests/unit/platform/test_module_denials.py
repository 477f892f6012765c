# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from harness.platform.kernel_cmdline import denied_initcalls, denied_modules


@pytest.mark.parametrize(
    ("cmdline", "modules", "initcalls"),
    [
        ([], set(), set()),
        (["module_blacklist=a,b-c", "quiet"], {"a", "b_c"}, set()),
        (["module_blacklist=a", "module_blacklist=b"], {"a", "b"}, set()),
        (["initcall_blacklist=f,g"], set(), {"f", "g"}),
        (["module_blacklist="], set(), set()),
        (["modprobe.blacklist=a", "x.module_blacklist=b"], set(), set()),
    ],
)
def test_what_a_command_line_denies(
    cmdline: list[str], modules: set[str], initcalls: set[str]
) -> None:
    assert denied_modules(cmdline) == modules
    assert denied_initcalls(cmdline) == initcalls
