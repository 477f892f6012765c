# SPDX-License-Identifier: GPL-2.0-or-later
"""The import rule: doors, reports, runs, the rooms (guest, machine, kernels), model, downwards."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.core.paths import PROJECT

PACKAGE = PROJECT / "harness"
DOORS = {"__main__", "cli", "avocado_plugin", "doctor"}
ROOMS = {"guest", "machine", "kernels"}
# Each layer with those that it may import, beside its own. Top-level modules that are no doors
# are "shared": they touch the world for everybody above the model.
MAY_IMPORT = {
    "doors": {"doors", "reports", "runs", *ROOMS, "model", "shared"},
    "reports": {"runs", *ROOMS, "model", "shared"},
    "runs": {*ROOMS, "model", "shared"},
    **{room: {"model", "shared"} for room in ROOMS},
    "shared": {"shared", "model"},
    "model": set(),
}
# The one shared module that values may need: what is wrong is said in the same words everywhere.
MODEL_EXCEPTION = "harness.core.errors"

CI = (".ci", "ci")
SOURCES = sorted(PACKAGE.rglob("*.py"))
TEXTS = sorted(
    path
    for folder in (*CI, "harness", "kernel_configs", "patches", "qemu_profiles", "tests")
    for path in (PROJECT / folder).rglob("*")
    if path.is_file() and path.suffix in (".py", ".sh", ".yaml", ".yml", ".j2")
)
SCRIPTS = sorted(path for folder in CI for path in (PROJECT / folder).iterdir() if path.is_file())


def name_of(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def layer_of(parts: tuple[str, ...]) -> str:
    """The layer of a module, by the parts of its name behind `harness`."""
    if not parts:
        return "shared"
    if parts[0] in MAY_IMPORT:
        return parts[0]
    return "doors" if parts[0] in DOORS or parts[0].startswith(("cli_", "pytest_")) else "shared"


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


def violations(text: str, parts: tuple[str, ...]) -> list[str]:
    """The imports of a module, `harness.PARTS`, that go up or sideways."""
    layer = layer_of(parts)
    found = []
    for line, name in imports_of(ast.parse(text), ("harness", *parts[:-1])):
        top, *below = name.split(".")
        if top != "harness":
            continue
        target = layer_of(tuple(below))
        allowed = target == layer or target in MAY_IMPORT[layer]
        if layer == "model" and target == "shared":
            allowed = name == MODEL_EXCEPTION or name.startswith(f"{MODEL_EXCEPTION}.")
        if not allowed:
            found.append(f"{line}: {layer} imports {name} of {target}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_down_only(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    assert violations(path.read_text(), parts) == []


@pytest.mark.parametrize(
    ("parts", "text", "count"),
    [
        (("model", "iomem"), "import re\nfrom harness.contract.dmesg import Record\n", 0),
        (("model", "iomem"), "from harness.core.errors import UsageError\n", 0),
        (("model", "iomem"), "from harness import deadline\n", 1),
        (("model", "iomem"), "def f():\n    import harness.core.process\n", 1),
        (("model", "iomem"), "from harness.guest.ssh import GuestShell\n", 1),
        (("guest", "ssh"), "from harness.machine.qemu import Qemu\n", 1),
        (("guest", "ssh"), "if TYPE_CHECKING:\n    from harness.kernels import image\n", 1),
        (
            ("guest", "ssh"),
            "from harness.kernels.kernel import Kernel\nimport harness.core.cache\n",
            0,
        ),
        (("guest", "ssh"), "from ..machine import qemu\n", 1),
        (("guest", "ssh"), "from .keys import RunKeys\n", 0),
        (("guest", "ssh"), "importlib.import_module('harness.machine.qemu')\n", 1),
        (("runs", "prepare"), "from harness.reports.terminal import headline\n", 1),
        (("runs", "prepare"), "from harness import guest, kernels, machine, model\n", 0),
        (("reports", "html"), "from harness.cli.main import main\n", 1),
        (("store",), "from harness.kernels.kernel import Kernel\nimport harness.core.paths\n", 0),
        (("store",), "from harness.kernels.debian.packages import fetch\n", 1),
        (("store",), "from harness.cli.doctor import diagnose\n", 1),
        (("cli_kernels",), "from harness.runs.prepare import this_host\n", 0),
        (("store",), "from harness.cli.kernels import register_kernel_commands\n", 1),
        (("cli",), "from harness.cli.doctor import diagnose\nimport harness.runs.prepare\n", 0),
    ],
)
def test_the_import_rule_sees_every_kind_of_import(
    parts: tuple[str, ...], text: str, count: int
) -> None:
    assert len(violations(text, parts)) == count


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=name_of)
def test_a_package_has_a_docstring_and_no_code(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


def test_every_folder_of_modules_is_a_package_with_a_layer() -> None:
    folders = {path.parent for path in SOURCES}
    assert {folder.relative_to(PACKAGE).parts[:1] for folder in folders} == {
        (),
        *((name,) for name in MAY_IMPORT if name not in ("doors", "shared")),
    }
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_modules_are_named_for_what_they_hold() -> None:
    stems = {path.stem for path in SOURCES} - {"__init__", "__main__"}
    assert not stems & {"utils", "util", "helpers", "misc", "common"}
    assert not stems & sys.stdlib_module_names


def test_nothing_is_imported_as_a_star() -> None:
    for path in SOURCES:
        names = [name for _, name in imports_of(ast.parse(path.read_text()), ())]
        assert not [name for name in names if name.endswith(".*")], name_of(path)


@pytest.mark.parametrize("path", sorted({*TEXTS, *SCRIPTS}), ids=name_of)
def test_every_file_names_its_licence_at_its_top(path: Path) -> None:
    head = path.read_text().splitlines()[:3]
    assert any("SPDX-License-Identifier: GPL-2.0-or-later" in line for line in head)


@pytest.mark.parametrize("path", [p for p in TEXTS if p.suffix == ".py"], ids=name_of)
def test_a_python_file_is_no_longer_than_600_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 600
