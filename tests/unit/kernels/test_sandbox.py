# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.kernels.build import sandbox as module
from harness.kernels.build.sandbox import Places, Sandbox, build_environment, find_sandbox

HERE = Path("/store/source"), Path("/store/output"), Path("/store/ccache")


def pairs(argv: tuple[str, ...], option: str) -> list[tuple[str, str]]:
    return [
        (argv[at + 1], argv[at + 2]) for at, word in enumerate(argv[: argv.index("--")])
        if word == option
    ]  # fmt: skip


def test_the_command_line() -> None:
    source, output, ccache = HERE
    sandbox = Sandbox("bwrap")
    places = sandbox.places(*HERE)
    assert places == Places(*(Path(f"/harness/{name}") for name in ("source", "output", "ccache")))
    argv = sandbox.argv(
        ["make", "all"],
        env={"PATH": "/usr/bin"},
        read_only={source: places.source},
        writable={output: places.output, ccache: places.ccache},
        cwd=places.output,
    )
    assert argv[0] == "bwrap"
    assert {"--unshare-all", "--die-with-parent", "--clearenv"} <= set(argv)
    assert "--share-net" not in argv
    assert pairs(argv, "--ro-bind") == [("/store/source", "/harness/source")]
    assert pairs(argv, "--bind") == [
        ("/store/output", "/harness/output"),
        ("/store/ccache", "/harness/ccache"),
    ]
    assert pairs(argv, "--setenv") == [("PATH", "/usr/bin")]
    assert argv[-5:] == ("--chdir", "/harness/output", "--", "make", "all")


def test_without_bubblewrap_only_the_environment_is_confined() -> None:
    sandbox = Sandbox(None)
    assert sandbox.places(*HERE) == Places(*HERE)
    argv = sandbox.argv(
        ["make"], env={"A": "b"}, read_only={}, writable={}, cwd=Path("/store/output")
    )
    assert argv == ("env", "--ignore-environment", "--chdir=/store/output", "A=b", "make")


def test_no_secret_is_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy.invalid")
    monkeypatch.setenv("PATH", "/usr/bin")
    assert "secret" not in str(build_environment(Places(*HERE)))


def test_a_toolchain_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in ("toolchain/bin", "home/bin", "empty/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("toolchain/bin", "home/bin"):
        (tmp_path / folder / "gcc").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folders = ("toolchain/bin", "home/bin", "empty/bin")
    monkeypatch.setenv("PATH", ":".join(str(tmp_path / folder) for folder in folders))
    argv = Sandbox("bwrap").argv([], env={}, read_only={}, writable={}, cwd=Path("/"))
    seen = {one for one, _ in pairs(argv, "--ro-bind-try")}
    assert {str(tmp_path / "toolchain"), str(tmp_path / "home/bin")} <= seen
    assert not {str(tmp_path / "home"), str(tmp_path / "empty")} & seen


def test_no_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "shutil", SimpleNamespace(which=lambda name: None))
    found = find_sandbox()
    assert found.bwrap is None
    assert "not installed" in found.note
    assert "apt-get install bubblewrap" in found.note


def test_a_bubblewrap_that_is_forbidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(module, "shutil", SimpleNamespace(which=lambda name: str(fake)))
    found = find_sandbox()
    assert found.bwrap is None
    assert "No permissions to create namespace" in found.note
    assert "\n" not in found.note


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_the_inside_of_the_sandbox(tmp_path: Path) -> None:
    sandbox = find_sandbox()
    if sandbox.bwrap is None:
        pytest.skip(sandbox.note)
    (tmp_path / "source").mkdir()
    (tmp_path / "output").mkdir()
    (tmp_path / "source/x").touch()
    script = """
        ls /harness /root /home 2>&1
        touch /harness/source/y && echo wrote the source
        touch /harness/output/made
        cat /proc/net/dev | grep -c :
        env | cut -d= -f1 | sort | tr '\\n' ' '
    """
    places = sandbox.places(tmp_path / "source", tmp_path / "output", tmp_path)
    argv = sandbox.argv(
        ["sh", "-c", script],
        env={"PATH": "/usr/bin:/bin"},
        read_only={tmp_path / "source": places.source},
        writable={tmp_path / "output": places.output},
        cwd=places.output,
    )
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert "wrote the source" not in done.stdout
    assert (tmp_path / "output/made").exists()
    lines = done.stdout.splitlines()
    assert lines[-2] == "1"  # the loopback device alone
    assert lines[-1].split() == ["PATH", "PWD"]
    assert "cannot access '/home'" in done.stdout
