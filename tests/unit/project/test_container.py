# SPDX-License-Identifier: GPL-2.0-or-later
"""ci/container without podman: its requests to podman and avocado, and its messages."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest
from avocado_fixtures import plugin_environment

from harness.core.errors import UsageError
from harness.core.paths import PROJECT

SCRIPT = PROJECT / "ci" / "container"
RECIPE = PROJECT / "ci" / "Containerfile"


@pytest.fixture
def script() -> Any:
    """Import the script as a module."""
    loader = SourceFileLoader("ci_container", str(SCRIPT))
    spec = importlib.util.spec_from_loader("ci_container", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def podman(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A podman that prints its arguments, one on each line."""
    program = tmp_path / "programs" / "podman"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(script, "_HYBRID", tmp_path / "none")
    (tmp_path / "job").mkdir()
    return script.Podman(tmp_path / "job")


def test_without_podman_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "ownership:exact_cover"],
        env={
            **plugin_environment(tmp_path),
            "PATH": str(tmp_path / "bin"),
            "HARNESS_STORE": str(tmp_path / "store"),
            "TMPDIR": str(tmp_path / "tmp"),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "ci/container: the program podman is not installed\n  hint: install podman 3.0 or later\n"
    )
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("path", [SCRIPT, RECIPE], ids=lambda path: path.name)
def test_no_host_is_named(path: Path) -> None:
    assert re.findall(r"://\w|\b[\w-]+\.(?:org|com|net|io|dev)\b", path.read_text()) == []


