# SPDX-License-Identifier: GPL-2.0-or-later
"""The pytest plugin: options, fixtures, and the test outcome for each verdict.

Progress of builds and downloads is printed to standard error as plain lines, independent of
pytest's capture. Workers of pytest-xdist send theirs to the controller.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from harness.contract.result import RunResult
    from harness.core.progress import Progress
    from harness.runs.guest_pool import StartOption
    from harness.runs.guest_run import Judging
    from harness.runs.prepare import Host
    from harness.runs.session import Skipped
    from harness.scenario.kernel_request import KernelRequest
    from harness.scenario.known_issues import KnownIssues
    from harness.scenario.scenario_files import Case

_PROGRESS = "cxl_ownership_progress"


class OwnershipError(AssertionError):
    """A kernel broke the contract."""


class KnownIssueError(OwnershipError):
    """A kernel broke the contract as described in tests/known_issues.yaml."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of `harness run`."""
    group = parser.getgroup("CXL ownership harness")
    group.addoption(
        "--kernel", default="debian:7.2", metavar="SPEC", help="kernel: debian:, image: or build:"
    )
    group.addoption(
        "--config",
        dest="config_fragments",
        default="",
        metavar="NAME,...",
        help="for build: fragments of kernel_configs/ to merge into the base configuration",
    )
    group.addoption(
        "--series", default=None, metavar="DIR|MBOX[@vN]", help="for build: patches to apply"
    )
    group.addoption("--llvm", action="store_true", help="for build: compile with clang")
    group.addoption(
        "--policy",
        default=None,
        choices=["per_range", "all_or_nothing"],
        help="policy to judge by (default: that of the series, else per_range)",
    )
    group.addoption("--load", default=None, metavar="HOW", help="replace guest.load")
    group.addoption("--repeat", default=1, type=int, metavar="N", help="guests for each load")
    group.addoption(
        "--start", default="auto", choices=["auto", "cold", "warm"], help="boot or restore guests"
    )
    group.addoption("--accel", default="auto", choices=["auto", "kvm", "tcg"], help="accelerator")
    group.addoption("--qemu", default=None, metavar="PATH", help="QEMU binary")
    group.addoption("--evidence", default=None, metavar="DIR", help="folder for the evidence")


def pytest_configure(config: pytest.Config) -> None:
    """Duplicate standard error before pytest captures it."""
    config.pluginmanager.register(SessionProgress(config), _PROGRESS)


def session_progress(config: pytest.Config) -> Progress:
    """Return the progress of this session, for builds, downloads and waits."""
    plugin: SessionProgress | None = config.pluginmanager.get_plugin(_PROGRESS)
    assert plugin is not None
    return plugin.progress


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize tests that take `scenario_name` over all scenarios."""
    if "scenario_name" in metafunc.fixturenames:
        from harness.scenario.scenario_files import scenario_names

        metafunc.parametrize("scenario_name", scenario_names(), scope="session")


def pytest_report_header(config: Any) -> str:
    """Print the kernel and the policy in the header."""
    series = config.getoption("series")
    policy = config.getoption("policy") or ("of the series" if series else "per_range")
    return f"ownership: kernel {config.getoption('kernel')}, policy {policy}"


@pytest.fixture(scope="session")
def harness_host(request: pytest.FixtureRequest) -> Host:
    """Return this machine; skip the test where no guest can run.

    With CI in the environment the test fails instead: a machine that tests nothing must not pass.
    """
    from harness.core.errors import UsageError
    from harness.runs.prepare import this_host

    option = request.config.getoption
    try:
        return this_host(session_progress(request.config), option("accel"), option("qemu"))
    except UsageError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"this machine cannot run guests: {error}")


@pytest.fixture(scope="session")
def known_issues() -> KnownIssues:
    """Return the issues of tests/known_issues.yaml."""
    from harness.scenario.known_issues import load_known_issues

    return load_known_issues()


@pytest.fixture(scope="session")
def evidence_folder(request: pytest.FixtureRequest) -> Path:
    """Return the parent folder of the evidence."""
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
    """Yield the runs of all selected scenarios on the requested kernel."""
    from harness.runs.guest_run import Judging
    from harness.runs.prepare import policy_for

    option = request.config.getoption
    kernel = asked_kernel(request.config)
    judging = Judging(policy_for(option("policy"), kernel), evidence_folder, known_issues)
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    params = [call.params for call in calls if call is not None]
    names = [values["scenario_name"] for values in params if "scenario_name" in values]
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
    """Return the scenario's result, which is PASS or FAIL.

    Any other verdict is an error in the setup of the test, not a failed assertion.
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
    """Return the kernel that the options select."""
    from harness.scenario.kernel_request import request_of_options

    series = config.getoption("series")
    return request_of_options(
        config.getoption("kernel"),
        config.getoption("config_fragments"),
        Path(series) if series else None,
        llvm=config.getoption("llvm"),
    )


def assert_owners(result: RunResult) -> None:
    """Fail the test when the kernel broke the contract.

    Raises:
        KnownIssueError: all findings are known issues.
        OwnershipError: there is a new finding.
    """
    from harness.contract.result import Verdict

    __tracebackhide__ = True
    if result.verdict is Verdict.FAIL:
        kind = KnownIssueError if result.known_issue else OwnershipError
        raise kind(report_text(result))


def report_text(result: RunResult) -> str:
    """Return the result as `harness run` prints it."""
    from harness.reports.terminal import result_lines

    return "\n".join(result_lines(result))


def _expect_known_issue(
    request: pytest.FixtureRequest, issues: KnownIssues, result: RunResult
) -> None:
    """Mark the test xfail when a known issue applies to the run; strict, unless it is a race."""
    known = [issue for issue in issues.issues if issue.name in result.issues]
    if known:
        why = "; ".join(" ".join(issue.why.split()) for issue in known)
        strict = not all(issue.sometimes for issue in known)
        request.node.add_marker(
            pytest.mark.xfail(raises=KnownIssueError, strict=strict, reason=why)
        )


