# SPDX-License-Identifier: GPL-2.0-or-later
"""The pytest plugin: outcomes of verdicts, and progress of a session. No test runs a guest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from cli_fixtures import FIT_QEMU

from harness.contract.result import Finding, RunKernel, RunResult, Verdict
from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.progress import SilentProgress

# Both imported here: pytester unloads modules that were first imported in its tests.
from harness.runs import prepare, session
from harness.runs.requirements import NotApplicableError
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario_files import Case, scenario_names

pytest_plugins = ["pytester"]

THIS_HOST = prepare.this_host

SUITE = """
from harness.plugins.pytest_plugin import assert_owners

def test_ownership(scenario_result):
    assert_owners(scenario_result)
"""

# Replaces tests/known_issues.yaml, which changes.
ISSUES = """
import pytest
from harness.scenario.known_issues import load_known_issues

TEXT = '''
issues:
  - name: stranded
    rules: ["1"]
    seen: the lines that are seen in the kernel log
    why: a reason that is long enough to be a reason
'''

@pytest.fixture(scope="session")
def known_issues(tmp_path_factory):
    path = tmp_path_factory.mktemp("issues") / "known.yaml"
    path.write_text(TEXT)
    return load_known_issues(path)
"""


@pytest.fixture(autouse=True)
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite with the test of tests/guest/test_scenarios.py, on a machine that can run guests."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("HARNESS_QEMU", raising=False)
    monkeypatch.setenv("HARNESS_EVIDENCE", str(pytester.path / "evidence"))
    host = prepare.Host(FIT_QEMU, Store(pytester.path / "store"), SilentProgress(), "tcg")
    monkeypatch.setattr(prepare, "this_host", lambda *_arguments: host)
    pytester.makeconftest(ISSUES)
    pytester.makepyfile(SUITE)


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[Any, ...]]]:
    """Make every run end in a given way; returns the arguments of the runs."""

    def use(verdict: Verdict | BaseException, **more: Any) -> list[tuple[Any, ...]]:
        seen: list[tuple[Any, ...]] = []

        class Answering(session.Session):
            def __init__(self, host: Any, judging: Any, options: session.SessionOptions) -> None:
                super().__init__(host, judging, options)
                self.given = (judging, options.repeat, options.start)

            def run_all(
                self, cases: Iterable[Case], kernel: object
            ) -> Iterator[RunResult | session.Skipped]:
                cases = list(cases)
                for case in cases:
                    seen.append((case, kernel, *self.given, len(cases)))
                    if isinstance(verdict, NotApplicableError):
                        yield session.Skipped(case, verdict)
                    elif isinstance(verdict, BaseException):
                        raise verdict
                    else:
                        plain = RunResult(
                            scenario=case.name,
                            request=KernelRequest("debian:7.2"),
                            policy="per_range",
                            verdict=verdict,
                            kernel=RunKernel("7.2.0"),
                            evidence="the folder",
                        )
                        yield replace(plain, **more)

        monkeypatch.setattr(session, "Session", Answering)
        return seen

    return use


def outcomes(pytester: pytest.Pytester, *words: str) -> tuple[dict[str, int], str]:
    assert Path.cwd() == pytester.path
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rA", *words)
    return done.parseoutcomes(), done.stdout.str()


STRANDED = Finding("1", "stranded range")
ONE = ("-k", "exact_cover]")


def test_every_scenario_is_a_test(pytester: pytest.Pytester, answer: Any) -> None:
    seen = answer(Verdict.PASS)
    counts, text = outcomes(pytester, "-k", "not exact_cover]")
    names = [name for name in scenario_names() if name != "exact_cover"]
    assert counts == {"passed": len(names), "deselected": 1}
    assert [arguments[0].name for arguments in seen] == names
    assert all(f"test_ownership[{name}]" in text for name in names)


def test_without_qemu_tests_are_skipped_with_the_reason(
    pytester: pytest.Pytester, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = answer(Verdict.PASS)
    without_qemu(monkeypatch)
    counts, text = outcomes(pytester)
    assert counts == {"skipped": len(scenario_names())}
    assert "this machine cannot run guests" in text
    assert "there is no such program" in text
    assert "install one" in text
    assert seen == []


def test_in_ci_a_machine_without_qemu_is_an_error(
    pytester: pytest.Pytester, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = answer(Verdict.PASS)
    without_qemu(monkeypatch)
    monkeypatch.setenv("CI", "1")
    counts, text = outcomes(pytester)
    assert counts == {"errors": len(scenario_names())}
    assert "there is no such program" in text
    assert seen == []


def without_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_usage_error(*_arguments: object) -> NoReturn:
        raise UsageError("there is no such program", where="qemu", hint="install one")

    monkeypatch.setattr(prepare, "this_host", raise_usage_error)


def test_the_real_search_for_qemu_decides(
    pytester: pytest.Pytester, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "this_host", THIS_HOST)
    monkeypatch.setenv("HARNESS_STORE", str(pytester.path / "store"))
    seen = answer(Verdict.PASS)
    counts, text = outcomes(pytester, "--qemu", "/nowhere/qemu")
    assert counts == {"skipped": len(scenario_names())}
    assert "/nowhere/qemu" in text
    monkeypatch.setenv("CI", "true")
    assert outcomes(pytester, "--qemu", "/nowhere/qemu")[0] == {"errors": len(scenario_names())}
    assert seen == []


def test_a_broken_contract_is_a_failure(pytester: pytest.Pytester, answer: Any) -> None:
    answer(Verdict.FAIL, findings=(STRANDED,), kernel=RunKernel("6.18.0"))
    counts, text = outcomes(pytester, *ONE)
    assert counts == {"failed": 1, "deselected": len(scenario_names()) - 1}
    assert "OwnershipError: FAIL exact_cover on debian:7.2 (6.18.0)" in text
    assert "stranded range" in text
    assert "evidence: the folder" in text
    assert "run_scenario(" not in text, "the report has no Python traceback"


@pytest.mark.parametrize("verdict", [Verdict.INCONCLUSIVE, Verdict.UNBUILDABLE])
@pytest.mark.parametrize("release", ["6.18.0", "7.2.0"])
def test_a_run_without_a_judgement_is_an_error(
    pytester: pytest.Pytester, answer: Any, verdict: Verdict, release: str
) -> None:
    """Also where a failure is known: a lost guest is not that failure."""
    answer(verdict, reason="QEMU ended", hint="look there", kernel=RunKernel(release))
    counts, text = outcomes(pytester, *ONE)
    assert counts == {"errors": 1, "deselected": len(scenario_names()) - 1}
    assert f"{verdict.name} exact_cover" in text
    assert "QEMU ended" in text
    assert "look there" in text


def test_a_run_without_a_kernel_is_an_error(pytester: pytest.Pytester, answer: Any) -> None:
    answer(UsageError("no such kernel", hint="name another"))
    counts, text = outcomes(pytester, *ONE)
    assert counts == {"errors": 1, "deselected": len(scenario_names()) - 1}
    assert "no such kernel" in text


def test_a_scenario_that_is_not_about_the_kernel_is_skipped(
    pytester: pytest.Pytester, answer: Any
) -> None:
    answer(NotApplicableError("needs CXL_REGION=n", hint="use another kernel"))
    counts, text = outcomes(pytester)
    assert counts == {"skipped": len(scenario_names())}
    assert "needs CXL_REGION=n" in text


def test_a_known_failure_is_expected(pytester: pytest.Pytester, answer: Any) -> None:
    answer(Verdict.FAIL, findings=(STRANDED,), known_issue="known", issues=("stranded",))
    counts, text = outcomes(pytester, *ONE)
    assert counts == {"xfailed": 1, "deselected": len(scenario_names()) - 1}
    assert "a reason that is long enough" in text


def test_a_known_failure_that_is_gone_is_a_failure(pytester: pytest.Pytester, answer: Any) -> None:
    answer(Verdict.PASS, issues=("stranded",))
    counts, text = outcomes(pytester, *ONE)
    assert counts == {"failed": 1, "deselected": len(scenario_names()) - 1}
    assert "XPASS(strict)" in text
    assert "a reason that is long enough" in text


def test_another_failure_than_the_known_one_is_a_failure(
    pytester: pytest.Pytester, answer: Any
) -> None:
    answer(
        Verdict.FAIL,
        findings=(STRANDED, Finding("4", "hotplug room is owned")),
        issues=("stranded",),
    )
    counts, text = outcomes(pytester, *ONE)
    assert counts == {"failed": 1, "deselected": len(scenario_names()) - 1}
    assert "hotplug room is owned" in text


def test_on_a_kernel_without_the_issue_nothing_is_expected(
    pytester: pytest.Pytester, answer: Any
) -> None:
    answer(Verdict.PASS, kernel=RunKernel("6.18.0"))
    assert outcomes(pytester, *ONE)[0]["passed"] == 1


def test_the_options_reach_the_runs(pytester: pytest.Pytester, answer: Any) -> None:
    seen = answer(Verdict.PASS, kernel=RunKernel("6.18.0"))
    options = ("--kernel", "debian:6.18", "--policy", "all_or_nothing", "--evidence", "elsewhere")
    loads = ("--load", "kmem,dax_hmem", "--repeat", "3", "--start", "cold")
    _, text = outcomes(pytester, *ONE, *options, *loads)
    ((case, kernel, judging, repeat, start, _),) = seen
    assert (case.name, judging.policy, judging.evidence_root) == (
        "exact_cover",
        "all_or_nothing",
        Path("elsewhere"),
    )
    assert (case.scenario.guest.load, repeat, start) == (("kmem", "dax_hmem"), 3, "cold")
    assert "debian:6.18" in str(kernel)
    assert "ownership: kernel debian:6.18, policy all_or_nothing" in text


def test_the_evidence_is_where_the_command_line_leaves_it(
    pytester: pytest.Pytester, answer: Any
) -> None:
    seen = answer(Verdict.PASS, kernel=RunKernel("6.18.0"))
    outcomes(pytester, *ONE)
    assert seen[0][2].evidence_root == pytester.path / "evidence"


def test_a_report_names_verdict_and_evidence(pytester: pytest.Pytester, answer: Any) -> None:
    answer(Verdict.FAIL, findings=(STRANDED,), kernel=RunKernel("6.18.0"))
    outcomes(pytester, *ONE, "--junitxml", "junit.xml")
    text = (pytester.path / "junit.xml").read_text()
    assert '<property name="verdict" value="FAIL"' in text
    assert '<property name="evidence" value="the folder"' in text


def test_a_suite_without_scenarios_starts_nothing(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "this_host", lambda *_arguments: pytest.fail("QEMU was started"))
    pytester.makepyfile("def test_nothing():\n    pass\n")
    assert outcomes(pytester)[0] == {"passed": 1}


def test_guests_run_ahead_of_their_tests(pytester: pytest.Pytester, answer: Any) -> None:
    """In one session, in the order of the selected tests."""
    seen = answer(Verdict.PASS)
    counts, _ = outcomes(pytester, "-k", "partial_region")
    names = [name for name in scenario_names() if "partial_region" in name]
    assert [arguments[0].name for arguments in seen] == names
    assert {arguments[5] for arguments in seen} == {len(names)}, "not in one call"
    assert counts["passed"] == len(names) > 2
