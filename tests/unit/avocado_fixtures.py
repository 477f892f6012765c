# SPDX-License-Identifier: GPL-2.0-or-later
"""Run avocado with the plugins of this checkout, independent of installed ones."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from harness.core.paths import PROJECT

FAKE_WORKER = Path(__file__).parent / "fake_worker.py"


def project() -> dict[str, Any]:
    """Read the project table of pyproject.toml."""
    found: dict[str, Any] = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    return found


def entry_points() -> dict[str, dict[str, str]]:
    """Return the groups of entry points in pyproject.toml."""
    return {"console_scripts": project()["scripts"], **project()["entry-points"]}


def plugin_environment(room: Path) -> dict[str, str]:
    """Make an environment in which the package seems to be installed from here."""
    folder = room / "installed" / "cxl_ownership_harness-0.1.0.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: cxl-ownership-harness\nVersion: 0.1.0\n"
        # Avocado starts only where pkg_resources finds all of them.
        + "".join(f"Requires-Dist: {one}\n" for one in project()["dependencies"])
    )
    lines: list[str] = []
    for group, entries in entry_points().items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
    paths = [str(folder.parent), str(PROJECT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        # No console script of another installation is in the way.
        "PATH": os.pathsep.join(
            path
            for path in os.environ["PATH"].split(os.pathsep)
            if not Path(path, "avocado-runner-ownership").exists()
        ),
    }


def python(room: Path, *words: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run a Python module in that environment."""
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=room,
        env=plugin_environment(room),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def fake_hosts(room: Path, **hosts: str) -> Path:
    """Write a hosts file with fake workers."""
    lines = ["hosts:"]
    for name, how in hosts.items():
        words = [sys.executable, str(FAKE_WORKER), name, *how.split()]
        lines.append(f"- {{name: {name}, guests: 1, command: {words}}}")
    path = room / "hosts.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path
