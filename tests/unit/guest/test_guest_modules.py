# SPDX-License-Identifier: GPL-2.0-or-later
"""Loading and deleting modules in the guest, with shells that answer as modprobe does."""

from __future__ import annotations

import re
import shlex

import pytest
from fake_guest import FakeShell

from harness.contract.result import Finding
from harness.core.errors import GuestLostError
from harness.guest.modules import load_module, load_modules, remove_modules
from harness.scenario.module_load import How, Load


def load(guest: FakeShell, how: How, *modules: str) -> tuple[str, ...]:
    return tuple(one.text for one in load_modules(guest.shell, Load(how, modules)))


def test_in_order_each_module_has_its_own_problem() -> None:
    guest = FakeShell(lambda _: (1, "modprobe: no such thing"))
    problems = load(guest, "in_order", "kmem", "dax_cxl")
    assert [problem.split(" ended")[0] for problem in problems] == [
        "modprobe kmem",
        "modprobe dax_cxl",
    ]
    assert len(guest.commands) == 2


@pytest.mark.parametrize(
    ("output", "problems"),
    [
        ("kmem 0 \ndax_cxl 0 \n", 0),
        ("dax_cxl 0 \nkmem 1 modprobe: can't load module kmem\n", 1),
        ("dax_cxl 0 \n", 1),  # what says nothing has not ended well
        ("", 2),
    ],
)
def test_at_once_every_module_must_say_that_it_is_loaded(output: str, problems: int) -> None:
    guest = FakeShell(lambda _: (0, output))
    found = load(guest, "at_once", "kmem", "dax_cxl")
    assert len(found) == problems
    assert all("kmem" in one or "dax_cxl" in one for one in found)
    assert "can't load" in output or not any("can't" in one for one in found)
    assert len(guest.commands) == 1


def test_nothing_at_once_is_no_command() -> None:
    guest = FakeShell()
    assert load(guest, "at_once") == ()
    assert guest.commands == []


def test_by_modalias_every_named_module_must_be_there_in_the_end() -> None:
    guest = FakeShell(lambda _: (0, "virtio_net\ncxl_acpi\ncxl_mem\n"))
    (problem,) = load(guest, "by_modalias", "cxl-acpi", "cxl_mem", "kmem")
    assert "kmem" in problem


@pytest.mark.parametrize("how", ["in_order", "at_once", "by_modalias"])
def test_modprobe_is_called_by_its_path(how: How) -> None:
    """The bare name is an applet of busybox's shell, which loads no softdeps."""
    guest = FakeShell(lambda _: (0, "kmem 0\n"))
    load(guest, how, "kmem")
    (command,) = guest.commands
    script = re.sub("echo '<6>harness: .*' > /dev/kmsg", "", command)
    calls = re.findall(r"[\w/]*modprobe", script)
    assert calls and set(calls) == {"/sbin/modprobe"}


def test_a_module_is_loaded_with_a_mark_in_the_log() -> None:
    guest = FakeShell()
    assert load_module(guest.shell, "dax_hmem") is None
    mark = "echo '<6>harness: modprobe dax_hmem [secret]' > /dev/kmsg"
    assert guest.commands == [f"{mark}; /sbin/modprobe dax_hmem"]
    assert guest.step == "modprobe dax_hmem"


def test_a_module_that_does_not_load_is_told_with_what_modprobe_said() -> None:
    guest = FakeShell(lambda _: (1, "modprobe: can't load module\n"))
    assert load_module(guest.shell, "kmem") == Finding(
        "step",
        "modprobe kmem ended with status 1: modprobe: can't load module",
        kind="module_not_loaded",
        subject="kmem: modprobe: can't load module",
    )


@pytest.mark.parametrize("name", ["a; reboot", "$(reboot)", "a'b", "a\nb"])
def test_no_name_of_a_module_reaches_the_shell_as_more_than_a_word(name: str) -> None:
    guest = FakeShell()
    load_module(guest.shell, name)
    (command,) = guest.commands
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    one_line = name.replace("\n", " ")  # of two, the second would be no mark
    assert words == [
        *("echo", f"<6>harness: modprobe {one_line} [secret]", ">", "/dev/kmsg"),
        *(";", "/sbin/modprobe", name),
    ]


def test_module_files_are_deleted_by_the_name_of_the_file() -> None:
    guest = FakeShell()
    remove_modules(guest.shell, ("cxl-pci", "kmem"))
    assert guest.commands == ["(cd /lib/modules/*/ && rm cxl_pci.ko kmem.ko)"]


def test_without_modules_to_delete_the_guest_is_not_asked() -> None:
    guest = FakeShell(lambda _: (1, ""))
    remove_modules(guest.shell, ())
    assert guest.commands == []


def test_a_module_file_that_is_not_there_cannot_be_deleted() -> None:
    guest = FakeShell(lambda _: (1, "rm: can't remove 'kmem.ko'\n"))
    with pytest.raises(GuestLostError, match=r"module files: rm: can't remove 'kmem\.ko'"):
        remove_modules(guest.shell, ("kmem",))
