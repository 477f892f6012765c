# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from avocado.core.nrunner.runnable import Runnable
from avocado.core.resolver import ReferenceResolutionResult
from avocado_fixtures import entry_points, fake_hosts, plugin_environment, python
from cli_fixtures import FIT_QEMU

from harness.cli.matrix import exit_code
from harness.contract.result import Finding, RunResult, Verdict
from harness.core.errors import InconclusiveError, UnbuildableError, UsageError
from harness.core.paths import PROJECT
from harness.matrix.entry import Message, decode, encode, ending_of, ending_of_error
from harness.matrix.plan import Combination
from harness.plugins.avocado_plugin import OwnershipResolver, OwnershipRunner, runnable_of
from harness.runs.requirements import NotApplicableError
from harness.runs.session import Session
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario_files import scenario_names

MATRIX = "kernels: [debian:7.2]\nscenarios: [exact_cover, partial_region, no_cxl]\nbuild: false\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_STORE", str(tmp_path / "store"))
    return tmp_path


def result(verdict: Verdict, *, known: bool = False) -> RunResult:
    return RunResult(
        scenario="exact_cover",
        request=KernelRequest("debian:7.2"),
        policy="per_range",
        verdict=verdict,
        reason="" if verdict in (Verdict.PASS, Verdict.FAIL) else "the guest was lost",
        hint="look at serial.log",
        findings=(Finding("1", "sr0 is stranded"),) if verdict is Verdict.FAIL else (),
        known_issue="a race" if known else None,
    )


def resolve(reference: str, shard: str = "") -> tuple[object, list[Runnable], str]:
    found = OwnershipResolver({"ownership.shard": shard}).resolve(reference)
    return found.result, found.resolutions, str(found.info)


def test_every_entry_point_leads_to_something() -> None:
    for group, entries in entry_points().items():
        for value in entries.values():
            module, _, name = value.partition(":")
            found = importlib.import_module(module)
            assert not name or callable(getattr(found, name)), group


def test_loading_the_plugin_imports_nothing_that_runs_guests() -> None:
    # Avocado loads it for every command.
    loaded = "print(*(m for m in sys.modules if m[:7] == 'harness'))"
    text = f"import sys, harness.plugins.avocado_plugin; {loaded}"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {
        "harness",
        "harness.core",
        "harness.plugins",
        "harness.plugins.avocado_plugin",
        "harness.core.errors",
    }


def test_a_reference_names_scenarios_and_parameters() -> None:
    outcome, runnables, _ = resolve(
        "ownership:no_cxl_region_*?kernel=build:/linux@v7.1&config=debug,builtin&accel=tcg&repeat=2"
    )
    assert outcome is ReferenceResolutionResult.SUCCESS
    names = [name for name in scenario_names() if name.startswith("no_cxl_region_")]
    assert [one.kwargs["combination"]["scenario"] for one in runnables] == names
    one = runnables[0].kwargs["combination"]
    assert (one["kernel"], one["repeat"], one["accel"]) == ("build:/linux@v7.1", 2, "tcg")
    assert tuple(one["configs"]) == ("debug", "builtin")
    assert runnables[0].identifier.startswith(f"{names[0]} on build:/linux@v7.1 --config debug")


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("ownership:exact_cower", ("no scenario is called 'exact_cower'", "exact_cover")),
        ("ownership:exact_cover?kernle=x", ("unknown parameter 'kernle'", "did you mean kernel")),
        ("ownership:exact_cover?repeat=x", ("invalid matrix entry", "repeat")),
        ("ownership:exact_cover?policy=v4", ("invalid matrix entry", "policy")),
        ("m.yaml", ("m.yaml:2: scenarois", "did you mean scenarios")),
    ],
)
def test_a_wrong_reference_says_what_is_wrong(reference: str, words: tuple[str, ...]) -> None:
    Path("m.yaml").write_text("kernels: [debian:7.2]\nscenarois: [exact_cover]\n")
    outcome, _, info = resolve(reference)
    assert outcome is ReferenceResolutionResult.CORRUPT
    for word in words:
        assert word in info


def test_other_references_are_not_resolved() -> None:
    Path("other.yaml").write_text("- a: playbook\n")
    for reference in ("other.yaml", "absent.yaml", "/bin/true", "exact_cover"):
        assert resolve(reference)[0] is ReferenceResolutionResult.NOTFOUND


def test_a_matrix_is_a_reference_and_may_be_split() -> None:
    Path("m.yaml").write_text(MATRIX)
    names = [[one.identifier for one in resolve("m.yaml", part)[1]] for part in ("", "1/2", "2/2")]
    assert names[0] == [
        "exact_cover on debian:7.2 per_range",
        "partial_region on debian:7.2 per_range",
    ]
    assert names[1] + names[2] == names[0]


