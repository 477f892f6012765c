# SPDX-License-Identifier: GPL-2.0-or-later
"""Each error of the harness has a useful hint. `python test_error_messages.py` lists them."""

from __future__ import annotations

import ast
import inspect
import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.core import errors
from harness.core.deadline import Deadline
from harness.core.errors import HarnessError
from harness.core.paths import PROJECT

_MARK = "…"
GUESTS_LOG = inspect.signature(Deadline).parameters["hint"].default


@dataclass(frozen=True)
class Message:
    """An error in the source.

    Attributes:
        place: file and line.
        text: the message, with … for inserted values; None where it is not in the source.
        hint: likewise; None without a hint.
    """

    place: str
    text: str | None
    hint: str | None


def error_classes() -> set[str]:
    """Return the names of all error classes, those of single modules too."""
    names = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, HarnessError)
    }
    for path in sorted((PROJECT / "harness").rglob("*.py")):
        names.update(
            node.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ClassDef)
            and names.intersection(ast.unparse(base) for base in node.bases)
        )
    return names


def text_of(node: ast.expr | None, names: dict[str, ast.expr]) -> str | None:
    """Return the text of an expression, as far as the source has it."""
    if isinstance(node, ast.Name):
        return text_of(names.get(node.id), names) if node.id in names else _MARK
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else _MARK for part in node.values
        )
    if isinstance(node, ast.BinOp):
        return f"{text_of(node.left, names)}{text_of(node.right, names)}"
    if isinstance(node, ast.IfExp):
        return f"{text_of(node.body, names)} | {text_of(node.orelse, names)}"
    return None if node is None else _MARK


def messages_in(path: Path, classes: set[str]) -> Iterator[Message]:
    tree = ast.parse(path.read_text())
    assigned = [
        (target.id, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    # A name with several assignments is not followed.
    counts = Counter(name for name, _ in assigned)
    names = {name: value for name, value in assigned if counts[name] == 1}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func).rpartition(".")[2]
        arguments = {keyword.arg: keyword.value for keyword in node.keywords}
        place = f"{path.relative_to(PROJECT)}:{node.lineno}"
        first = node.args[0] if node.args else None
        if isinstance(first, ast.Name) and first.id == "error" and len(node.args) == 1:
            continue  # it carries another error, with its hint
        if called == "error" and isinstance(first, ast.Constant) and "%" in str(first.value):
            continue  # a line for a logger
        if called in classes:
            text = text_of(node.args[0], names) if node.args else None
            yield Message(place, text, text_of(arguments.get("hint"), names))
        elif called == "error" and len(node.args) >= 2:
            yield Message(
                place, text_of(node.args[1], names), text_of(arguments.get("hint"), names)
            )
        elif called == "Deadline" and len(node.args) >= 2:
            hint = arguments.get("hint", node.args[2] if len(node.args) > 2 else None)
            what = text_of(node.args[1], names)
            # Without a hint, a deadline has the default of its class.
            yield Message(
                place,
                f"timed out after {_MARK} s waiting for {what}",
                GUESTS_LOG if hint is None else text_of(hint, names),
            )


def all_messages() -> list[Message]:
    classes = error_classes()
    return [
        message
        for path in sorted((PROJECT / "harness").rglob("*.py"))
        if path.name != "errors.py"
        for message in messages_in(path, classes)
    ]


def problem_of(message: Message) -> str | None:
    """Return the problem of a message, None without one."""
    hint, text = message.hint, message.text or _MARK
    if hint is None or not hint.strip():
        return "it has no hint"
    if len(hint) < 12 and _MARK not in hint:
        return "its hint is too short"
    if text.endswith(".") and not text.endswith(("..", f"{_MARK}.")):
        return "a message ends without a period"
    if hint.strip() == text.strip() and hint != _MARK:
        return "its hint repeats the message"
    if "error occurred" in text or text.strip().lower() in ("error", "failed", "invalid"):
        return "it does not name the problem"
    return None


# Modules that wait for guests with evidence, which the default hint of a Deadline is about.
OF_A_GUEST = ("harness/guest/", "harness/runs/boot.py", "harness/runs/hang_diagnosis.py")


def test_only_waits_for_guests_have_the_hint_for_guests() -> None:
    bad = [
        f"{message.place}: {message.text}"
        for message in all_messages()
        if message.hint == GUESTS_LOG and not message.place.startswith(OF_A_GUEST)
    ]
    assert bad == []


def test_each_error_has_a_hint() -> None:
    messages = all_messages()
    assert len(messages) > 150, "the scan finds them"
    bad = [
        f"{message.place}: {problem}: {message.text!r}"
        for message in messages
        if (problem := problem_of(message))
    ]
    assert bad == []


def test_an_error_is_pickled_with_its_attributes() -> None:
    """As it is between processes of pytest-xdist."""
    error = errors.GuestCrashedError(
        "text", hint="hint", trace=("line",), kind="hang", subject="kmem"
    )
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), vars(again), str(again)) == (type(error), vars(error), str(error))


def test_an_error_without_a_hint_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_error_messages.PROJECT", tmp_path)
    for source, expected in (
        ("raise UsageError('no file', hint='make one, or name another')", None),
        ("raise UsageError('no file')", "it has no hint"),
        ("raise UsageError('no file', hint='')", "it has no hint"),
        ("raise UsageError('no file', hint='fix it')", "its hint is too short"),
        ("raise UsageError('There is no file.', hint='make one, or name another')", "a message"),
        ("raise UsageError('no such file', hint='no such file')", "its hint repeats"),
        ("raise document.error('a.b', 'wrong', hint='  ')", "it has no hint"),
        ("raise document.error('a.b', f'{x} is wrong', hint=HINT)", None),
        ("Deadline(3, 'a thing')", None),
        ("Deadline(3, 'a thing', hint='')", "it has no hint"),
    ):
        path = tmp_path / "made_up.py"
        path.write_text(f"HINT = 'write it in another way'\n{source}\n")
        (message,) = messages_in(path, {"UsageError"})
        problem = problem_of(message)
        assert (problem or "").startswith(expected or "") and bool(problem) == bool(expected)


if __name__ == "__main__":
    for message in all_messages():
        print(f"{message.place}\n    {message.text}\n    hint: {message.hint}")
