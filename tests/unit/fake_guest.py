# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest without a machine: a shell with given answers, and prepared scenarios of the corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

from corpus import CORPUS, layout_from, sections_of

from harness.contract.dmesg import StepMarks
from harness.core.deadline import Deadline
from harness.core.errors import GuestLostError
from harness.core.kernel import Kernel
from harness.guest.initramfs import SCENARIO_MODULES, SharedInitramfs
from harness.guest.settle import Settling
from harness.guest.ssh import GuestCommand, GuestShell
from harness.machine.console_watch import CrashWatch
from harness.platform.firmware_state import place_firmware
from harness.platform.hdm_decoders import plan_decoders
from harness.runs.boot import BootedGuest
from harness.runs.prepare import Bootable, Prepared
from harness.scenario.scenario_files import load_case

Answer = Callable[[str], tuple[int, str]]

# So that tests do not wait.
QUICK = Settling(done=0.0, otherwise=0.0, limit=5.0)


class FakeShell:
    """A shell that answers each command with a status and an output.

    Args:
        answer: is called with each command; a sequence of answers is `answers(...)`.

    Attributes:
        commands: what was run.
        deadlines: what was waited for.
    """

    def __init__(self, answer: Answer = lambda _command: (0, "")) -> None:
        self.marks = StepMarks("secret")
        self.step = ""
        self.commands: list[str] = []
        self.deadlines: list[str] = []
        self.answer = answer

    def begin(self, step: str) -> str:
        return GuestShell.begin(self.shell, step)

    def run(self, command: str, deadline: Deadline) -> GuestCommand:
        deadline.check()
        self.commands.append(command)
        self.deadlines.append(deadline.what)
        return GuestCommand(command, *self.answer(command))

    @contextmanager
    def beside(self, _deadline: Deadline) -> Iterator[FakeShell]:
        yield self

    @property
    def shell(self) -> GuestShell:
        return cast(GuestShell, self)


def answers(*listed: tuple[int, str]) -> Answer:
    """These answers, one after the other."""
    left = list(listed)
    return lambda _command: left.pop(0)


class CapturedShell(FakeShell):
    """A guest that shows a capture of the corpus, with the marks of the steps in its log.

    Args:
        capture: a folder of the corpus.
        sections: replace those of the capture.
        failing: status and output of commands that contain a text.
    """

    def __init__(
        self,
        capture: str,
        sections: Mapping[str, str] | None = None,
        failing: Mapping[str, tuple[int, str]] | None = None,
    ) -> None:
        super().__init__(self._shown)
        self.sections = {**sections_of(capture), **(sections or {})}
        self.failing = dict(failing or {})

    def _shown(self, command: str) -> tuple[int, str]:
        for text, result in self.failing.items():
            if text in command:
                return result
        marks = "".join(f"<6>[  999.0] {self.marks.line(step)}\n" for step in self.marks.begun)
        if command.startswith("observe "):
            token = command.removeprefix("observe ")
            sections = {**self.sections, "dmesg": self.sections["dmesg"] + marks}
            return 0, "".join(f"{token} {name}\n{text}" for name, text in sections.items())
        if "cat /proc/iomem" in command:
            return 0, f"{self.sections['iomem']}==\n{marks}"
        return 0, ""


class Memory:
    """Memory behind qtest that answers."""

    def __init__(self) -> None:
        self.words: dict[int, int] = {}

    def read64(self, address: int) -> int:
        return self.words.get(address, 0)

    def write64(self, address: int, value: int) -> None:
        self.words[address] = value


class FakeMachine:
    """A QEMU whose memory answers; notes its commands.

    Args:
        returns: what commands return.
    """

    def __init__(self, **returns: Any) -> None:
        self.qtest = Memory()
        self.commands: list[str] = []
        self.returns = returns

    def command(self, name: str, **_arguments: object) -> Any:
        self.commands.append(name)
        return self.returns.get(name, {"status": "paused"})

    def check_alive(self, _seconds: float = 0.0) -> None:
        pass

    def telling_its_end(self) -> nullcontext[None]:
        return nullcontext()


def booted(shell: FakeShell, watch: CrashWatch | None = None) -> BootedGuest:
    """A guest with this shell."""
    watch = watch or CrashWatch()
    watch.steps_begin(lambda: shell.step)
    return BootedGuest(cast(Any, FakeMachine()), shell.shell, watch)


def lost(message: str = "no other shell") -> GuestLostError:
    return GuestLostError(message, hint="h")


def bootable_of(
    folder: Path,
    *,
    release: str = "7.2",
    modules: tuple[str, ...] = SCENARIO_MODULES,
    config: str | None = None,
    accel: Any = "tcg",
    **missing: str,
) -> Bootable:
    """A kernel in a folder of the user's, with these modules in its initramfs.

    Args:
        folder: is written to.
        release: of the kernel.
        modules: those with a file.
        config: the kernel's configuration.
        accel: the accelerator.
        missing: modules that the kernel lacks, with the reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / "vmlinuz"
    image.touch()
    path = None
    if config is not None:
        path = folder / "config"
        path.write_text(config)
    kernel = Kernel("debian:7.2", release, image, None, path, "id")
    initramfs = SharedInitramfs(folder / "initramfs", {name: () for name in modules}, missing)
    return Bootable(kernel, initramfs, accel)


def prepared_of(folder: Path, capture: str = "exact_cover-7.2", **kernel: Any) -> Prepared:
    """The scenario of a capture, on its kernel; `kernel` as for `bootable_of`."""
    case = load_case(capture.split("-")[0])
    layout = layout_from(capture, case)
    state = place_firmware(case.document, case.profile, layout)
    release = (CORPUS / capture / "sections").read_text().splitlines()[1]
    return Prepared(
        case=case,
        bootable=bootable_of(folder, **{"release": release, **kernel}),
        layout=layout,
        state=state,
        settings=plan_decoders(case.profile, state),
        command_line="",
        acpi_tables={},
    )
