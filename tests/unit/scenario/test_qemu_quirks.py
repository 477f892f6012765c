# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from harness.contract.dmesg import complaints, splat
from harness.core.errors import UsageError
from harness.scenario.allowed_messages import read_quirks
from harness.scenario.scenario_files import load_quirks

HOGGED = (
    "workqueue: dax_hmem_work hogged CPU for >10000us 4 times, consider switching to WQ_UNBOUND"
)
ONE = """\
quirks:
  - line: 'cxl root0: QEMU \\d+'
    accel: [tcg]
    reason: because QEMU does it so, whatever the kernel does
"""


def test_the_projects_quirks_are_of_messages_that_would_count() -> None:
    assert splat(HOGGED) is not None
    (pattern,) = load_quirks().patterns("tcg")
    assert pattern.search(HOGGED)
    assert load_quirks().patterns("kvm") == ()
    assert load_quirks().patterns(None) == ()


@pytest.mark.parametrize(
    ("text", "is_quirk"),
    [
        ("cxl root0: QEMU 10", True),
        ("cxl root0: QEMU 10\nand more lines of it", True),
        ("cxl root0: QEMU 10 and more", False),
        ("something cxl root0: QEMU 10", False),
        ("something\ncxl root0: QEMU 10", False),
    ],
)
def test_a_quirk_is_the_whole_first_line_of_a_message(text: str, is_quirk: bool) -> None:
    from machines import record

    (pattern,) = read_quirks(ONE, "x").value.patterns("tcg")
    assert bool(pattern.search(text)) is is_quirk
    assert (complaints([record(4, text)], [pattern]) == ()) is is_quirk


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (r"'cxl root0: QEMU \d+'", "'cxl ([root0:'", "not a regular expression"),
        (r"'cxl root0: QEMU \d+'", "'.*: probe with .*'", "nothing to do with QEMU"),
        (r"'cxl root0: QEMU \d+'", "'cxl'", "quirks"),
        ("[tcg]", "[]", "accel"),
        ("[tcg]", "[xen]", "accel"),
        ("because QEMU does it so, whatever the kernel does", "because", "reason"),
        ("    accel: [tcg]\n", "", "accel"),
        ("    reason:", "    raeson:", "raeson"),
    ],
)
def test_a_wrong_file_is_refused(old: str, new: str, what: str) -> None:
    assert old in ONE
    with pytest.raises(UsageError, match=what) as caught:
        read_quirks(ONE.replace(old, new), "tests/qemu_quirks.yaml")
    assert "qemu_quirks.yaml" in str(caught.value)
