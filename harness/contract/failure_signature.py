# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare failures of different runs, scenarios and kernels.

Kinds of findings, in addition to the kinds of kernel messages in `dmesg`:

- `owner`, `use`, `node`: a range has another owner, use or NUMA node than expected;
- `double_claim`, `region_left`, `device_in_hotplug_room`, `device_on_other_memory`, `undecoded`;
- `device_…`, `region_…`, `kmem_without_ram`, `ram_without_device`: /proc/iomem and sysfs differ;
- `module_not_loaded`, `command_failed`, `module_held`, `impossible`: a step did not succeed;
- `hang`, `guest_ended`: the guest did not survive a step;
- `different_outcomes`: guests of one scenario ended differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.contract.dmesg import KINDS
from harness.contract.result import Finding, RunResult

_STEPS = ("module_not_loaded", "command_failed", "module_held", "impossible", "hang")
# Numbers in the kernel's and the guest's messages. Error codes stay: -16 is another failure than
# -12.
_NUMBER = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{6,16}\b|(?<![-\d])\d+")


def signature(findings: Iterable[Finding]) -> frozenset[str]:
    """Return what identifies the failures, without names of ranges and devices, and numbers.

    Of a range: its expected and its observed owner, with the use only if that is what is wrong. Of
    a kernel message: its first line, in whatever phase it was printed.
    """
    return frozenset(f"rule {finding.rule}: {_essence(finding)}" for finding in findings)


def failure_at(finding: Finding) -> str:
    """Return the signature of one finding with its range."""
    (failure,) = signature([finding])
    return f"{failure} at {finding.range}" if finding.range else failure


def _essence(finding: Finding) -> str:
    words = finding.kind
    if finding.kind in KINDS or finding.kind in _STEPS:
        words += f": {_NUMBER.sub('N', finding.subject)}"
    if finding.kind == "use":
        words += f": expected {finding.expected}, found {finding.observed}"
    elif finding.kind == "node":
        words += "" if finding.observed and finding.observed.node is not None else ": none"
    else:
        expected, observed = finding.expected, finding.observed
        words += f": expected {expected.owner}" if expected else ""
        words += f", found {observed.owner}" if observed else ""
    in_step = finding.phase if finding.rule != "6" else None
    return f"{words} ({in_step})" if in_step else words


def failures_of(result: RunResult) -> tuple[str, ...]:
    """Return what broke in a run: for each finding its rule and the names of its ranges.

    Two kernels that strand the same range fail alike.
    """
    names = []
    for finding in result.findings:
        place = finding.range
        owned = [one.name for one in result.owners if place and one.range.overlaps(place)]
        where = " ".join(owned) or (str(place) if place else "")
        names.append(f"{finding.rule_name} {where}".strip())
    return tuple(dict.fromkeys(names))
