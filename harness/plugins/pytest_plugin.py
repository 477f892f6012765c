# SPDX-License-Identifier: GPL-2.0-or-later
"""The pytest door: options, fixtures, and how verdicts become test outcomes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.contract.result import RunResult
    from harness.core.progress import Progress
    from harness.plugins.pytest_progress import SessionProgress
    from harness.plugins.pytest_runs import ScenarioRuns
    from harness.runs.prepare import Host
    from harness.scenario.kernel_request import KernelRequest
    from harness.scenario.known_issues import KnownIssues

_PROGRESS = "cxl_ownership_progress"


class OwnershipError(AssertionError):
    """A kernel broke the contract."""


class KnownIssueError(OwnershipError):
    """A kernel broke the contract in the way that tests/known_issues.yaml describes."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of `harness run`."""
    group = parser.getgroup("CXL ownership harness")
    group.addoption(
        "--kernel", default="debian:7.2", metavar="SPEC", help="debian:, image: or build:"
    )
    group.addoption(
        "--config",
        dest="config_fragments",
        default="",
        metavar="NAME,...",
        help="for build: fragments of kernel_configs/ on top of the base",
    )
    group.addoption(
        "--series", default=None, metavar="DIR|MBOX[@vN]", help="for build: patches to apply"
    )
    group.addoption("--llvm", action="store_true", help="for build: clang instead of gcc")
    group.addoption(
        "--policy",
        default=None,
        choices=["per_range", "all_or_nothing"],
        help="the rules; without it those that the series names, else per_range",
    )
    group.addoption("--load", default=None, metavar="HOW", help="as harness run has it")
    group.addoption("--repeat", default=1, type=int, metavar="N", help="guests for each load")
    group.addoption(
        "--start", default="auto", choices=["auto", "cold", "warm"], help="boot or restore guests"
    )
    group.addoption("--accel", default="auto", choices=["auto", "kvm", "tcg"], help="what runs it")
    group.addoption("--qemu", default=None, metavar="PATH", help="the QEMU to use")
    group.addoption("--evidence", default=None, metavar="DIR", help="where runs leave evidence")


def pytest_configure(config: pytest.Config) -> None:
    """Keep a way to the terminal before pytest captures what tests write."""
    from harness.plugins.pytest_progress import SessionProgress

    config.pluginmanager.register(SessionProgress(config), _PROGRESS)


def session_progress(config: pytest.Config) -> Progress:
    """What builds, downloads and waits of this session say themselves to, at once."""
    plugin: SessionProgress | None = config.pluginmanager.get_plugin(_PROGRESS)
    assert plugin is not None
    return plugin.progress


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes `scenario_name` one parameter for every scenario."""
    if "scenario_name" in metafunc.fixturenames:
        from harness.scenario.scenario_files import scenario_names

        metafunc.parametrize("scenario_name", scenario_names(), scope="session")


@pytest.fixture(scope="session")
def harness_host(request: pytest.FixtureRequest) -> Host:
    """This machine; without what guests need, the tests that want it are skipped.

    In CI they fail: a machine that tests nothing must not look healthy.
    """
    from harness.core.errors import UsageError
    from harness.runs.prepare import this_host

    option = request.config.getoption
    try:
        return this_host(session_progress(request.config), option("accel"), option("qemu"))
    except UsageError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no guest can be run here: {error}")


@pytest.fixture(scope="session")
def known_issues() -> KnownIssues:
    """The failures that are known."""
    from harness.scenario.known_issues import load_known_issues

    return load_known_issues()


@pytest.fixture(scope="session")
def evidence_folder(request: pytest.FixtureRequest) -> Path:
    """Where runs leave their evidence."""
    from harness.core.paths import evidence_root

    given = request.config.getoption("evidence")
    return Path(given) if given else evidence_root()


@pytest.fixture(scope="session")
def scenario_runs(
    request: pytest.FixtureRequest,
    harness_host: Host,
    known_issues: KnownIssues,
    evidence_folder: Path,
) -> Iterator[ScenarioRuns]:
    """The runs of every scenario whose test was selected, on the kernel that was asked for."""
    from harness.plugins.pytest_runs import ScenarioRuns
    from harness.runs.guest_run import Judging
    from harness.runs.prepare import policy_for

    option = request.config.getoption
    kernel = asked_kernel(request.config)
    judging = Judging(policy_for(option("policy"), kernel), evidence_folder, known_issues)
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    params = [call.params for call in calls if call is not None]
    names = [one["scenario_name"] for one in params if "scenario_name" in one]
    with ScenarioRuns(
        harness_host,
        judging,
        kernel,
        names,
        load=option("load"),
        repeat=option("repeat"),
        start=option("start"),
    ) as runs:
        yield runs


@pytest.fixture
def scenario_result(
    request: pytest.FixtureRequest,
    scenario_runs: ScenarioRuns,
    scenario_name: str,
    known_issues: KnownIssues,
) -> RunResult:
    """The scenario's run, ended with PASS or FAIL.

    A run without a judgement is an error of the test's set-up, not a failed assertion.
    """
    from harness.contract.result import Verdict
    from harness.runs.session import Skipped

    result = scenario_runs.result(scenario_name)
    if isinstance(result, Skipped):
        pytest.skip(str(result.error))
    request.node.user_properties.extend(
        [("verdict", result.verdict.name), ("evidence", result.evidence)]
    )
    if result.verdict in (Verdict.PASS, Verdict.FAIL):
        _expect_known_issue(request, known_issues, result)
        return result
    pytest.fail(report_text(result), pytrace=False)


def asked_kernel(config: pytest.Config) -> KernelRequest:
    """The kernel that the options ask for."""
    from harness.scenario.kernel_request import request_of_options

    series = config.getoption("series")
    return request_of_options(
        config.getoption("kernel"),
        config.getoption("config_fragments"),
        Path(series) if series else None,
        llvm=config.getoption("llvm"),
    )


def assert_owners(result: RunResult) -> None:
    """Fail the test when the run broke the contract.

    Raises:
        KnownIssueError: in the known way.
        OwnershipError: in any other way.
    """
    from harness.contract.result import Verdict

    __tracebackhide__ = True
    if result.verdict is Verdict.FAIL:
        kind = KnownIssueError if result.known_issue else OwnershipError
        raise kind(report_text(result))


def report_text(result: RunResult) -> str:
    """The result as the terminal report has it."""
    from harness.reports.terminal import result_lines

    return "\n".join(result_lines(result))


def _expect_known_issue(
    request: pytest.FixtureRequest, issues: KnownIssues, result: RunResult
) -> None:
    """Make the test a strict xfail when its failure is known on this kernel."""
    known = [issue for issue in issues.issues if issue.name in result.issues]
    if known:
        why = "; ".join(" ".join(issue.why.split()) for issue in known)
        strict = not all(issue.sometimes for issue in known)
        request.node.add_marker(
            pytest.mark.xfail(raises=KnownIssueError, strict=strict, reason=why)
        )


def pytest_report_header(config: Any) -> str:
    """Say which kernel and policy the guests are judged with."""
    series = config.getoption("series")
    policy = config.getoption("policy") or ("of the series" if series else "per_range")
    return f"ownership: kernel {config.getoption('kernel')}, policy {policy}"
