# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from harness.core.deadline import Deadline
from harness.core.paths import PROJECT
from harness.core.process import Completed, run

SETUP = PROJECT / "ci" / "setup"
SCRIPTS = (SETUP, PROJECT / ".ci" / "run")


def bash(*words: str, path: str = os.environ["PATH"]) -> Completed:
    deadline = Deadline(20, "a shell script", hint="start it by hand with bash -x")
    return run(["bash", *words], deadline=deadline, check=False, env={"PATH": path})


@pytest.fixture
def ready_checkout(tmp_path: Path) -> Path:
    """A checkout with a finished environment, and substitutes for the programs."""
    checkout = (tmp_path / "check out").resolve()
    (checkout / "ci").mkdir(parents=True)
    shutil.copy2(SETUP, checkout / "ci" / "setup")
    (checkout / "pyproject.toml").write_text("[project]\n")
    venv = checkout / ".venv"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.symlink_to(sys.executable)
    digest = hashlib.sha256((checkout / "pyproject.toml").read_bytes()).hexdigest()
    (venv / "made-by-ci-setup").write_text(f"{venv}\n{python.resolve()}\n{digest}")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("apt-get", "dpkg-deb", "flock", "git", "setpriv", "xz"):
        (programs / name).write_text("#!/bin/sh\nexit 9\n")
    (programs / "qemu-system-x86_64").write_text("#!/bin/sh\necho QEMU emulator version 10.0.0\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    # `run` itself starts everything through the real setpriv.
    (programs / "setpriv").unlink()
    (programs / "setpriv").symlink_to(str(shutil.which("setpriv")))
    return checkout


def in_checkout(checkout: Path, *words: str) -> Completed:
    programs = checkout.parent / "programs"
    return bash(str(checkout / "ci" / "setup"), *words, path=f"{programs}:/usr/bin:/bin")


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_a_script_is_executable_and_parses(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert bash("-n", str(script)) == Completed(("bash", "-n", str(script)), 0, "", "")


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_a_script_names_no_host(script: Path) -> None:
    names = re.findall(r"\w+://(?!/)\S*|\b[\w-]+\.(?:org|com|net|io|dev)\b", script.read_text())
    assert names == []


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    deadline = Deadline(60, "shellcheck", hint="start it by hand")
    assert run(["shellcheck", *SCRIPTS], deadline=deadline, check=False).stdout == ""


def test_on_a_ready_machine_the_command_runs_and_nothing_else_is_said(ready_checkout: Path) -> None:
    command = 'echo "$VIRTUAL_ENV"; type -P python; printf "<%s>" "$@"; exit 7'
    done = in_checkout(ready_checkout, "bash", "-c", command, "x", "a b", "*")
    venv = ready_checkout / ".venv"
    assert done.stdout == f"{venv}\n{venv}/bin/python\n<a b><*>"
    assert done.stderr == ""
    assert done.status == 7


def test_without_a_command_a_ready_machine_is_left_in_peace(ready_checkout: Path) -> None:
    done = in_checkout(ready_checkout)
    assert (done.status, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("command", "builds"),
    [
        ("pytest -k no_cxl_region", True),
        (".venv/bin/pytest", True),
        ("harness build build:debian:7.2", True),
        ("harness run x --kernel=build:/a", True),
        ("harness run x --kernel debian:7.2", False),
        ("harness run exact_cover no_cxl_region_cxl_first", True),
        ("harness boot mixed", True),
        ("harness matrix --shard 1/2", True),
        (f"avocado run {PROJECT}/ci/matrix.yaml", True),
        ("avocado run ownership:exact_cover", False),
        ("ci/bench edit --pairs 3", True),
        ("ci/bench toggle", True),
        ("ci/bench --pairs 3", False),
        ("ci/nightly --tree /linux", True),
        ("/opt/harness/ci/nightly --tree /linux", True),
        ("ci/bench_bisect", True),
        ("harness bisect --tree /linux --good v1 --bad v2 exact_cover", True),
        (".venv/bin/harness bisect-step exact_cover", True),
        ("harness report nightly.json", False),
        ("harness run exact_cover", False),
        ("harness list", False),
        ("", False),
    ],
)
def test_commands_that_build_kernels(command: str, builds: bool) -> None:
    function = re.search(r"^builds_kernels\(\) \{.*?^\}$", SETUP.read_text(), re.M | re.S)
    assert function is not None
    done = bash(
        "-c",
        f'set -eu\ncheckout={PROJECT}\n{function[0]}\nbuilds_kernels "$@"',
        "x",
        *command.split(),
    )
    assert (done.status == 0, done.stderr) == (builds, "")


def test_an_unknown_option_is_refused(ready_checkout: Path) -> None:
    done = in_checkout(ready_checkout, "--frobnicate")
    assert done.status == 2
    assert "--frobnicate" in done.stderr


def backports_source(file: Path, number: int) -> str:
    """Convert an entry of apt's sources with ci/setup."""
    function = re.search(r"^backports_entry\(\) \{.*?^\}$", SETUP.read_text(), re.M | re.S)
    assert function is not None
    script = f'codename=bookworm\n{function[0]}\nbackports_entry "$@"'
    done = bash("-c", script, "x", str(file), str(number), "mirror://here/debian/")
    assert done.stderr == ""
    return done.stdout


def test_the_backports_source_keeps_the_options_of_a_one_line_entry(tmp_path: Path) -> None:
    sources = tmp_path / "sources.list"
    sources.write_text(
        "# deb [no] such line\n"
        "deb [arch=amd64 signed-by=/k.gpg] mirror://here/debian bookworm main # [x]\n"
        "deb mirror://here/debian bookworm-updates main\n"
    )
    ending = "mirror://here/debian/ bookworm-backports main\n"
    assert backports_source(sources, 2) == f"deb [arch=amd64 signed-by=/k.gpg] {ending}"
    assert backports_source(sources, 3) == f"deb  {ending}"


def test_the_backports_source_keeps_the_options_of_a_stanza(tmp_path: Path) -> None:
    sources = tmp_path / "debian.sources"
    sources.write_text(
        "# only a comment\n\n"
        "Types: deb\nURIs: mirror://other/\nSuites: x\nComponents: main\nSigned-By: /no.gpg\n\n"
        "Types: deb deb-src\n# a comment\nuris: mirror://here/debian\n"
        "Suites: bookworm\n bookworm-updates\nSigned-By:\n -----BEGIN\n .\n abc\n"
        "Components: main\n contrib\nTrusted: yes\n"
    )
    assert backports_source(sources, 2) == (
        "Types: deb\nURIs: mirror://here/debian/\nSuites: bookworm-backports\nComponents: main\n"
        "Signed-By:\n -----BEGIN\n .\n abc\nTrusted: yes\n"
    )
