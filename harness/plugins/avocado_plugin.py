# SPDX-License-Identifier: GPL-2.0-or-later
"""The avocado plugin: a resolver for references, a runner for one entry, a spawner with workers.

Avocado loads this module whenever it starts, so modules that run guests are imported on use.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from avocado.core.nrunner.app import BaseRunnerApp
from avocado.core.nrunner.runnable import Runnable
from avocado.core.nrunner.runner import BaseRunner
from avocado.core.plugin_interfaces import Init, Resolver, Spawner
from avocado.core.resolver import ReferenceResolution, ReferenceResolutionResult
from avocado.core.settings import settings
from avocado.core.spawners.common import SpawnCapabilities, SpawnerMixin, SpawnMethod

from harness.core.errors import HarnessError, UsageError

if TYPE_CHECKING:
    from harness.matrix.entry import Message
    from harness.matrix.plan import Combination, Plan
    from harness.matrix.worker_messages import Ticket
    from harness.matrix.worker_pool import Pool

KIND = "ownership"
_PREFIX = f"{KIND}:"
_SECTION = KIND
_END_SECONDS = 5.0
_POLL_SECONDS = 0.02


class OwnershipInit(Init):  # type: ignore[misc]
    """Registers the settings."""

    name = KIND
    description = "Settings of the CXL ownership harness"

    def initialize(self) -> None:
        """Register the settings with avocado."""
        settings.register_option(
            section=_SECTION,
            key="shard",
            default="",
            help_msg="Run one part of a matrix, such as 2/8.",
        )
        settings.register_option(
            section=_SECTION,
            key="hosts",
            default="",
            help_msg="Hosts file for the spawner 'ownership'.",
        )


class OwnershipResolver(Resolver):  # type: ignore[misc]
    """Turns `ownership:SCENARIO[?kernel=SPEC&...]` and matrix files into runnables."""

    name = KIND
    description = "Scenarios of the CXL ownership harness, and matrix files"

    def resolve(self, reference: str) -> ReferenceResolution:
        """Resolve a reference into runnables."""
        try:
            if reference.startswith(_PREFIX):
                chosen: tuple[Combination, ...] = _asked(reference.removeprefix(_PREFIX))
            elif reference.endswith((".yaml", ".yml")) and os.path.isfile(reference):
                from harness.matrix.matrix_file import is_matrix, load_matrix

                if not is_matrix(Path(reference)):
                    return _not_found(reference, f'"{reference}" is not a matrix')
                chosen = _sharded(load_matrix(Path(reference)), self.config)
            else:
                return _not_found(
                    reference, f'"{reference}" is neither matrix nor {_PREFIX}SCENARIO'
                )
        except HarnessError as error:
            return ReferenceResolution(
                reference, ReferenceResolutionResult.CORRUPT, info=f"\n{error}"
            )
        return ReferenceResolution(
            reference, ReferenceResolutionResult.SUCCESS, [runnable_of(one) for one in chosen]
        )


def runnable_of(one: Combination) -> Runnable:
    """Convert a matrix entry into a runnable."""
    import msgspec

    return Runnable(
        KIND,
        f"{_PREFIX}{one.scenario}",
        identifier=one.name,
        combination=msgspec.to_builtins(one),
    )


class OwnershipRunner(BaseRunner):  # type: ignore[misc]
    """Runs one entry in this process."""

    name = KIND
    description = "Runner of scenarios of the CXL ownership harness"

    def run(self, runnable: Runnable) -> Iterator[Message]:
        """Run the entry and yield its messages."""
        from harness.core.progress import SilentProgress
        from harness.matrix.entry import CombinationRun
        from harness.matrix.matrix_file import read_combination
        from harness.reports.terminal import result_lines

        output = runnable.output_dir
        raw = runnable.kwargs.get("combination")
        try:
            one = read_combination(raw) if raw else _asked(runnable.uri.removeprefix(_PREFIX))[0]
        except HarnessError as error:
            yield self.prepare_status("started")
            yield self.prepare_status("finished", {"result": "error", "fail_reason": str(error)})
            return
        run = CombinationRun(
            one,
            Path(output or "."),
            SilentProgress(),
            describe=result_lines,
            shared=bool(output) and os.path.isdir(output),
        )
        messages: queue.Queue[Message | None] = queue.Queue()

        def work() -> None:
            try:
                run.run(messages.put)
            finally:
                messages.put(None)

        thread = threading.Thread(target=work, name="combination", daemon=True)
        thread.start()
        try:
            while True:
                try:
                    message = messages.get(timeout=0.5)
                except queue.Empty:
                    yield self.prepare_status("running")
                    continue
                if message is None:
                    return
                yield self.prepare_status(message["status"], message)
        finally:
            # Also when terminated: leave no guest behind.
            run.stop()
            thread.join(_END_SECONDS)


class OwnershipSpawner(SpawnerMixin, Spawner):  # type: ignore[misc]
    """Runs entries in persistent workers, on this machine or on hosts over SSH."""

    description = "Workers of the CXL ownership harness, local or on other hosts"
    METHODS = [SpawnMethod.STANDALONE_EXECUTABLE]  # noqa: RUF012 - as avocado declares it
    CAPABILITIES = [SpawnCapabilities.AUTOMATIC_ENVIRONMENT_PROVISIONING]  # noqa: RUF012

    def __init__(self, config: dict[str, Any] | None = None, job: Any = None) -> None:
        super().__init__(config, job)
        self._threads: ThreadPoolExecutor | None = None
        self._pool: Pool | None = getattr(job, "ownership_pool", None)

    def is_operational(self) -> bool:
        """Connect to the hosts; logs the reason when none can run guests."""
        if self._pool is None:
            from avocado.core.output import LOG_UI

            from harness.core.progress import TerminalProgress
            from harness.matrix.lab import connected_pool

            hosts = self.config.get(f"{_SECTION}.hosts")
            try:
                self._pool = connected_pool(Path(hosts) if hosts else None, TerminalProgress())
            except HarnessError as error:
                LOG_UI.error("%s", error)
                return False
            # Avocado does not notify a spawner at the end of the job.
            atexit.register(self._pool.close)
        return True

    def _ready_pool(self) -> Pool:
        if self._pool is None:
            raise RuntimeError("is_operational() comes first")
        return self._pool

    @staticmethod
    def is_task_alive(runtime_task: Any) -> bool:
        """Return True while the task runs."""
        handle = runtime_task.spawner_handle
        return handle is not None and not handle.future.done()

    async def spawn_task(self, runtime_task: Any) -> bool:
        """Start a task and wait until it has a slot."""
        if self._threads is None:
            workers = self.config.get("run.max_parallel_tasks")
            self._threads = ThreadPoolExecutor(workers, thread_name_prefix="combination")
        task = runtime_task.task
        os.makedirs(task.runnable.output_dir, exist_ok=True)
        handle = _Handle(self._threads, self._ready_pool(), task)
        runtime_task.spawner_handle = handle
        while not handle.ticket.begun.is_set():
            # The timeout of a task must not start before it has a slot.
            await asyncio.sleep(_POLL_SECONDS)
        return True

    @staticmethod
    async def wait_task(runtime_task: Any) -> None:
        """Wait until the task has ended."""
        await asyncio.shield(asyncio.wrap_future(runtime_task.spawner_handle.future))

    @staticmethod
    async def terminate_task(runtime_task: Any) -> bool:
        """Stop the task and its guests."""
        handle = runtime_task.spawner_handle
        handle.ticket.cancel()
        await asyncio.wait([asyncio.wrap_future(handle.future)], timeout=_END_SECONDS)
        return bool(handle.future.done())

    @staticmethod
    async def check_task_requirements(runtime_task: Any) -> bool:
        """Accept only tasks of this plugin: a worker cannot run others."""
        return bool(runtime_task.task.runnable.kind == KIND)

    @staticmethod
    async def is_requirement_in_cache(runtime_task: Any) -> bool:
        """Do nothing: there is no cache of requirements."""
        return False

    @staticmethod
    async def save_requirement_in_cache(runtime_task: Any) -> None:
        """Do nothing: there is no cache of requirements."""

    @staticmethod
    async def update_requirement_cache(runtime_task: Any, result: str) -> None:
        """Do nothing: there is no cache of requirements."""


class _Handle:
    """A running task, with a thread between its worker and avocado's status server."""

    def __init__(self, threads: ThreadPoolExecutor, pool: Pool, task: Any) -> None:
        from harness.matrix.matrix_file import read_combination
        from harness.matrix.worker_messages import Ticket

        self.ticket: Ticket = Ticket()
        one = read_combination(task.runnable.kwargs["combination"])

        def post(message: Message) -> None:
            # Stamped with the time of arrival, because the clocks of hosts differ.
            status = BaseRunner.prepare_status(message["status"], message)
            status |= {"id": str(task.identifier), "job_id": task.job_id}
            if status["status"] == "started":
                status["output_dir"] = task.runnable.output_dir
            for service in task.status_services:
                service.post(status)

        self.future = threads.submit(
            pool.run, one, Path(task.runnable.output_dir), post, self.ticket
        )


