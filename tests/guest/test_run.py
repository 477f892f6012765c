# SPDX-License-Identifier: GPL-2.0-or-later
"""The installed command, from the command line to the verdict, as a user starts it."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.contract.observation_parser import parse_observation
from harness.runs.prepare import Host

pytestmark = [pytest.mark.guest, pytest.mark.usefixtures("harness_host")]

# Against hanging only.
SECONDS = 240.0

RESULT_KEYS = {
    *("scenario", "kernel", "policy", "accel", "verdict", "owners", "findings", "timings"),
    "evidence",
}


@dataclass(frozen=True)
class Run:
    """A finished `harness run` with the files that it left."""

    code: int
    out: str
    err: str
    results: list[dict[str, Any]]
    evidence: Path
    temporary: Path

    @property
    def result(self) -> dict[str, Any]:
        (result,) = self.results
        return result

    @property
    def folder(self) -> Path:
        (folder,) = self.evidence.iterdir()
        return folder


@pytest.fixture(scope="module")
def command(request: pytest.FixtureRequest) -> Callable[..., list[str]]:
    """The words that start the harness, with the accelerator and QEMU that pytest was given."""
    program = Path(sys.executable).with_name("harness")
    if not program.exists():
        pytest.skip("the harness is not installed beside this Python")
    given = [("--accel", request.config.getoption("accel"))]
    if request.config.getoption("qemu"):
        given.append(("--qemu", request.config.getoption("qemu")))

    def words(name: str, *more: object) -> list[str]:
        options = [word for option in given for word in option]
        return [str(program), name, *map(str, more), *options]

    return words


def run_scenario(words: list[str], root: Path) -> Run:
    (root / "tmp").mkdir()
    done = subprocess.run(
        [*words, "--json", str(root / "results.json"), "--evidence", str(root / "evidence")],
        env=os.environ | {"TMPDIR": str(root / "tmp")},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    results = json.loads((root / "results.json").read_text())
    return Run(done.returncode, done.stdout, done.stderr, results, root / "evidence", root / "tmp")


@pytest.fixture(scope="module")
def passed(command: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_scenario(command("run", "exact_cover"), tmp_path_factory.mktemp("passed"))


@pytest.fixture(scope="module")
def failed(command: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_scenario(command("run", "partial_region"), tmp_path_factory.mktemp("failed"))


def test_a_region_over_the_whole_range_passes(passed: Run) -> None:
    assert passed.code == 0, passed.out + passed.err
    assert passed.out.startswith("PASS exact_cover on debian:7.2 (7.2.")
    assert re.search(r"^ +sr0 +110000000-18fffffff +dax_cxl/system_ram +by ", passed.out, re.M)
    assert "evidence:" not in passed.out, "of interest only when something went wrong"
    assert list(passed.temporary.iterdir()) == []


def test_a_module_brings_its_softdeps_along(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Before Linux 7.1, dax_hmem names cxl_acpi as a softdep, without which no region comes."""
    load = ("--load", "cxl_pci,cxl_mem,dax_hmem,kmem,dax_cxl")
    done = run_scenario(command("run", "exact_cover", "--kernel", "debian:6.12", *load), tmp_path)
    assert done.code == 0, done.out + done.err
    assert "cxl_acpi " in (done.folder / "observation" / "modules").read_text()
    assert "dax_cxl/system_ram" in done.out


def test_the_result_file(passed: Run) -> None:
    result = passed.result
    assert set(result) >= RESULT_KEYS
    assert set(result["kernel"]) == {"spec", "release", "config_sha256"}
    assert result["scenario"] == "exact_cover"
    assert result["kernel"]["spec"] == "debian:7.2"
    assert result["kernel"]["release"].startswith("7.2.")
    assert result["policy"] == "per_range"
    assert result["accel"] in ("kvm", "tcg")
    assert result["verdict"] == "PASS"
    assert result["findings"] == []
    (owner,) = result["owners"]
    ownership = {"owner": "dax_cxl", "use": "system_ram"}
    assert (owner["name"], owner["range"]) == ("sr0", "110000000-18fffffff")
    assert owner["expected"] == {**ownership, "node": 1}
    (piece,) = owner["observed"]
    assert set(piece) == {"range", "owner", "use", "via", "node"}
    assert {name: piece[name] for name in ownership} == ownership
    assert piece["range"] == owner["range"]
    timings = result["timings"]
    assert {"prepare", "boot", "login", "load", "observe", "total"} <= set(timings)
    assert all(0 <= seconds <= timings["total"] for seconds in timings.values())
    assert Path(result["evidence"]) == passed.folder


def test_the_evidence(passed: Run) -> None:
    folder = passed.folder
    assert re.fullmatch(
        rf"\d{{8}}-\d{{6}}-exact_cover-{re.escape(passed.result['kernel']['release'])}-[0-9a-f]+",
        folder.name,
    )
    assert json.loads((folder / "verdict.json").read_text()) == passed.result
    assert not list(folder.rglob("*.part")), "a file that was not written to its end"
    kernel = json.loads((folder / "kernel.json").read_text())
    assert kernel["release"] == passed.result["kernel"]["release"]
    config = Path(kernel["config"]).read_bytes()
    assert hashlib.sha256(config).hexdigest() == passed.result["kernel"]["config_sha256"]
    argv = shlex.split((folder / "qemu.argv").read_text().replace("\\\n", " "))
    assert argv[argv.index("-append") + 1] == kernel["command_line"]
    assert argv[argv.index("-kernel") + 1] == kernel["image"]
    assert argv[0] == kernel["qemu"]["path"]
    settings = json.loads((folder / "firmware.json").read_text())
    kinds = [one["component"]["kind"] for one in settings]
    assert sorted(kinds) == ["endpoint", "host_bridge"]
    serial = (folder / "serial.log").read_text(errors="replace")
    assert "Linux version" in serial
    assert kernel["command_line"] in serial
    assert (folder / "qemu.log").is_file()
    sections = {path.name: path.read_text() for path in (folder / "observation").iterdir()}
    observation = parse_observation(sections)
    assert observation.release == kernel["release"]
    assert [str(one.range) for one in observation.iomem.named("CXL Window 0")] == [
        "110000000-18fffffff"
    ]


