# SPDX-License-Identifier: GPL-2.0-or-later
"""What a bisection has found out so far, on disk, so that an interrupted one can go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from harness.bisect.search import Step
from harness.core.cache import Store
from harness.core.progress import Progress

FOLDER = "bisections"
# Raise it when steps of before would be misunderstood.
_FORM = 1


@dataclass(frozen=True)
class _Content:
    """What the file has."""

    form: int
    question: str
    steps: tuple[Step, ...]


def question_key(parts: Sequence[str]) -> str:
    """The name of a record: a hash of all that the outcome of its steps depends on."""
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:24]


class Record:
    """The steps of one bisection.

    Args:
        path: its file, which is written after each step, whole or not at all.
        question: what is looked for, for people who find the file.
        steps: of before an interruption.
    """

    def __init__(self, path: Path, question: str, steps: Sequence[Step] = ()) -> None:
        self._path = path
        self._question = question
        self._steps = {step.commit.name: step for step in steps}

    @property
    def count(self) -> int:
        """How many steps it has."""
        return len(self._steps)

    def find(self, name: str) -> Step | None:
        """The step of a commit, None when none was made."""
        return self._steps.get(name)

    def add(self, step: Step) -> None:
        """Keep a step."""
        self._steps[step.commit.name] = step
        content = _Content(_FORM, self._question, tuple(self._steps.values()))
        partial = self._path.with_suffix(".part")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1))
        partial.replace(self._path)

    def forget(self) -> None:
        """Drop all: asked again, the question is answered anew."""
        self._steps.clear()
        self._path.unlink(missing_ok=True)


def open_record(
    store: Store, key: str, question: str, progress: Progress, fresh: bool = False
) -> Record:
    """The record of a question, with the steps that an interrupted bisection has made.

    Args:
        store: where it is kept; hold a lock around its use.
        key: of `question_key`.
        question: for people.
        progress: hears of a damaged file, which is kept aside.
        fresh: drop what was found out before.

    Raises:
        UsageError: the store cannot be written.
    """
    path = store.folder(FOLDER) / f"{key}.json"
    record = Record(path, question)
    if fresh:
        record.forget()
        return record
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_Content)
        if content.form != _FORM:
            raise ValueError(f"it is of form {content.form}")
    except FileNotFoundError:
        return record
    except ValueError as error:  # msgspec's errors are among them
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        progress.note(
            f"what an interrupted bisection left cannot be read ({error}); it is kept as {aside}, "
            "and the bisection begins anew"
        )
        return record
    return Record(path, content.question, content.steps)
