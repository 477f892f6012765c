# SPDX-License-Identifier: GPL-2.0-or-later
"""Links of the documentation, and the functions and tests that it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from harness.core.paths import PROJECT

PAGES = (PROJECT / "README.md", PROJECT / "SECURITY.md", *sorted((PROJECT / "docs").glob("*.md")))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_files_and_headings() -> None:
    broken = []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if "://" in link:
                continue
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.name}: {link}")
    assert broken == []


def test_tests_that_the_documentation_names_exist() -> None:
    files = {path.name: path.read_text() for path in (PROJECT / "tests").rglob("test_*.py")}
    missing = []
    for page in PAGES:
        file = ""
        for name, function in re.findall(r"(test_\w+\.py)?(?:::(test_\w+))?`", page.read_text()):
            file = name or file
            if (name or function) and f"def {function}" not in files.get(file, ""):
                missing.append(f"{page.name}: {name}::{function}")
    assert missing == []


def names_in(path: Path) -> set[str]:
    """Return the functions and classes of a module, methods as Class.method."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{one.name}" for one in node.body if hasattr(one, "name")}
    return names


def test_the_architecture_names_functions_that_exist() -> None:
    text = (PROJECT / "docs" / "architecture.md").read_text()
    missing = []
    for module, name in re.findall(r"`([a-z_]+(?:/[a-z_]+)+)\.([\w.]+)`", text):
        file = f"{module}.{name}"
        if (PROJECT / file).exists() or (PROJECT / "harness" / file).exists():
            continue
        path = PROJECT / "harness" / f"{module}.py"
        if not path.exists() or name not in names_in(path):
            missing.append(file)
    assert missing == []
