# SPDX-License-Identifier: GPL-2.0-or-later
"""`harness bisect-step` on the fake kernel; the verdict of a guest depends on its source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from bisect_fixtures import Guests, builder, guests, made_tree, tree
from cli_fixtures import Harness
from fake_sources import copy_fake, edit, git

from harness.contract.result import Verdict
from harness.core.errors import UnbuildableError
from harness.runs.prepare import MissingModuleError
from harness.runs.requirements import NotApplicableError

__all__ = ["builder", "guests", "made_tree", "tree"]

pytestmark = pytest.mark.usefixtures("room", "no_guest")

STEP = ("bisect-step", "--accel", "tcg")
DOES_NOT_APPLY = NotApplicableError("not so", hint="another")


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        (Verdict.PASS, 0),
        (Verdict.FAIL, 1),
        (Verdict.INCONCLUSIVE, 125),
        (Verdict.UNBUILDABLE, 125),
        (DOES_NOT_APPLY, 125),
        (MissingModuleError("no dax_cxl", hint="another"), 125),
        (UnbuildableError("no", hint="look"), 125),
        (OSError(28, "No space left on device"), 128),
        (RuntimeError("a defect"), 128),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes_of_a_step(
    harness: Harness,
    guests: Guests,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: Verdict | BaseException,
    code: int,
) -> None:
    guests.answer = lambda _text, _count: ending
    monkeypatch.chdir(tree / "drivers")
    ended = harness(*STEP, "exact_cover")
    assert ended.code == code, ended.err


def test_a_step_that_does_not_build(
    harness: Harness, guests: Guests, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    edit(tree, "int hmem_three", "#error no\nint hmem_three")
    ended = harness(*STEP, "exact_cover")
    assert ended.code == 125
    assert "cannot tell exact_cover: UNBUILDABLE" in ended.out
    assert guests.count == 0


def test_a_full_disk_ends_the_bisection(
    harness: Harness, guests: Guests, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    edit(tree, "return 3", "/* fake: full disk */\nreturn 3")
    assert harness(*STEP, "exact_cover").code == 128


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("no_such_scenario",),
        ("exact_cover", "--frobnicate"),
        ("exact_cover", "--timeout", "soon"),
        ("exact_cover", "--config", "no_such_fragment"),
        ("exact_cover", "--runs", "1", "--need", "2"),
    ],
)
def test_wrong_use_of_a_step_ends_the_bisection(
    harness: Harness,
    guests: Guests,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: Sequence[str],
) -> None:
    monkeypatch.chdir(tree)
    ended = harness(*STEP, *words)
    assert (ended.code, ended.out, guests.count) == (128, "", 0)
    assert ended.err


def test_a_step_outside_of_a_kernel_tree(harness: Harness, guests: Guests, tmp_path: Path) -> None:
    ended = harness(*STEP, "exact_cover")
    assert ended.code == 128
    assert "is not the source of a kernel" in ended.err


def test_a_step_builds_what_is_checked_out(
    harness: Harness, guests: Guests, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    git(tree, "checkout", "-q", "v0")
    assert harness(*STEP, "exact_cover").code == 0
    edit(tree, "/* Two. */", "/* stranded */")
    ended = harness(*STEP, "exact_cover", "no_region")
    assert ended.code == 1
    assert ended.out == "bad exact_cover: FAIL\n    exact_cover: rule 1\n"


def test_a_step_in_a_plain_folder(
    harness: Harness, guests: Guests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy_fake(tmp_path / "plain"))
    assert harness(*STEP, "exact_cover").code == 0


def test_a_step_without_a_checkout(
    harness: Harness, guests: Guests, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit that git has chosen is judged, not the files."""
    monkeypatch.chdir(tree)
    git(tree, "bisect", "start", "--no-checkout", "main", "main~5")
    assert harness(*STEP, "exact_cover").code == 1
    git(tree, "update-ref", "BISECT_HEAD", "v0")
    assert harness(*STEP, "exact_cover").code == 0