@pytest.mark.parametrize(
    ("verdict", "known", "status", "reason"),
    [
        (Verdict.PASS, False, "pass", ""),
        (Verdict.FAIL, False, "fail", "sr0 is stranded"),
        (Verdict.FAIL, True, "warn", "known issue: sr0 is stranded"),
        (
            Verdict.INCONCLUSIVE,
            False,
            "error",
            "INCONCLUSIVE: the guest was lost (hint: look at serial.log)",
        ),
        (
            Verdict.UNBUILDABLE,
            False,
            "error",
            "UNBUILDABLE: the guest was lost (hint: look at serial.log)",
        ),
    ],
)
def test_a_verdict_has_a_status(verdict: Verdict, known: bool, status: str, reason: str) -> None:
    ending = ending_of(result(verdict, known=known))
    assert (ending["result"], ending["fail_reason"]) == (status, reason)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (NotApplicableError("not for it", hint="h"), "skip", "NotApplicable"),
        (UnbuildableError("does not build", hint="h"), "error", "UNBUILDABLE"),
        (InconclusiveError("lost", hint="h"), "error", "INCONCLUSIVE"),
        (UsageError("no such kernel", hint="h"), "error", "INCONCLUSIVE"),
    ],
)
def test_an_error_has_a_status_and_says_why(error: UsageError, status: str, kind: str) -> None:
    ending = ending_of_error(error)
    assert (ending["result"], ending["fail_class"]) == (status, kind)
    assert error.message in ending["fail_reason"]


def run(
    monkeypatch: pytest.MonkeyPatch, ended: RunResult | Exception, output: Path | None
) -> list[Message]:
    monkeypatch.setattr("harness.matrix.entry.this_host", lambda *_: FakeHost())

    def fake(session: Session, _case: object, _request: object) -> RunResult:
        if isinstance(ended, Exception):
            raise ended
        folder = session.judging.evidence_root / "one"
        folder.mkdir(parents=True)
        (folder / "serial.log").write_bytes(b"\xff" * 300_000)
        (folder / "empty").touch()
        (folder / "verdict.json").write_text(json.dumps({"evidence": str(folder)}))
        return replace(ended, evidence=str(folder))

    monkeypatch.setattr(Session, "run", fake)
    runnable = runnable_of(Combination(scenario="exact_cover"))
    runnable.output_dir = str(output) if output else None
    messages: list[Message] = list(OwnershipRunner().run(runnable))
    return [decode(encode(one)) for one in messages]


class FakeHost:
    qemu = FIT_QEMU


def test_evidence_is_left_where_the_job_wants_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = run(monkeypatch, result(Verdict.PASS), here)
    assert (said[0]["status"], said[-1]["status"]) == ("started", "finished")
    assert (here / "evidence" / "one" / "serial.log").is_file()
    assert not [one for one in said if one.get("type") == "file"]
    (whiteboard,) = (one["log"] for one in said if one.get("type") == "whiteboard")
    assert json.loads(whiteboard)["evidence"] == str(here / "evidence" / "one")


def test_evidence_comes_with_the_messages_where_there_is_no_such_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = run(monkeypatch, result(Verdict.PASS), here / "on" / "another" / "host")
    files: dict[str, bytes] = {}
    for one in said:
        if one.get("type") == "file":
            files[one["path"]] = files.get(one["path"], b"") + one["log"]
    assert set(files) == {
        f"evidence/one/{name}" for name in ("serial.log", "empty", "verdict.json")
    }
    assert files["evidence/one/serial.log"] == b"\xff" * 300_000
    where = str(here / "on" / "another" / "host" / "evidence" / "one")
    assert json.loads(files["evidence/one/verdict.json"]) == {"evidence": where}
    (whiteboard,) = (one["log"] for one in said if one.get("type") == "whiteboard")
    assert json.loads(whiteboard)["evidence"] == where


