# SPDX-License-Identifier: GPL-2.0-or-later
"""The callback for results, in a pool and in an avocado job with fake workers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from avocado_fixtures import fake_hosts, plugin_environment

from harness.core.errors import UsageError
from harness.matrix.entry import Message, Say
from harness.matrix.plan import Combination
from harness.matrix.watched_pool import WatchedPool
from harness.matrix.worker_messages import Ticket

ONE = Combination(scenario="exact_cover")
ENDS: tuple[Message, ...] = (
    {"status": "started"},
    {"status": "running", "type": "whiteboard", "log": b'{"verdict": "PASS"}'},
    {"status": "finished", "result": "pass"},
)
JOB = """
import json, sys
from pathlib import Path
from harness.cli.nightly import _job_runner
from harness.matrix.plan import Combination
from harness.core.progress import TerminalProgress

heard = {}
def ended(one, result, message):
    heard[one.scenario] = message.get("fail_reason") or message.get("result")
left = [Combination(scenario=name) for name in ("pass", "hang")]
_job_runner(Path(sys.argv[1]), None, 3, TerminalProgress())(left, Path("jobs"), ended)
print(json.dumps(heard))
"""


class FakePool:
    size = 1

    def run(self, _one: Combination, _output: Path, say: Say, _ticket: Ticket) -> None:
        for message in ENDS:
            say(message)

    def close(self) -> None:
        pass


def test_the_end_is_heard_with_its_result(tmp_path: Path) -> None:
    heard: list[tuple[Combination, Any, Any]] = []
    passed_on: list[Message] = []
    pool = WatchedPool(FakePool(), lambda *end: heard.append(end))
    pool.run(ONE, tmp_path, passed_on.append, Ticket())
    assert heard == [(ONE, {"verdict": "PASS"}, ENDS[-1])]
    assert tuple(passed_on) == ENDS
    pool.check()


def test_an_error_of_the_callback_does_not_stop_the_job(tmp_path: Path) -> None:
    def ended(_one: Combination, _result: Mapping[str, Any] | None, _message: Message) -> None:
        raise UsageError("the disk is full", hint="free some")

    passed_on: list[Message] = []
    pool = WatchedPool(FakePool(), ended)
    pool.run(ONE, tmp_path, passed_on.append, Ticket())
    assert tuple(passed_on) == ENDS
    with pytest.raises(UsageError, match="the disk is full"):
        pool.check()


def test_a_timeout_is_passed_to_the_callback(tmp_path: Path) -> None:
    hosts = fake_hosts(tmp_path, a="", b="")
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(hosts)],
        cwd=tmp_path,
        env=plugin_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    heard = json.loads(done.stdout.splitlines()[-1])
    assert heard == {"pass": "pass", "hang": "INCONCLUSIVE: not done after 3 s"}