def test_a_region_over_a_part_of_the_range_fails_in_the_known_way(failed: Run) -> None:
    assert failed.code == 1, failed.out + failed.err
    assert failed.out.startswith("FAIL partial_region on debian:7.2 (7.2.")
    assert "  known issue:\n" in failed.out
    assert "EBUSY" in failed.out
    assert f"  evidence: {failed.folder}" in failed.out
    assert failed.result["verdict"] == "FAIL"
    assert failed.result["findings"]
    for finding in failed.result["findings"]:
        assert set(finding) >= {"rule", "range", "text"}
    stranded = [one for one in failed.result["findings"] if one["rule"] == "1"]
    assert [one["range"] for one in stranded] == ["110000000-18fffffff"]
    (owner,) = failed.result["owners"]
    assert [piece["owner"] for piece in owner["observed"]] == ["nobody"]
    assert json.loads((failed.folder / "verdict.json").read_text()) == failed.result


# --- harness boot --------------------------------------------------------------------------------


class Terminal:
    """The other side of a terminal on which a program runs."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._near, self._far = pty.openpty()
        self.before = termios.tcgetattr(self._far)
        self.seen = ""
        self.child = subprocess.Popen(
            argv, stdin=self._far, stdout=self._far, stderr=self._far, start_new_session=True
        )

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self._near)
        os.close(self._far)

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._far)

    def type(self, text: str) -> None:
        os.write(self._near, text.encode())

    def await_text(self, pattern: str) -> str:
        """What came up to the end of the pattern, which is then seen no more."""
        end = time.monotonic() + SECONDS
        while (match := re.search(pattern, self.seen)) is None:
            assert self.child.poll() is None, self.seen
            self._read(end, f"{pattern!r} never came: {self.seen[-2000:]}")
        text, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return text

    def await_end(self) -> int:
        end = time.monotonic() + SECONDS
        while self.child.poll() is None:
            # What nobody reads makes the program wait.
            self._read(end, f"it never ended: {self.seen[-2000:]}")
        return self.child.wait()

    def _read(self, end: float, complaint: str) -> None:
        assert time.monotonic() < end, complaint
        if select.select([self._near], [], [], 0.05)[0]:
            self.seen += os.read(self._near, 1 << 16).decode(errors="replace")


@pytest.fixture
def terminal() -> Iterator[Callable[[Sequence[str]], Terminal]]:
    opened: list[Terminal] = []

    def start(argv: Sequence[str]) -> Terminal:
        opened.append(Terminal(argv))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


PROMPT = r"[/~] # "


def test_a_shell_in_the_machine_of_a_scenario(
    command: Callable[..., list[str]], terminal: Callable[[Sequence[str]], Terminal]
) -> None:
    screen = terminal(command("boot", "exact_cover"))
    start = screen.await_text(PROMPT)
    assert "cxl_acpi cxl_pci cxl_mem dax_hmem kmem dax_cxl" in start, "what the scenario loads"
    screen.type("cat /proc/cmdline\r")
    assert "memmap=0x80000000%0x110000000+0xefffffff" in screen.await_text(PROMPT)
    screen.type("modprobe -a cxl_acpi cxl_pci cxl_mem; ls -d /sys/bus/cxl/devices/region*\r")
    assert "devices/region0\r" in screen.await_text(PROMPT), "the decoders are committed"
    screen.type("poweroff -f\r")
    assert screen.await_end() == 0
    assert screen.modes() == screen.before, "the terminal is left as it was found"


def test_a_stopped_boot_leaves_the_terminal_as_it_was(
    command: Callable[..., list[str]], terminal: Callable[[Sequence[str]], Terminal]
) -> None:
    screen = terminal(command("boot", "one_window"))
    screen.await_text("Linux version")
    assert screen.modes() != screen.before, "QEMU has not taken the terminal"
    screen.child.send_signal(signal.SIGTERM)
    assert screen.await_end() == 128 + signal.SIGTERM
    assert screen.modes() == screen.before


def test_the_printed_command_starts_when_it_is_pasted(
    command: Callable[..., list[str]], harness_host: Host
) -> None:
    printed = subprocess.run(
        command("boot", "--print", "one_window"), capture_output=True, text=True, timeout=SECONDS
    )
    assert printed.returncode == 0, printed.stderr
    (line,) = printed.stdout.splitlines()
    assert line.startswith(str(harness_host.qemu.path))
    assert "cxl-type3" in line
    with subprocess.Popen(
        ["sh", "-c", f"exec timeout 90 {line}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as machine:
        assert machine.stdout is not None
        said = []
        for text in machine.stdout:
            said.append(text)
            if "Linux version" in text:
                break
        machine.terminate()
        machine.stdout.close()
    assert "Linux version" in "".join(said[-1:]), "".join(said)
