# SPDX-License-Identifier: GPL-2.0-or-later
"""Run one matrix entry and report it as avocado status messages."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.contract.result import RunResult, Verdict
from harness.core.errors import HarnessError, UnbuildableError
from harness.core.progress import Progress
from harness.matrix.plan import Combination
from harness.runs.guest_run import Judging
from harness.runs.prepare import this_host
from harness.runs.requirements import NotApplicableError
from harness.runs.session import Session, SessionOptions
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.known_issues import load_known_issues
from harness.scenario.scenario_files import load_case

Message = dict[str, Any]
"""A status message of avocado, without the fields of the task (id, job_id, time)."""

Say = Callable[[Message], None]

Describe = Callable[[RunResult], Sequence[str]]

EVIDENCE = "evidence"
_CHUNK = 256 * 1024
_BYTES = "__base64_encoded__"


class CombinationRun:
    """The run of one matrix entry, which another thread may stop.

    Args:
        output: the task's output folder.
        describe: formats a result for the terminal.
        shared: this process can write to the output folder; otherwise the evidence is sent with
            the messages.
        stored: the key of the kernel in this machine's store; None to fetch or build it.
    """

    def __init__(
        self,
        combination: Combination,
        output: Path,
        progress: Progress,
        *,
        describe: Describe,
        shared: bool,
        stored: str | None = None,
    ) -> None:
        self._combination = combination
        self._output = output
        self._progress = progress
        self._describe = describe
        self._shared = shared
        self._stored = stored
        self._stopped = False
        self._stop: Callable[[], None] = lambda: None

    def stop(self) -> None:
        """Stop its guests, so that `run` returns. Callable from any thread."""
        self._stopped = True
        self._stop()

    def run(self, say: Say) -> None:
        """Run the entry; sends `started` first and `finished` last, also after an error."""
        say({"status": "started"})
        with ExitStack() as stack:
            here = self._output
            if not self._shared:
                here = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ownership-")))
            try:
                result = self._result(here / EVIDENCE)
                ending = ending_of(result)
            except HarnessError as error:
                result, ending = None, ending_of_error(error)
            except Exception as error:
                import traceback

                result = None
                ending = _ending("error", f"a bug in the harness: {error!r}", "Defect")
                say(_output("stderr", traceback.format_exc()))
            if result is not None:
                moved = _moved(result.as_json(), str(here), str(self._output))
                result = replace(result, evidence=moved["evidence"])
                say(_output("stdout", "\n".join(self._describe(result)) + "\n"))
                say({"status": "running", "type": "whiteboard", "log": _json(moved)})
            else:
                say(_output("stdout", f"{ending['fail_reason']}\n"))
            if not self._shared:
                for message in sent_files(here, {str(here): str(self._output)}):
                    say(message)
        say(ending)

    def _result(self, evidence: Path) -> RunResult:
        one = self._combination
        host = this_host(self._progress, one.accel, one.qemu)
        case = load_case(one.scenario)
        judging = Judging(one.policy, evidence, load_known_issues(), one.timeout)
        request: KernelRequest = replace(one.request, stored=self._stored)
        with Session(host, judging, SessionOptions(repeat=one.repeat)) as session:
            self._stop = session.stop
            if self._stopped:
                session.stop()
            return session.run(case, request)


def ending_of(result: RunResult) -> Message:
    """Make the `finished` message of a run.

    PASS is pass, a FAIL with only known issues warn, any other FAIL fail, and all else error.
    UNBUILDABLE is an error too, because avocado's cancel does not fail a job.
    """
    if result.verdict is Verdict.PASS:
        return _ending("pass", "")
    if result.verdict is Verdict.FAIL:
        broken = "; ".join(dict.fromkeys(one.text for one in result.findings)) or "contract broken"
        if result.known_issue:
            return _ending("warn", f"known issue: {broken}", "KnownIssue")
        return _ending("fail", broken, "OwnershipBroken")
    hint = f" (hint: {result.hint})" if result.hint else ""
    return _ending("error", f"{result.verdict.name}: {result.reason}{hint}", result.verdict.name)


def ending_of_error(error: HarnessError) -> Message:
    """Make the `finished` message of an entry in which no guest was judged."""
    if isinstance(error, NotApplicableError):
        return _ending("skip", f"not applicable: {error.message}", "NotApplicable")
    kind = "UNBUILDABLE" if isinstance(error, UnbuildableError) else "INCONCLUSIVE"
    return _ending("error", f"{kind}: {str(error).strip()}", kind)


def sent_files(folder: Path, moved: dict[str, str]) -> Iterator[Message]:
    """Yield messages that recreate the files of a folder on the machine of the job.

    Args:
        folder: read recursively, without symlinks.
        moved: paths to replace in verdict.json, with their replacements.
    """
    for place, names, files in os.walk(folder):
        names.sort()
        for name in sorted(files):
            path = Path(place, name)
            if path.is_symlink() or not path.is_file():
                continue
            message = {"status": "running", "type": "file", "path": str(path.relative_to(folder))}
            if name == "verdict.json":
                text = path.read_text()
                for before, after in moved.items():
                    text = text.replace(before, after)
                yield {**message, "log": text.encode()}
                continue
            with path.open("rb") as file:
                yield {**message, "log": file.read(_CHUNK)}
                while chunk := file.read(_CHUNK):
                    yield {**message, "log": chunk}


def encode(message: Message) -> bytes:
    """Encode a message as one line of JSON; bytes in the form of avocado."""
    return json.dumps(message, default=_as_base64).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Decode a line of `encode`.

    Raises:
        ValueError: the line is not a JSON object.
    """
    message = json.loads(line, object_hook=_from_base64)
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message


def _as_base64(value: object) -> dict[str, str]:
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode()}
    raise TypeError(type(value).__name__)


def _from_base64(found: dict[str, Any]) -> Any:
    return base64.b64decode(found[_BYTES]) if _BYTES in found else found


def _ending(result: str, reason: str, kind: str = "") -> Message:
    return {"status": "finished", "result": result, "fail_reason": reason, "fail_class": kind}


def _output(kind: str, text: str) -> Message:
    return {"status": "running", "type": kind, "log": text.encode(errors="replace")}


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _moved(value: Any, before: str, after: str) -> Any:
    """Replace a prefix of all strings of a JSON value."""
    if isinstance(value, str):
        return after + value[len(before) :] if value.startswith(before) else value
    if isinstance(value, list):
        return [_moved(one, before, after) for one in value]
    if isinstance(value, dict):
        return {name: _moved(one, before, after) for name, one in value.items()}
    return value
