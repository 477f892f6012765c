# SPDX-License-Identifier: GPL-2.0-or-later
"""What loading in the guest makes of what modprobe says."""

from __future__ import annotations

import re
from typing import cast

import pytest

from harness.contract.dmesg import StepMarks
from harness.core.deadline import Deadline
from harness.guest.modules import load_modules
from harness.guest.ssh import GuestCommand, GuestShell
from harness.scenario.module_load import How, Load


class Guest:
    """Ends every command with the same output and status."""

    def __init__(self, output: str = "", status: int = 0) -> None:
        self.commands: list[str] = []
        self.marks = StepMarks("secret")
        self.step = ""
        self._output, self._status = output, status

    def run(self, command: str, _deadline: Deadline) -> GuestCommand:
        self.commands.append(command)
        return GuestCommand(command, self._status, self._output)

    begin = GuestShell.begin

    def load(self, load: Load) -> tuple[str, ...]:
        return tuple(one.text for one in load_modules(cast(GuestShell, self), load))


def test_in_order_each_module_has_its_own_problem() -> None:
    guest = Guest("modprobe: no such thing", 1)
    problems = guest.load(Load("in_order", ("kmem", "dax_cxl")))
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
    guest = Guest(output)
    found = guest.load(Load("at_once", ("kmem", "dax_cxl")))
    assert len(found) == problems
    assert all("kmem" in one or "dax_cxl" in one for one in found)
    assert "can't load" in output or not any("can't" in one for one in found)
    assert len(guest.commands) == 1


def test_nothing_at_once_is_no_command() -> None:
    guest = Guest()
    assert guest.load(Load("at_once", ())) == ()
    assert guest.commands == []


def test_by_modalias_every_named_module_must_be_there_in_the_end() -> None:
    guest = Guest("virtio_net\ncxl_acpi\ncxl_mem\n")
    (problem,) = guest.load(Load("by_modalias", ("cxl-acpi", "cxl_mem", "kmem")))
    assert "kmem" in problem


@pytest.mark.parametrize("how", ["in_order", "at_once", "by_modalias"])
def test_modprobe_is_called_by_its_path(how: How) -> None:
    """The bare name is an applet of busybox's shell, which loads no softdeps."""
    guest = Guest("kmem 0\n")
    guest.load(Load(how, ("kmem",)))
    (command,) = guest.commands
    script = re.sub("echo '<6>harness: .*' > /dev/kmsg", "", command)
    calls = re.findall(r"[\w/]*modprobe", script)
    assert calls and set(calls) == {"/sbin/modprobe"}
