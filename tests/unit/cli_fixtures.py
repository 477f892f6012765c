# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures for tests of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.contract.result import RunResult, Verdict
from harness.machine.qemu_binary import REQUIRED_FEATURES, QemuBinary
from harness.runs.requirements import NotApplicableError
from harness.runs.session import Session, Skipped
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario_files import Case

RELEASE = "7.2.0-made-up"
FIT_QEMU = QemuBinary(
    path=Path("/nowhere/qemu-system-x86_64"),
    version=(10, 0, 2),
    version_text="10.0.2 (Fake)",
    identity="0" * 64,
    seccomp=True,
    features=REQUIRED_FEATURES,
)


@dataclass(frozen=True)
class Ended:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


Harness = Callable[..., Ended]


def files(room: Path) -> set[Path]:
    """Return all files below a folder, and the evidence folders of runs."""
    found = {path for path in room.rglob("*") if not path.is_dir()}
    return found | set((room / "evidence").glob("*"))


def assert_one_message(ended: Ended, *words: str, code: int = 2) -> None:
    """Check that a command ended with one message and a hint, which contain these words."""
    assert "Traceback" not in ended.err
    assert (ended.code, ended.out) == (code, "")
    first, *rest = ended.err.splitlines()
    assert first.startswith("harness: ")
    assert not [line for line in rest if line.startswith("harness: ")]
    assert [line.startswith("  hint: ") for line in rest].count(True) == 1
    assert rest[-1].startswith("  hint: ")
    assert len(rest[-1]) > len("  hint: ")
    for word in words:
        assert word in ended.err


def program(text: str) -> Path:
    path = Path("fake-qemu").absolute()
    path.write_text(text)
    path.chmod(0o755)
    return path


def use_verdicts(monkeypatch: pytest.MonkeyPatch, *endings: Verdict | BaseException) -> None:
    left = list(endings)

    def run_all(
        _session: Session, cases: Sequence[Case], _kernel: object
    ) -> Iterator[RunResult | Skipped]:
        for case in cases:
            ending = left.pop(0)
            if isinstance(ending, NotApplicableError):
                yield Skipped(case, ending)
            elif isinstance(ending, BaseException):
                raise ending
            else:
                yield RunResult(
                    scenario=case.name,
                    request=KernelRequest("debian:7.2"),
                    policy="per_range",
                    verdict=ending,
                    reason="why",
                )

    monkeypatch.setattr(Session, "run_all", run_all)