@pytest.mark.parametrize("whole", [True, False])
def test_options_of_containers(
    script: Any, podman: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: bool
) -> None:
    monkeypatch.setenv("HARNESS_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("HARNESS_QEMU", str(tmp_path / "own/bin/qemu"))
    job = podman.conf.parent
    said = tomllib.loads(script.containers_conf(job, whole))
    given = said["containers"]
    mounted = dict(one.split(":", 1) for one in given["volumes"])
    assert mounted[str(tmp_path / "store")] == f"{tmp_path / 'store'}:rw"
    # What a test writes, it writes to the store and to its own folder.
    assert [path for path, how in mounted.items() if how.endswith(":rw")] == [
        str(tmp_path / "store")
    ]
    assert {str(job), str(PROJECT)} <= mounted.keys()
    assert ("/usr" in mounted) is (str(tmp_path / "own") in mounted) is whole
    assert (f"HARNESS_QEMU={tmp_path}/own/bin/qemu" in given["env"]) is whole
    assert given["netns"] == "none"
    assert f"HARNESS_STORE={tmp_path / 'store'}" in given["env"]
    assert [one.split("=")[0] for one in given["default_ulimits"]] == ["nofile", "nproc"]
    assert "engine" not in said


def test_a_path_that_podman_cannot_be_told_is_refused(
    script: Any, podman: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_STORE", '/a"b')
    with pytest.raises(UsageError, match="podman cannot be told of"):
        script.containers_conf(podman.conf.parent, False)


def test_both_versions_of_control_groups_want_runc(
    script: Any, podman: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hybrid = tmp_path / "cgroup.controllers"
    monkeypatch.setattr(script, "_HYBRID", hybrid)
    hybrid.write_text("\n")
    assert "runc" not in script.containers_conf(podman.conf.parent, False)
    hybrid.write_text("hugetlb\n")
    monkeypatch.setenv("PATH", str(podman.program.parent))
    with pytest.raises(UsageError, match="the program runc is not installed"):
        script.containers_conf(podman.conf.parent, False)
    shutil.copy(podman.program, podman.program.with_name("runc"))
    said = tomllib.loads(script.containers_conf(podman.conf.parent, False))
    assert said["engine"] == {"runtime": "runc"}


def test_the_spawner_finds_its_eggs_and_hears_running(script: Any, podman: Any) -> None:
    from avocado.plugins.spawners.podman import PodmanSpawner

    job = podman.conf.parent
    conf = script.avocado_conf(podman, job, "an/image")
    config = {
        "datadir.paths.cache_dirs": [str(job)],
        "spawner.podman.avocado_spawner_egg": f"file://{job}/avocado.egg",
        "spawner.podman.bin": re.findall("^bin = (.*)$", conf, re.M)[0],
        "spawner.podman.image": "an/image",
    }
    assert f"cache_dirs = ['{job}']" in conf
    eggs = PodmanSpawner(config).get_eggs_paths(3, 13)
    assert [Path(to).name for _, to in eggs] == ["setuptools-59.2.0-py3.13.egg", "avocado.egg"]
    for egg, _ in eggs:
        assert Path(egg).is_relative_to(job)
        answer = subprocess.run(
            [sys.executable, "-c", "import sys; print(sys.path[0])"],
            env={"PYTHONPATH": egg, "PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert answer.stdout == f"{PROJECT}\n"
    words = [config["spawner.podman.bin"], "ps", "--format={{.State}}", "--filter=id=a b"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert said == "ps\n--format={{.ListContainer.State}}\n--filter=id=a b\n"


@pytest.mark.parametrize(
    ("status", "app", "stopped", "says"),
    [
        (137, "task-run", False, True),
        (0, "task-run", False, False),
        (137, "task-run", True, False),
        (137, "-c", False, False),
    ],
)
def test_a_lost_container_ends_its_test_but_one_that_avocado_stopped_does_not(
    script: Any,
    podman: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    app: str,
    stopped: bool,
    says: bool,
) -> None:
    runner = ["python3", "-m", "x", app, "-i", "1-a b", "-j", "j1", "-s", "/tmp/.socket"]
    inspected = {
        "State": {"ExitCode": status},
        "Config": {"CreateCommand": ["podman", "create", f"--entrypoint={json.dumps(runner)}"]},
        "Mounts": [
            {"Source": "s", "Destination": "/tmp/.socket"},
            {"Source": "/", "Destination": "/a"},
        ],
    }

    class Fake:
        job = podman.job

        def ended(self) -> set[str]:
            return {"c1"}

        def __call__(self, *words: str) -> str:
            assert words == ("inspect", "c1")
            return json.dumps([inspected])

    if stopped:
        subprocess.run([str(podman.wrapper), "kill", "--signal=TERM", "c1"], check=True)
    monkeypatch.chdir(tmp_path)
    lost = script.Lost(Fake())
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        server.listen()
        server.setblocking(False)
        for _ in range(2):
            lost.look()
        if not says:
            with pytest.raises(BlockingIOError):
                server.accept()
            return
        connection, _ = server.accept()
        with connection:
            (line,) = connection.recv(10000).splitlines()
        with pytest.raises(BlockingIOError):
            server.accept()
    message = json.loads(line)
    assert message["fail_reason"] == "INCONCLUSIVE: the container was lost (status 137)"
    assert {name: message[name] for name in ("id", "job_id", "status", "result")} == {
        "id": "1-a b", "job_id": "j1", "status": "finished", "result": "error",
    }  # fmt: skip


@pytest.mark.parametrize("alive", [True, False])
def test_leftovers_of_a_killed_job_are_removed_but_not_those_of_a_running_one(
    script: Any, podman: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    other = tmp_path / f"{script._PREFIX}1"
    other.mkdir()
    inspected = json.dumps([{"Mounts": [{"Source": "/a"}, {"Source": str(other)}]}])
    said = f"""#!/bin/sh
case "$*" in
    ps*label=*) echo c1 ;;
    inspect*) echo '{inspected}' ;;
    rm*) echo "$@" >{tmp_path}/removed ;;
esac
"""
    podman.program.write_text(said)
    with (other / script._ALIVE).open("w") as file:
        if alive:
            fcntl.flock(file, fcntl.LOCK_EX)
        podman.remove()
    assert other.exists() is alive
    assert (tmp_path / "removed").exists() is not alive
