# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as KernelCI's database takes them: KCIDB JSON, version 5.3 of its schema.

Source: the package `kcidb-io`, against whose schema the tests hold what is written here.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from harness.contract.result import RunResult, Verdict
from harness.reports.report_data import configs_of, outcome_of, telling_findings
from harness.runs.result_files import Manifest, SourceFacts, StoredRun

ORIGIN = "cxl_ownership"
VERSION = {"major": 5, "minor": 3}
_MOST_LOG = 16384
# KCIDB distinguishes tests that broke off (ERROR) from tests that could not be started (MISS).
_STATUS = {
    Verdict.PASS: "PASS",
    Verdict.FAIL: "FAIL",
    Verdict.INCONCLUSIVE: "ERROR",
    Verdict.UNBUILDABLE: "MISS",
}
_COMMIT = re.compile(r"[0-9a-f]{40}")


def kcidb_report(runs: Sequence[StoredRun], origin: str = ORIGIN) -> dict[str, Any]:
    """A report with checkouts, builds, tests, and the known issues that were met.

    Args:
        runs: the results.
        origin: the name of the CI system, of small letters, digits and underscores.
    """
    checkouts: dict[str, dict[str, Any]] = {}
    builds: dict[str, dict[str, Any]] = {}
    tests: dict[str, dict[str, Any]] = {}
    issues: dict[str, dict[str, Any]] = {}
    incidents: dict[str, dict[str, Any]] = {}
    for run in runs:
        checkout = _checkout(run, origin)
        checkouts.setdefault(checkout["id"], checkout)
        build = _build(run, origin, checkout["id"])
        builds.setdefault(build["id"], build)
        test = _test(run, origin, build["id"])
        while test["id"] in tests:  # results without evidence have no name of their own
            test["id"] = _id(origin, test["id"])
        tests[test["id"]] = test
        if run.record.known_issue:
            issue = _issue(run.record, origin)
            issues.setdefault(issue["id"], issue)
            incident = {
                "id": _id(origin, issue["id"], test["id"]),
                "origin": origin,
                "issue_id": issue["id"],
                "issue_version": issue["version"],
                "test_id": test["id"],
                "present": True,
            }
            incidents[incident["id"]] = incident
    lists = {
        "checkouts": checkouts,
        "builds": builds,
        "tests": tests,
        "issues": issues,
        "incidents": incidents,
    }
    return {"version": VERSION, **{name: list(by.values()) for name, by in lists.items() if by}}


def _id(origin: str, *parts: object) -> str:
    return f"{origin}:{hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]}"


def _checkout(run: StoredRun, origin: str) -> dict[str, Any]:
    record = run.record
    source = (run.manifest and run.manifest.source) or SourceFacts()
    base = _text(record.request.spec)
    patches = _patches(run)
    series = record.request.series
    checkout: dict[str, Any] = {
        "id": _id(origin, base, source.tree, record.kernel.release, patches or series),
        "origin": origin,
        "comment": f"Linux {record.kernel.release or 'of unknown version'} from {base}"
        + (f" with {_text(series)}" if series else ""),
    }
    if base.removeprefix("build:").startswith("debian:"):
        checkout["tree_name"] = "debian"
    # A kernel that was not built has no manifest: then the SPEC may say it.
    commit = source.commit or ("" if run.manifest else base.rpartition("@")[2])
    if _COMMIT.fullmatch(commit) and not source.dirty:
        checkout["git_commit_hash"] = commit
    if patches:
        lines = "".join(f"{one}\n" for one in patches)
        checkout["patchset_hash"] = hashlib.sha256(lines.encode()).hexdigest()
    elif not series:
        checkout["patchset_hash"] = ""
    if record.verdict is not Verdict.UNBUILDABLE:
        checkout["valid"] = True
    misc = {key: value for key, value in asdict(source).items() if value}
    if misc:
        checkout["misc"] = {"source": _plain(misc)}
    return checkout


def _patches(run: StoredRun) -> list[str]:
    """The digests of the patches that were applied, if they are known."""
    series = run.manifest.series if run.manifest else None
    return [patch.sha256 for patch in series.patches] if series else []


