# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import harness.matrix.worker_process as worker_process
from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.progress import SilentProgress
from harness.matrix.entry import Message
from harness.matrix.hosts import LabHost, read_lab
from harness.matrix.plan import Combination
from harness.matrix.worker_messages import NO_HOST, Ticket
from harness.matrix.worker_pool import WorkerPool
from harness.matrix.worker_process import started_worker, worker_argv

FAKE = Path(__file__).parents[1] / "fake_worker.py"


class Notes(SilentProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def argv_of(host: LabHost) -> Sequence[str]:
    return (sys.executable, str(FAKE), host.name, *host.options)


def lab(**hosts: str) -> tuple[LabHost, ...]:
    return tuple(LabHost(name=name, options=tuple(how.split())) for name, how in hosts.items())


MakePool = Callable[..., WorkerPool]


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: Notes) -> Iterator[MakePool]:
    monkeypatch.setenv("HARNESS_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    monkeypatch.setattr("harness.matrix.worker_pool._RETRY_SECONDS", 0.01)
    pools: list[WorkerPool] = []

    def made(**hosts: str) -> WorkerPool:
        pool = WorkerPool(lab(**hosts), Store(tmp_path / "store"), notes, argv_of)
        pools.append(pool)
        pool.connect()
        return pool

    yield made
    for pool in pools:
        pool.close()


def run(pool: WorkerPool, scenario: str, ticket: Ticket | None = None) -> list[Message]:
    said: list[Message] = []
    pool.run(Combination(scenario=scenario), Path("/out"), said.append, ticket or Ticket())
    return said


def test_messages_come_through_whole_and_in_order(make: MakePool) -> None:
    said = run(make(here=""), "ok")
    assert [one["status"] for one in said] == ["started", "running", "running", "finished"]
    assert said[2]["log"] == b"\0\xff"
    assert said[-1]["told"] == {"output": "/out", "shared": True, "stored": None}


def test_a_host_takes_as_many_as_it_says_and_workers_stay(make: MakePool) -> None:
    pool = make(a="", b="")
    assert pool.size == 4
    with ThreadPoolExecutor(4) as threads:
        said = list(threads.map(lambda number: run(pool, f"s{number}"), range(12)))
    assert [one[-1]["result"] for one in said] == ["pass"] * 12


def test_a_host_may_be_told_to_take_less(tmp_path: Path, make: MakePool, notes: Notes) -> None:
    pool = WorkerPool((LabHost(name="a", guests=1),), Store(tmp_path), notes, argv_of)
    try:
        pool.connect()
        assert pool.size == 1
    finally:
        pool.close()


def test_entries_of_a_lost_host_run_on_another_host(make: MakePool) -> None:
    pool = make(a="", b="")
    for scenario in ("kill_a", "kill_b") * 3:
        said = run(pool, scenario)
        assert [one["status"] for one in said].count("started") == 1
        assert [one["status"] for one in said].count("finished") == 1
        assert (said[-1]["result"], said[-1]["host"]) == ("pass", "ab".replace(scenario[-1], ""))


def test_nothing_comes_before_started(make: MakePool) -> None:
    # Avocado then processes no message of any test any more.
    pool = make(a="", b="")
    for scenario in ("early_a", "early_b"):
        said = run(pool, scenario)
        assert [one["status"] for one in said].index("started") == 0
        assert "running on another host" in str([one.get("log") for one in said])
        assert said[-1]["result"] == "pass"


def test_beside_a_host_that_loses_everything_the_others_do_all(
    make: MakePool, notes: Notes
) -> None:
    pool = make(a="", b="")
    with ThreadPoolExecutor(4) as threads:
        said = list(threads.map(lambda number: run(pool, f"kill_a-{number}"), range(20)))
    assert [(one[-1]["result"], one[-1]["host"]) for one in said] == [("pass", "b")] * 20
    # It is out as soon as three have lost their workers there; the others may have been faster.
    assert [
        line.startswith("host a is no longer used: a: the connection") for line in notes.lines
    ] in (
        [],
        [True],
    )


def test_a_combination_that_kills_every_worker_ends_and_the_rest_goes_on(make: MakePool) -> None:
    pool = make(a="")
    said = run(pool, "kill")
    assert said[-1]["result"] == "error"
    assert "3 workers were lost while they ran it" in said[-1]["fail_reason"]
    assert run(pool, "ok")[-1]["result"] == "pass"


def test_a_local_error_ends_only_the_entry_and_its_worker(
    make: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(a="")

    def full(*_words: object, **_more: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(worker_process.WorkerProcess, "run", full)
        said = run(pool, "ok")
    assert [one["status"] for one in said] == ["started", "running", "finished"]
    assert "No space left on device" in said[-1]["fail_reason"]
    assert said[-1]["result"] == "error"
    assert run(pool, "ok")[-1]["result"] == "pass"


def test_without_hosts_each_entry_has_the_reason(make: MakePool) -> None:
    pool = make(a="")
    for number in range(3):
        run(pool, f"kill-{number}")
    said = run(pool, "ok")
    assert [one["status"] for one in said] == ["started", "finished"]
    assert said[-1]["result"] == "error"
    assert said[-1]["fail_class"] == NO_HOST
    assert "no host is left:\na: the connection was closed" in said[-1]["fail_reason"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (
            "refuse",
            ("b: the connection was closed", "Connection refused", "ssh works without a password"),
        ),
        ("babble", ("b: unexpected reply 'Welcome to the lab!'",)),
        ("no_qemu", ("b: QEMU is not installed", "hint: install it")),
        ("full", ("1 MiB are free, runs want 256 MiB", "free some")),
        ("old", ("b: the host has version 0.0.1+old", "same version on all hosts")),
    ],
)
def test_a_host_that_cannot_is_left_out_with_the_reason(
    make: MakePool, notes: Notes, how: str, words: tuple[str, ...]
) -> None:
    pool = make(a="", b=how)
    assert pool.size == 2
    (line,) = notes.lines
    assert line.startswith("host b is no longer used: ")
    for word in words:
        assert word in line
    assert run(pool, "ok")[-1]["host"] == "a"


def test_no_host_at_all_is_a_usage_error_with_every_reason(make: MakePool) -> None:
    with pytest.raises(UsageError) as caught:
        make(a="refuse", b="no_qemu")
    for word in ("no host can run guests", "a: the connection was closed", "b: QEMU is not"):
        assert word in str(caught.value)


def test_a_mute_host_is_not_waited_for(make: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "_HELLO_SECONDS", 0.3)
    with pytest.raises(UsageError, match=r"no reply for 0\.3 s"):
        make(a="mute")


def test_a_cancelled_combination_ends_without_a_word_and_its_slot_goes_on(make: MakePool) -> None:
    pool = make(a="")
    ticket = Ticket()
    said: list[Message] = []
    thread = threading.Thread(
        target=pool.run, args=(Combination(scenario="hang"), Path("/out"), said.append, ticket)
    )
    thread.start()
    while not said:
        time.sleep(0.01)
    ticket.cancel()
    thread.join(10)
    assert not thread.is_alive()
    assert "finished" not in [one["status"] for one in said]
    assert run(pool, "ok")[-1]["result"] == "pass"


def test_closing_ends_what_is_under_way(make: MakePool) -> None:
    pool = make(a="")
    said: list[Message] = []
    thread = threading.Thread(
        target=pool.run, args=(Combination(scenario="hang"), Path("/out"), said.append, Ticket())
    )
    thread.start()
    while not said:
        time.sleep(0.01)
    pool.close()
    thread.join(10)
    assert not thread.is_alive()


def test_an_entry_of_the_store_is_sent_whole(
    tmp_path: Path, make: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = tmp_path / "near" / "kernels" / "abc123"
    (entry / "modules").mkdir(parents=True)
    (entry / "vmlinuz").write_bytes(os.urandom(700_000))
    (entry / "link").symlink_to("vmlinuz")
    monkeypatch.setenv("HARNESS_STORE", str(tmp_path / "far"))
    with started_worker(LabHost(name="a"), argv_of) as worker:
        assert not worker.has("kernels", "abc123")
        assert worker.put(entry, "debian:7.2") > 700_000
        assert worker.has("kernels", "abc123")
        assert worker.has("kernels", "", "debian:7.2")
    far = tmp_path / "far" / "kernels" / "abc123"
    assert (far / "vmlinuz").read_bytes() == (entry / "vmlinuz").read_bytes()
    assert os.readlink(far / "link") == "vmlinuz"
    assert (far / "modules").is_dir()


def test_a_worker_that_is_sent_less_than_was_said_keeps_nothing(
    tmp_path: Path, make: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_STORE", str(tmp_path / "far"))
    with started_worker(LabHost(name="a"), argv_of) as worker:
        worker._send({"do": "put", "kind": "kernels", "key": "abc", "alias": None, "size": 9})
        worker._send({"data": b"1234"})
        worker._send({"end": True})
        with pytest.raises(UsageError, match="4 of 9 bytes arrived"):
            worker._answer()
        assert not worker.has("kernels", "abc")


def test_ssh_never_asks_and_notices_a_dead_host() -> None:
    host = LabHost(
        name="a", ssh="me@lab", options=("-p", "22"), command=("env", "A=b c", "harness")
    )
    argv = worker_argv(host)
    assert argv[0] == "ssh"
    assert "BatchMode=yes" in argv
    assert "ServerAliveInterval=5" in argv
    assert argv[-5:] == ("-p", "22", "me@lab", "--", "env 'A=b c' harness matrix-worker")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hosts: []\n", ("h.yaml:1: hosts", "no hosts")),
        ("hosts:\n- name: a\n  sssh: x\n", ("h.yaml:3", "unknown key 'sssh'", "did you mean ssh")),
        ("hosts:\n- ssh: x\n", ("h.yaml:2: hosts[0]", "'name' is missing")),
        ("hosts:\n- {name: a}\n- {name: a}\n", ("h.yaml:3: hosts[1].name", "duplicate host")),
        ("hosts:\n- {name: a, options: [-v]}\n", ("hosts[0].options", "add ssh")),
        # ssh would take it as an option, which can name a command to run.
        ("hosts:\n- {name: a, ssh: -oProxyCommand=x}\n", ("hosts[0].ssh",)),
        ("hosts:\n- {name: a, command: []}\n", ("hosts[0].command",)),
        ("hosts:\n- {name: a, guests: 0}\n", ("hosts[0].guests",)),
    ],
)
def test_a_wrong_file_of_hosts_is_refused(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        read_lab(text, "h.yaml")
    for word in words:
        assert word in str(caught.value)
