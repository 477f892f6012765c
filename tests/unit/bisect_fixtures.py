# SPDX-License-Identifier: GPL-2.0-or-later
"""A tree to bisect, and guests whose verdict depends on its source."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from fake_sources import Builder, edit, git, git_fake

from harness.contract.result import Finding, RunResult, Verdict
from harness.core.progress import SilentProgress
from harness.kernels.resolve import resolve_kernel
from harness.runs.requirements import NotApplicableError
from harness.runs.session import Session, Skipped
from harness.scenario.kernel_request import KernelRequest, as_request
from harness.scenario.scenario_files import Case

Answer = Callable[[str, int], Verdict | BaseException]


@pytest.fixture
def builder(tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    """The builder of the fake kernel, with the store that the command line uses."""
    return Builder(room, monkeypatch)


class Guests:
    """Ends a run with a verdict that depends on the text of the kernel.

    Attributes:
        answer: returns the verdict, or the error to raise, for the text and the number of runs
            before.
        count: the number of runs so far.
        rule: broken by a failed run.
    """

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.count = 0
        self.rule = "1"
        self.answer: Answer = lambda text, _count: (
            Verdict.FAIL if "stranded" in text else Verdict.PASS
        )

    def run_all(
        self, session: Session, cases: Sequence[Case], kernel: KernelRequest
    ) -> Iterator[RunResult | Skipped]:
        assert not session.options.minimize, "failing loads must not be shortened"
        for case in cases:
            built = resolve_kernel(kernel, self.builder.store, SilentProgress())
            text = built.image.read_bytes().decode(errors="replace")
            ending = self.answer(text, self.count)
            self.count += 1
            if isinstance(ending, NotApplicableError):
                yield Skipped(case, ending)
            elif isinstance(ending, BaseException):
                raise ending
            else:
                findings = (Finding(self.rule, "x"),) if ending is Verdict.FAIL else ()
                request = as_request(kernel)
                yield RunResult(case.name, request, "per_range", ending, findings=findings)


@pytest.fixture
def guests(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> Guests:
    guests = Guests(builder)
    monkeypatch.setattr(Session, "run_all", lambda *arguments: guests.run_all(*arguments))
    return guests


@pytest.fixture(scope="module")
def made_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight commits on top of v0; the fifth strands memory."""
    tree = git_fake(tmp_path_factory.mktemp("made") / "linux")
    git(tree, "tag", "v0")
    for number in range(1, 9):
        text = "stranded" if number == 5 else f"number {number}"
        edit(tree, "/* Two. */", f"/* Two. */\n/* {text} */")
        git(tree, "commit", "-q", "-a", "-m", f"dax: hmem: change {number}")
    return tree


@pytest.fixture
def tree(made_tree: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made_tree, tmp_path / "linux")
