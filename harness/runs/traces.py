# SPDX-License-Identifier: GPL-2.0-or-later
"""The traces in a result, decoded where the kernel has what that takes."""

from __future__ import annotations

from dataclasses import replace

from harness.contract.result import Finding, RunResult
from harness.core.kernel import Kernel
from harness.runs.evidence import Evidence

_FILE = "decoded.txt"


def with_decoded_traces(result: RunResult, kernel: Kernel, evidence: Evidence) -> RunResult:
    """Decode the traces of all findings, into them and into the evidence; a note where it cannot.

    Args:
        result: what a run found.
        kernel: on which.
        evidence: gets `decoded.txt`.
    """
    # Not imported for a run without a trace, as nearly all are.
    from harness.kernels.build.decode_trace import NotDecodableError, decode_trace, has_code

    findings: list[Finding] = []
    decoded: list[str] = []
    for finding in result.findings:
        lines = [line for text in finding.dmesg for line in text.splitlines()]
        if finding.rule in ("6", "step") and has_code(lines):
            try:
                finding = replace(finding, decoded=decode_trace(kernel, lines))
            except NotDecodableError as error:
                why = f"traces of {kernel.spec} are not decoded: {error.message} ({error.hint})"
                evidence.text(_FILE, f"{why}\n")
                return replace(result, notes=(*result.notes, why))
            decoded += [finding.text, *finding.decoded, ""]
        findings.append(finding)
    if decoded:
        evidence.text(_FILE, "\n".join(decoded))
    return replace(result, findings=tuple(findings))
