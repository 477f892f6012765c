# SPDX-License-Identifier: GPL-2.0-or-later
"""The runs behind the tests of one pytest session: guests side by side, a little ahead of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from harness.core.errors import UsageError

if TYPE_CHECKING:
    from harness.contract.result import RunResult
    from harness.runs.guest_pool import StartOption
    from harness.runs.guest_run import Judging
    from harness.runs.prepare import Host
    from harness.runs.session import Skipped
    from harness.scenario.kernel_request import KernelRequest
    from harness.scenario.scenario_files import Case


class ScenarioRuns:
    """Gives the result of each scenario when its test asks for it. Used as a `with` block.

    Args:
        host: this machine.
        judging: by what guests are judged.
        kernel: the kernel that is asked for.
        names: the scenarios whose tests were selected, in the tests' order.
        load: how they load, as `--load` says it, or None.
        repeat: how many guests each load gets.
        start: how guests start.
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
        self._coming: Iterator[RunResult | Skipped] = iter(())
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
        self._session.stop()  # no test needs the guests that still run
        self._session.__exit__(kind, error, trace)

    def case(self, name: str) -> Case:
        """The scenario of this name, as it is run.

        Raises:
            UsageError: there is no such scenario, or it is wrong.
        """
        from harness.runs.minimize import requested_load
        from harness.scenario.scenario_files import load_case

        case = load_case(name)
        return requested_load(case, self._load) if self._load else case

    def result(self, name: str) -> RunResult | Skipped:
        """The result of a scenario; those that come after it are run meanwhile.

        Raises:
            UsageError: the scenario or the kernel is wrong, or this machine lacks something.
        """
        self.case(name)
        if name not in self._done:
            self._take_until(name)
        if name not in self._done:
            at = self._names.index(name) if name in self._names else len(self._names)
            cases = list(self._readable([name, *self._names[at + 1 :]]))
            self._coming = self._session.run_all(cases, self._kernel)
            self._take_until(name)
        return self._done.pop(name)

    def _take_until(self, name: str) -> None:
        from harness.runs.session import Skipped

        for result in self._coming:
            ended = result.case.name if isinstance(result, Skipped) else result.scenario
            self._done[ended] = result
            if ended == name:
                return

    def _readable(self, names: Sequence[str]) -> Iterator[Case]:
        """The scenarios that can be read: what is wrong with another is for its own test."""
        for name in names:
            try:
                yield self.case(name)
            except UsageError:
                continue
