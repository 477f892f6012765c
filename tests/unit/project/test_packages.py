# SPDX-License-Identifier: GPL-2.0-or-later
"""The order of the packages, and rules that hold for every file. Each test lists all offenders."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.core.paths import PROJECT

PACKAGE = PROJECT / "harness"
IDEAS = {"core", "platform", "scenario", "contract"}
RUNS = {*IDEAS, "debian", "kernels", "machine", "guest", "runs"}
FEATURES = {*RUNS, "matrix", "bisect", "nightly", "fuzz", "bundle"}
# Each package with those that it may import.
MAY_IMPORT = {
    "core": {"core"},
    "platform": IDEAS,
    "scenario": IDEAS,
    "contract": IDEAS,
    "debian": {"core", "debian"},
    "kernels": {*IDEAS, "debian", "kernels"},
    "machine": {*IDEAS, "machine"},
    "guest": {*IDEAS, "debian", "guest"},
    "runs": RUNS,
    "matrix": {*RUNS, "matrix"},
    "bisect": {*RUNS, "bisect"},
    "nightly": {*RUNS, "matrix", "nightly"},
    "fuzz": {*RUNS, "fuzz"},
    "bundle": {*RUNS, "bundle"},
    "reports": {*RUNS, "reports"},
    "plugins": {*FEATURES, "reports", "plugins"},
    "cli": {*FEATURES, "reports", "plugins", "cli"},
    "__main__": {"cli"},
}

CI = (".ci", "ci")
SOURCES = sorted(PACKAGE.rglob("*.py"))
TEXTS = sorted(
    path
    for folder in (*CI, "harness", "kernel_configs", "patches", "qemu_profiles", "tests")
    for path in (PROJECT / folder).rglob("*")
    if path.is_file() and path.suffix in (".py", ".sh", ".yaml", ".yml", ".j2")
)
SCRIPTS = sorted(path for folder in CI for path in (PROJECT / folder).iterdir() if path.is_file())
MOST_LINES = 600


def name_of(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def module_of(path: Path) -> str:
    """The dotted name of a module below harness; an __init__.py has its package's."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def imports_of(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Line and full name of every import, also in functions and under TYPE_CHECKING.

    Args:
        tree: the module.
        package: the package that it is in, for relative imports.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *([node.module] if node.module else [])))
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield node.lineno, str(argument.value)


def violations(text: str, module: str) -> list[str]:
    """The imports of `harness.MODULE` that its package may not have."""
    package, *_ = module.split(".")
    found = []
    for line, name in imports_of(ast.parse(text), ("harness", *module.split(".")[:-1])):
        top, *below = name.split(".")
        if top == "harness" and below and below[0] not in MAY_IMPORT[package]:
            found.append(f"{module}:{line}: {package} imports {name}")
    return found


def test_packages_import_in_one_direction() -> None:
    assert {name.split(".")[0] for name in MODULES if name} == set(MAY_IMPORT)
    assert [
        one for name, path in MODULES.items() if name for one in violations(path.read_text(), name)
    ] == []


def test_modules_import_each_other_without_a_cycle() -> None:
    imported = {}
    for name, path in MODULES.items():
        package = ("harness", *name.split(".")[:-1])
        names = {
            one.removeprefix("harness.")
            for _, one in imports_of(ast.parse(path.read_text()), package)
        }
        imported[name] = {one if one in MODULES else one.rpartition(".")[0] for one in names} & set(
            MODULES
        ) - {name}
    assert tuple(graphlib.TopologicalSorter(imported).static_order())


@pytest.mark.parametrize(
    ("module", "text", "count"),
    [
        ("contract.iomem", "import re\nfrom harness.contract.dmesg import Record\n", 0),
        ("core.cache", "from harness.core.errors import UsageError\n", 0),
        ("core.cache", "from harness.platform import memory_range\n", 1),
        ("contract.iomem", "def f():\n    import harness.machine.qemu\n", 1),
        ("guest.ssh", "from harness.machine.qemu import Qemu\n", 1),
        ("guest.ssh", "if TYPE_CHECKING:\n    from harness.kernels import image\n", 1),
        ("guest.ssh", "from ..machine import qemu\n", 1),
        ("guest.ssh", "from .keys import RunKeys\n", 0),
        ("kernels.build.tree", "from ...machine import qemu\n", 1),
        ("guest.ssh", "importlib.import_module('harness.machine.qemu')\n", 1),
        ("runs.prepare", "from harness import guest, kernels, reports\n", 1),
        ("reports.html.page", "from harness.cli.main import main\n", 1),
    ],
)
def test_the_import_rule_sees_every_kind_of_import(module: str, text: str, count: int) -> None:
    assert len(violations(text, module)) == count


def test_packages_have_a_docstring_and_no_code() -> None:
    folders = {path.parent for path in SOURCES}
    assert [name_of(one) for one in folders if not (one / "__init__.py").exists()] == []
    trees = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("__init__.py")}
    offenders = [
        name_of(path)
        for path, tree in trees.items()
        if not ast.get_docstring(tree) or len(tree.body) != 1
    ]
    assert offenders == []


def test_modules_are_named_for_what_they_hold() -> None:
    stems = {path.stem for path in SOURCES} - {"__init__", "__main__"}
    assert not stems & {"utils", "util", "helpers", "misc", "common"}


def test_nothing_is_imported_as_a_star() -> None:
    stars = [
        name_of(path)
        for path in SOURCES
        for _, name in imports_of(ast.parse(path.read_text()), ())
        if name.endswith(".*")
    ]
    assert stars == []


def test_every_file_names_its_licence_at_its_top() -> None:
    def licensed(path: Path) -> bool:
        head = path.read_text().splitlines()[:3]
        return any("SPDX-License-Identifier: GPL-2.0-or-later" in line for line in head)

    assert [name_of(path) for path in {*TEXTS, *SCRIPTS} if not licensed(path)] == []


def test_python_files_are_short() -> None:
    lengths = {
        name_of(path): len(path.read_text().splitlines()) for path in TEXTS if path.suffix == ".py"
    }
    assert {name: count for name, count in lengths.items() if count > MOST_LINES} == {}