def _build(run: StoredRun, origin: str, checkout: str) -> dict[str, Any]:
    record, manifest = run.record, run.manifest or Manifest()
    identity = run.kernel.identity or (record.kernel.config_sha256, record.spec)
    unbuildable = record.verdict is Verdict.UNBUILDABLE
    build: dict[str, Any] = {
        "id": _id(origin, checkout, identity, unbuildable),
        "checkout_id": checkout,
        "origin": origin,
        "architecture": "x86_64",
        "comment": _text(record.spec),
        "config_name": _text(configs_of(record)) or "as its source has it",
    }
    if unbuildable:
        build["status"] = "FAIL"
        build["log_excerpt"] = _text(f"{record.reason}\n{record.hint}")[-_MOST_LOG:]
    elif record.kernel.release:
        build["status"] = "PASS"
    if manifest.toolchain.version:
        build["compiler"] = _text(manifest.toolchain.version[0])
    if manifest.build.seconds is not None:
        build["duration"] = manifest.build.seconds
    misc = {
        "identity": run.kernel.identity,
        "config_sha256": record.kernel.config_sha256,
        "packages": _plain(manifest.packages),
    }
    build["misc"] = {key: value for key, value in misc.items() if value}
    return build


def _test(run: StoredRun, origin: str, build: str) -> dict[str, Any]:
    record = run.record
    qemu = _text(run.kernel.qemu.version_text or "of unknown version")
    test: dict[str, Any] = {
        "id": _id(origin, build, record.scenario, record.policy, record.load_text, run.name),
        "build_id": build,
        "origin": origin,
        "path": f"cxl_ownership.{re.sub(r'[^a-zA-Z0-9_-]', '_', record.scenario) or '_'}",
        "status": _STATUS[record.verdict],
        "environment": {
            "comment": f"QEMU {qemu}, {record.accel or 'no accelerator'}",
            "misc": {
                "qemu": qemu,
                "accel": record.accel,
                "start": record.start or "cold",
                "kernel_command_line": _text(run.kernel.command_line),
            },
        },
        "misc": _plain(
            {
                "policy": record.policy,
                "load": record.load_text,
                "known_issue": outcome_of(record) == "KNOWN",
                "owners": [
                    {
                        "name": one.name,
                        "range": str(one.range),
                        "expected": str(one.expected),
                        "observed": [f"{piece.range} {piece.ownership}" for piece in one.observed],
                    }
                    for one in record.owners
                ],
                "rules_broken": list(dict.fromkeys(one.rule for one in record.findings)),
                "timings": record.timings,
                "reproduce": record.command,
                "evidence": record.evidence,
            }
        ),
    }
    comment = record.reason or next((one.text for one in record.findings), "")
    if comment:
        test["comment"] = _text(comment)
    if record.seconds is not None:
        test["duration"] = record.seconds
        if run.ended is not None:
            begun = time.gmtime(run.ended - record.seconds)
            test["start_time"] = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", begun)
    excerpt = _excerpt(record)
    if excerpt:
        test["log_excerpt"] = excerpt
    return test


def _excerpt(record: RunResult) -> str:
    lines: list[str] = []
    for one in telling_findings(record.findings):
        lines += [f"{one.title}", f"{one.range or ''} {one.text}".strip(), *one.iomem, *one.dmesg]
    return _text("\n".join(lines))[:_MOST_LOG]


def _issue(record: RunResult, origin: str) -> dict[str, Any]:
    return {
        "id": _id(origin, "known issue", record.scenario, record.known_issue),
        "version": 1,
        "origin": origin,
        "report_subject": _text(f"{record.scenario}: a known failure"),
        "culprit": {"code": True, "tool": False, "harness": False},
        "comment": _text(record.known_issue),
    }


def _text(raw: object) -> str:
    """Text without the letter that the schema forbids."""
    return str(raw).replace("\0", "\ufffd")


def _plain(raw: Any) -> Any:
    """The same, without that letter anywhere in it."""
    if isinstance(raw, dict):
        return {_text(key): _plain(value) for key, value in raw.items()}
    if isinstance(raw, (list, tuple)):
        return [_plain(one) for one in raw]
    return _text(raw) if isinstance(raw, str) else raw