def _asked(text: str) -> tuple[Combination, ...]:
    """Parse `SCENARIO[?name=value&...]` into entries.

    Raises:
        UsageError: the scenario or a name does not exist, or a value is invalid.
    """
    import msgspec

    from harness.matrix.matrix_file import read_combination
    from harness.matrix.plan import Combination, configs_of
    from harness.runs.prepare import policy_for
    from harness.scenario.scenario_files import load_cases, suggest

    pattern, _, query = text.partition("?")
    names = tuple(one.name for one in msgspec.structs.fields(Combination) if one.name != "scenario")
    given: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        name = {"config": "configs"}.get(name, name)
        if name not in names:
            raise UsageError(
                f"unknown parameter {name!r}",
                where=f"{_PREFIX}{text}",
                hint=suggest(name, names, "parameters"),
            )
        whole = name in ("repeat", "timeout") and value.isdigit()
        given[name] = configs_of(value) if name == "configs" else int(value) if whole else value
    is_file = "/" in pattern or pattern.endswith((".yaml", ".yml"))
    found = []
    for case in load_cases([pattern]):
        scenario = str(Path(pattern).absolute()) if is_file else case.name
        one = read_combination({**given, "scenario": scenario})
        if "policy" not in given:
            one = msgspec.structs.replace(one, policy=policy_for(None, one.request))
        found.append(one)
    return tuple(found)


def _sharded(plan: Plan, config: dict[str, Any]) -> tuple[Combination, ...]:
    from harness.matrix.matrix_file import parse_shard

    asked = config.get(f"{_SECTION}.shard")
    return parse_shard(asked).of(plan.chosen) if asked else plan.chosen


def _not_found(reference: str, info: str) -> ReferenceResolution:
    return ReferenceResolution(reference, ReferenceResolutionResult.NOTFOUND, info=info)


class RunnerApp(BaseRunnerApp):  # type: ignore[misc]
    """The program avocado-runner-ownership."""

    PROG_NAME = f"avocado-runner-{KIND}"
    PROG_DESCRIPTION = "nrunner application for scenarios of the CXL ownership harness"
    RUNNABLE_KINDS_CAPABLE = [KIND]  # noqa: RUF012 - as avocado declares it


def main() -> None:
    """Run avocado's runner application."""
    # Avocado's timeout sends SIGTERM: as an exception it leaves every `with` block.
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(128 + signal.SIGTERM))
    RunnerApp(print).run()


if __name__ == "__main__":
    main()
