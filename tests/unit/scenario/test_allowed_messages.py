# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel messages that do not count: those that QEMU causes."""

from __future__ import annotations

from machines import record
from refusals import Row, differences

from harness.contract.dmesg import kernel_warnings, splat
from harness.scenario.allowed_messages import Quirks
from harness.scenario.scenario_files import load_quirks
from harness.scenario.yaml_document import read_document

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


def test_a_quirk_matches_the_whole_first_line_of_a_message() -> None:
    (pattern,) = read_document(ONE, "x", Quirks).value.patterns("tcg")
    for text, is_quirk in (
        ("cxl root0: QEMU 10", True),
        ("cxl root0: QEMU 10\nand more lines of it", True),
        ("cxl root0: QEMU 10 and more", False),
        ("something cxl root0: QEMU 10", False),
        ("something\ncxl root0: QEMU 10", False),
    ):
        assert bool(pattern.search(text)) is is_quirk, text
        assert (kernel_warnings([record(4, text)], [pattern]) == ()) is is_quirk, text


LINE = r"'cxl root0: QEMU \d+'"
CHANGES: list[Row] = [
    ((LINE, "'cxl ([root0:'"), "quirks[0].line", "not a regular expression"),
    ((LINE, "'.*: probe with .*'"), "quirks[0].line", "matches unrelated kernel messages"),
    (("[tcg]", "[]"), "quirks[0].accel", "length"),
    (("[tcg]", "[xen]"), "quirks[0].accel[0]", "'xen'"),
    (("because QEMU does it so, whatever the kernel does", "because"), "quirks[0].reason", ""),
    (("    accel: [tcg]\n", ""), "quirks[0]", "'accel' is missing"),
    (("    reason:", "    raeson:"), "quirks[0].raeson", "did you mean reason?"),
]


def test_a_wrong_file_is_refused() -> None:
    assert all(old in ONE for (old, _), _, _ in CHANGES)
    name = "tests/qemu_quirks.yaml"
    assert differences(lambda one: read_document(ONE.replace(*one), name, Quirks), CHANGES) == []
