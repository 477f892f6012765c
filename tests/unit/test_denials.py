# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import harness.guest
from harness.model.denials import denied_initcalls, denied_modules


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


@pytest.mark.parametrize(
    ("cmdline", "rules"),
    [
        ("console=ttyS0 modprobe.blacklist=cxl_acpi,kmem quiet", "cxl_acpi kmem"),
        ("modprobe.blacklist=a modprobe.blacklist=b,c", "a b c"),
        ("module_blacklist=a quiet", ""),
    ],
)
def test_the_guests_modprobe_is_told_what_its_parameter_denies(
    cmdline: str, rules: str, tmp_path: Path
) -> None:
    script = (Path(harness.guest.__file__).parent / "init.sh").read_text()
    begin, end = script.index("read -r parameters"), script.index("if [ ! -e /etc/harness ]")
    part = script[begin:end]
    assert "/proc/cmdline" in part and "/etc/modprobe.d/denied.conf" in part
    (tmp_path / "cmdline").write_text(f"{cmdline}\n")
    part = part.replace("/proc/cmdline", "cmdline")
    part = part.replace("/etc/modprobe.d/denied.conf", "denied.conf")
    subprocess.run(["sh", "-eu", "-c", part], cwd=tmp_path, check=True, timeout=10)
    expected = "".join(f"blacklist {name}\n" for name in rules.split())
    assert (tmp_path / "denied.conf").read_text() == expected
