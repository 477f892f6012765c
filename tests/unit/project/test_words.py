# SPDX-License-Identifier: GPL-2.0-or-later
"""Plain English in documentation, docstrings, comments, messages and help texts.

Write as in the kernel's Documentation/driver-api/cxl: the standard word, with a subject and a verb.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import click

from harness.cli.main import main
from harness.core.paths import PROJECT

# Not yet: texts of tests, apart from scenarios and known issues.
CHECKED = (
    *(
        "README.md",
        "SECURITY.md",
        ".ci",
        "ci",
        "docs",
        "harness",
        "kernel_configs",
        "qemu_profiles",
    ),
    *("tests/scenarios", "tests/known_issues.yaml", "tests/qemu_quirks.yaml"),
    "tests/unit/plugins",
)
# The owner of scenario files and result.json, and its CSS class.
OWNER = re.compile(r"owner: nobody|\"nobody\b|\.as-(?:line-|owner\.as-)?nobody")
FORBIDDEN = {
    "calque": r"(?-i:is none)\b|stands? twice|\bbeside\b|held against|otherwise than|any more\b"
    r"|\bat once\b|\bin turn\b|\ball that\b|\bbe it\b|at the same words?",
    "no subject": r"\b(?:no|some|any)body\b|\bwhoever\b|\bwho (?:asks|asked|has|may|reads|waits)\b",
    "personification": r"\b(?:kernel|guest|harness|QEMU|run|program|file|worker|it) (?:says?|tells?"
    r"|hears?|believes?|dies|lives|knows|speaks)\b|\bis (?:asked|believed|told)\b",
    "private word": r"\bdoors?\b|\bstrangers?\b|\bcomplaints?\b|\bpatience\b|\bwords of\b"
    r"|\bsign of life\b|\bcombinations?\b|\bthe same twice\b",
}
RIDDLE = re.compile(r"(?:What|Who|Whose|Whether|Why|How)\b(?![^\n]*\?)")
PATTERNS = {kind: re.compile(text, re.I) for kind, text in FORBIDDEN.items()}


def paths(names: tuple[str, ...] = CHECKED) -> Iterator[Path]:
    """Yield the checked files; of folders all files."""
    for name in names:
        path = PROJECT / name
        files = [path] if path.is_file() else path.rglob("*")
        yield from (file for file in files if file.is_file() and "__pycache__" not in file.parts)


def kind_of(path: Path) -> str:
    """Return `.md`, `.py`, or `.txt` for files that are checked line by line."""
    if path.suffix in (".md", ".py"):
        return path.suffix
    return ".py" if path.read_text().startswith("#!/usr/bin/env python3") else ".txt"


def texts_of(text: str, kind: str) -> Iterator[tuple[int, str, bool]]:
    """Yield line, text, and True for a headline or docstring, of everything written for people."""
    if kind == ".md":
        code = False
        for number, line in enumerate(text.splitlines(), 1):
            code ^= line.startswith("```")
            if not code and not line.startswith("    "):
                prose = re.sub(r"`[^`]*`|\]\([^)]*\)|<!--.*?-->", "", line)
                yield number, prose.lstrip("# "), line.startswith("#")
    elif kind == ".py":
        yield from python_texts(text)
    else:
        for number, line in enumerate(text.splitlines(), 1):
            yield number, OWNER.sub("", line), False


def python_texts(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yield docstrings, strings with a space, and comments of a module."""
    tree = ast.parse(text)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented)
        and ast.get_docstring(node)
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for offset, line in enumerate(node.value.splitlines()):
                yield node.lineno + offset, line, not offset and id(node) in docstrings
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string, False


def problems(text: str, kind: str) -> list[str]:
    """Return `LINE: KIND: WORDS` for every offender in a file."""
    found = []
    for number, line, is_headline in texts_of(text, kind):
        if is_headline and RIDDLE.match(line):
            found.append(f"{number}: riddle: {line.split()[0]}")
        for reason, pattern in PATTERNS.items():
            found += [f"{number}: {reason}: {match[0]}" for match in pattern.finditer(line)]
    return found


def test_texts_are_plain_english() -> None:
    offenders = [
        f"{path.relative_to(PROJECT)}:{problem}"
        for path in sorted(set(paths()))
        for problem in problems(path.read_text(), kind_of(path))
    ]
    assert offenders == []


def test_help_texts_are_plain_english() -> None:
    offenders = []
    group = click.Context(main, info_name="harness", **main.context_settings)
    for name, command in main.commands.items():
        text = command.get_help(click.Context(command, group, name))
        offenders += [f"{name} --help:{problem}" for problem in problems(text, ".md")]
    assert offenders == []


def test_offenders_of_every_kind_are_listed() -> None:
    python = '"""What a worker says."""\n# nobody asks\nerror("it stands twice")\nname = "beside"\n'
    assert problems(python, ".py") == [
        "1: riddle: What",
        "1: personification: worker says",
        "3: calque: stands twice",
        "2: no subject: nobody",
    ]
    markdown = "# Why it fails\nA file beside `nobody`.\n```\nnobody\n```\n## What is next?\n"
    assert problems(markdown, ".md") == ["1: riddle: Why", "2: calque: beside"]
    assert problems("summary: a range that is none\n", ".txt") == ["1: calque: is none"]
