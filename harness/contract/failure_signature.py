# SPDX-License-Identifier: GPL-2.0-or-later
"""What two failures have in common although names, numbers and addresses differ."""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.contract.result import Finding, RunResult

_WHO = re.compile(r"^\w+: ")
_PHASE = re.compile(r" \(during [^)]*\)$")
_USE = re.compile(r"\b(dax_cxl|dax_hmem)/\w+")
_BY = re.compile(r", by .*$")
# The codes of errors stay: -16 is another failure than -12.
_NUMBER = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{6,16}\b|(?<![-\d])\d+")


def signature(findings: Iterable[Finding]) -> frozenset[str]:
    """The rules that findings broke, each with what happened, without names and numbers.

    Of a range: who should own it and who does, with the use only where that is what is wrong. Of a
    kernel message: its first line.
    """
    return frozenset(f"rule {one.rule}: {_essence(one)}" for one in findings)


def _essence(finding: Finding) -> str:
    text = finding.text.splitlines()[0] if finding.text else ""
    if finding.rule == "6":
        return _NUMBER.sub("N", _PHASE.sub("", text))
    text = _BY.sub("", _WHO.sub("", text))
    return _NUMBER.sub("N", text if finding.rule == "use" else _USE.sub(r"\1", text))


def failures_of(result: RunResult) -> tuple[str, ...]:
    """What broke in a run: for each finding its rule and the names of the ranges it is about.

    The text of a finding, with its numbers and times, is not part of it: two kernels that strand
    the same range fail alike.
    """
    names = []
    for finding in result.findings:
        place = finding.range
        owned = [one.name for one in result.owners if place and one.range.overlaps(place)]
        where = " ".join(owned) or (str(place) if place else "")
        rule = f"rule {finding.rule}" if finding.rule.isdigit() else finding.rule
        names.append(f"{rule} {where}".strip())
    return tuple(dict.fromkeys(names))