class ScenarioRuns:
    """Runs the selected scenarios in parallel, slightly ahead of their tests.

    Args:
        names: the selected scenarios, in the order of their tests.
        load: the value of `--load`, or None.
        repeat: guests for each load.
    """

    def __init__(
        self,
        host: Host,
        judging: Judging,
        kernel: KernelRequest,
        names: Sequence[str],
        *,
        load: str | None,
        repeat: int,
        start: StartOption,
    ) -> None:
        from harness.runs.session import Session, SessionOptions, default_jobs

        options = SessionOptions(default_jobs(), repeat=repeat, start=start)
        self._session = Session(host, judging, options)
        self._kernel = kernel
        self._names = list(names)
        self._load = load
        self._results: Iterator[RunResult | Skipped] = iter(())
        self._done: dict[str, RunResult | Skipped] = {}

    def __enter__(self) -> ScenarioRuns:
        self._session.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session.stop()
        self._session.__exit__(kind, error, trace)

    def result(self, name: str) -> RunResult | Skipped:
        """Return the result of a scenario, while the scenarios after it run.

        Raises:
            UsageError: the scenario or the kernel is invalid, or this machine lacks something.
        """
        self._case(name)
        if name not in self._done:
            self._run_until(name)
        if name not in self._done:
            at = self._names.index(name) if name in self._names else len(self._names)
            cases = list(self._valid_cases([name, *self._names[at + 1 :]]))
            self._results = self._session.run_all(cases, self._kernel)
            self._run_until(name)
        return self._done.pop(name)

    def _case(self, name: str) -> Case:
        from harness.runs.minimize import requested_load
        from harness.scenario.scenario_files import load_case

        case = load_case(name)
        return requested_load(case, self._load) if self._load else case

    def _run_until(self, name: str) -> None:
        from harness.runs.session import Skipped

        for result in self._results:
            finished = result.case.name if isinstance(result, Skipped) else result.scenario
            self._done[finished] = result
            if finished == name:
                return

    def _valid_cases(self, names: Sequence[str]) -> Iterator[Case]:
        """Yield the scenarios that can be read; an invalid one fails in its own test."""
        from harness.core.errors import UsageError

        for name in names:
            with suppress(UsageError):
                yield self._case(name)


class LineStream(io.TextIOBase):
    """Writes whole lines to a file descriptor, from any thread.

    Args:
        handle: owned by this stream; `close` closes it.
        prefix: text in front of each line.
    """

    def __init__(self, handle: int, prefix: str = "") -> None:
        self._handle = handle
        self._prefix = prefix
        self._lock = threading.Lock()
        self._rest = ""
        self._within_a_line = False

    def write(self, text: str) -> int:
        """Write all complete lines, and keep the rest for the next call."""
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                begin = "\n" if self._within_a_line else ""
                self._within_a_line = False
                # One call for each line: other processes write to the same file.
                with suppress(OSError):
                    os.write(self._handle, f"{begin}{self._prefix}{line}\n".encode())
        return len(text)

    def continue_below(self) -> None:
        """Start the next line with a newline, because pytest has written part of a line."""
        self._within_a_line = True

    def close(self) -> None:
        """Close the descriptor and drop all later output."""
        with self._lock:
            if self._handle >= 0:
                os.close(self._handle)
            self._handle = -1
        super().close()


class SessionProgress:
    """A pytest plugin for the progress of a session."""

    def __init__(self, config: pytest.Config) -> None:
        self._stream: LineStream | None = None
        self._pipe: int | None = None
        self._reader: threading.Thread | None = None
        given = getattr(config, "workerinput", None)
        with suppress(OSError):
            if given is None:
                self._stream = LineStream(os.dup(2))
            elif _PROGRESS in given:
                handle = os.open(given[_PROGRESS], os.O_WRONLY | os.O_CLOEXEC)
                self._stream = LineStream(handle, f"[{given['workerid']}] ")

    @property
    def progress(self) -> Progress:
        """Progress that prints to the terminal, or nowhere if standard error is closed."""
        from harness.core.progress import SilentProgress, TerminalProgress

        if self._stream is None:
            return SilentProgress()
        return TerminalProgress(cast(IO[str], self._stream))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logstart(self) -> None:
        """Note that pytest has printed the name of a test or file; with workers it has not."""
        if self._pipe is None:
            self._pytest_wrote()

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note that pytest has printed the outcome of a test."""
        if report.when == "call" or not report.passed:
            self._pytest_wrote()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Pass a pipe to a worker of pytest-xdist on this host."""
        if self._stream is None or not getattr(node.gateway.spec, "popen", False):
            return
        if self._pipe is None:
            read, self._pipe = os.pipe()
            self._reader = threading.Thread(target=self._copy_lines, args=(read,), daemon=True)
            self._reader.start()
        node.workerinput[_PROGRESS] = f"/proc/{os.getpid()}/fd/{self._pipe}"

    def pytest_unconfigure(self) -> None:
        """Close the pipe and the stream."""
        if self._pipe is not None and self._reader is not None:
            os.close(self._pipe)
            self._reader.join(10.0)  # a hung worker keeps its end open
        if self._stream is not None:
            self._stream.close()

    def _pytest_wrote(self) -> None:
        if self._stream is not None:
            self._stream.continue_below()

    def _copy_lines(self, read: int) -> None:
        with os.fdopen(read, errors="replace") as lines:
            for line in lines:
                with suppress(ValueError):  # the stream is closed
                    print(line, end="", file=self._stream, flush=True)