def test_a_skip_and_a_defect_are_told_from_a_failure(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = run(monkeypatch, NotApplicableError("needs X", hint="h"), here)
    assert (said[-1]["result"], said[-1]["fail_reason"]) == ("skip", "not applicable: needs X")
    said = run(monkeypatch, RuntimeError("oops"), here)
    assert said[-1]["result"] == "error"
    assert "a bug in the harness" in said[-1]["fail_reason"]


@pytest.mark.parametrize(
    ("statuses", "missing", "code"),
    [
        (["PASS", "WARN", "SKIP"], 0, 0),
        (["PASS", "FAIL", "ERROR UNBUILDABLE"], 0, 1),
        (["ERROR INCONCLUSIVE", "ERROR UNBUILDABLE"], 0, 4),
        (["PASS", "ERROR INCONCLUSIVE"], 0, 3),
        (["PASS", "INTERRUPTED"], 0, 3),
        (["PASS"], 1, 3),
        ([], 1, 3),
    ],
)
def test_the_exit_code_is_that_of_harness_run(statuses: list[str], missing: int, code: int) -> None:
    tests = [dict(zip(("status", "fail_class"), one.split(), strict=False)) for one in statuses]
    assert exit_code(tests, missing) == code


def test_a_job_over_hosts_has_every_result_in_every_form(here: Path) -> None:
    Path("m.yaml").write_text("kernels: [debian:7.2]\nbuild: false\n")
    fake_hosts(here, a="", b="", c="refuse")
    done = python(
        here, "harness", "matrix", "m.yaml", "--hosts", "hosts.yaml", "--results", "res",
        "--json", "out.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "host c is no longer used: c: the connection was closed: ssh: connect to" in done.stderr
    assert "avocado." not in done.stderr
    tests = json.loads(Path("res/latest/results.json").read_text())
    assert tests["total"] == tests["pass"] > 40
    assert len({one["name"] for one in tests["tests"]}) == tests["total"]
    suite = ET.parse("res/latest/results.xml").getroot()
    assert int(suite.attrib["tests"]) == tests["total"]
    tap = Path("res/latest/results.tap").read_text()
    assert tap.count("\nok ") == tests["total"]
    assert len(list(Path("res/latest/test-results").glob("*/evidence/x"))) == tests["total"]


def test_a_shard_of_a_job_runs_its_part(here: Path) -> None:
    Path("m.yaml").write_text(MATRIX)
    fake_hosts(here, a="")
    listed = python(here, "harness", "matrix", "m.yaml", "--shard", "2/2", "--list")
    assert listed.stdout.splitlines() == ["partial_region on debian:7.2 per_range"]
    assert "left out: no_cxl on debian:7.2 per_range: the scenario needs" in listed.stderr
    done = python(
        here, "harness", "matrix", "m.yaml", "--hosts", "hosts.yaml", "--results", "res",
        "--shard", "2/2",
    )  # fmt: skip
    assert "1 entries" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("absent.yaml",), "cannot read the matrix"),
        (("m.yaml", "--shard", "3/2"), "'3/2' is not a shard"),
        (("m.yaml", "--hosts", "absent.yaml"), "cannot read the hosts file"),
        (("m.yaml", "--hosts", "hosts.yaml"), "no host can run guests"),
        (("m.yaml", "--json", "/no/such/folder/x"), "its folder does not exist"),
    ],
)
def test_wrong_use_is_one_message(here: Path, words: tuple[str, ...], message: str) -> None:
    Path("m.yaml").write_text(MATRIX)
    fake_hosts(here, a="no_qemu")
    done = python(here, "harness", "matrix", *words)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert message in done.stderr
    assert "hint: " in done.stderr


def test_avocado_lists_what_a_matrix_runs(here: Path) -> None:
    Path("m.yaml").write_text(MATRIX)
    done = python(here, "avocado", "list", "m.yaml", "ownership:mixed")
    assert done.stdout.splitlines() == [
        "ownership exact_cover on debian:7.2 per_range",
        "ownership partial_region on debian:7.2 per_range",
        "ownership mixed on debian:7.2 per_range",
    ]
    done = python(here, "avocado", "list", "ownership:exakt_cover")
    assert "no scenario is called 'exakt_cover'" in done.stdout + done.stderr


def test_a_job_that_is_terminated_ends_its_workers(here: Path) -> None:
    Path("m.yaml").write_text(MATRIX)
    fake_hosts(here, a="hang_all")
    with subprocess.Popen(
        [sys.executable, "-m", "harness", "matrix", "m.yaml", "--hosts", "hosts.yaml"],
        cwd=here,
        env=plugin_environment(here) | {"HARNESS_EVIDENCE": str(here / "e")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as job:
        assert job.stdout is not None
        while "STARTED" not in (line := job.stdout.readline()):
            assert line, "the job ended"
        os.kill(job.pid, signal.SIGTERM)
        rest = job.stdout.read()
        assert job.wait(30) != 0, rest
    left = subprocess.run(["pgrep", "-f", "fake_worker.py a hang_all"], capture_output=True)
    assert left.stdout == b""


def test_the_project_pins_what_avocado_needs() -> None:
    text = (PROJECT / "pyproject.toml").read_text()
    assert '"avocado-framework>=113.0,<114"' in text
    assert '"setuptools<82"' in text
