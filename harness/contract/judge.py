# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare an observation with the expected owners and the contract."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from msgspec import structs

from harness.contract.dmesg import BEFORE_STEPS, KernelWarning, kernel_warnings
from harness.contract.expected import Expected
from harness.contract.observation import Observation
from harness.contract.observed_owners import disagreements, double_claims, owner_of, pieces_of
from harness.contract.result import Finding, OwnedRange, Piece, Verdict
from harness.platform.firmware_state import FirmwareState, NamedRange
from harness.platform.memory_range import MemoryRange
from harness.scenario.owner import Ownership

_ADDRESSES = re.compile(r"(?:0x)?([0-9a-f]{6,16})-(?:0x)?([0-9a-f]{6,16})")
_MOST_LINES = 12


@dataclass(frozen=True)
class Judgement:
    """The verdict on an observation.

    Attributes:
        verdict: PASS without findings, else FAIL.
        owners: every range that has an expected owner.
        findings: violations of the contract.
        earlier: kernel warnings from before the first step, which do not count.
    """

    verdict: Verdict
    owners: tuple[OwnedRange, ...]
    findings: tuple[Finding, ...]
    earlier: tuple[KernelWarning, ...] = ()


def judge(
    observation: Observation,
    state: FirmwareState,
    expected: Expected,
    allowed: Sequence[re.Pattern[str]] = (),
    *,
    boot_counts: bool = False,
) -> Judgement:
    """Compare an observation with the contract.

    Args:
        observation: the state of the guest.
        state: the firmware state, at real addresses.
        expected: the expected owners.
        allowed: kernel messages that do not count.
        boot_counts: whether the boot is a step of the scenario, as with built-in drivers.
    """
    everything = kernel_warnings(observation.dmesg, allowed)
    earlier = () if boot_counts else tuple(one for one in everything if _is_early(one))
    warnings = tuple(one for one in everything if one not in earlier)
    owners = _owned_ranges(observation, state, expected)
    regions = () if expected.no_region else state.regions()
    findings = [
        *_about_owners(owners, state, expected, observation),
        *(_left_regions(observation) if expected.no_region else ()),
        *_unexpected_devices(state, regions, observation),
        *_undecoded(observation),
    ]
    findings = [_with_evidence(finding, observation, warnings) for finding in findings]
    findings += [*disagreements(observation), *map(_of_warning, warnings)]
    verdict = Verdict.FAIL if findings else Verdict.PASS
    return Judgement(verdict, owners, tuple(findings), earlier)


def _owned_ranges(
    observation: Observation, state: FirmwareState, expected: Expected
) -> tuple[OwnedRange, ...]:
    return tuple(
        OwnedRange(
            named.name,
            named.range,
            expected.owners[named.name],
            pieces_of(named.range, observation),
        )
        for named in state.judged_ranges()
        if named.name in expected.owners
    )


def _about_owners(
    owners: Iterable[OwnedRange],
    state: FirmwareState,
    expected: Expected,
    observation: Observation,
) -> Iterator[Finding]:
    reserved = {one.name for one in state.kernel_ranges()}
    for owned in owners:
        for piece in owned.wrong_pieces():
            stated_at = expected.stated_at.get(owned.name, "")
            region = owned.name not in reserved
            rule = _broken_rule(owned.expected, piece, stated=bool(stated_at), region=region)
            yield _misowned(owned, piece, rule, stated_at)
        for part, claims in double_claims(owned.range, observation):
            text = f"{owned.name}: claimed twice, by {claims}"
            yield Finding("1", text, part, kind="double_claim", subject=owned.name)


def _is_early(warning: KernelWarning) -> bool:
    # A trace that reaches into the first step may have more in it than the boot's.
    return {warning.record.phase, warning.until or warning.record.phase} <= {*BEFORE_STEPS}


def _of_warning(warning: KernelWarning) -> Finding:
    return Finding(
        "6",
        str(warning),
        dmesg=(warning.line,),
        phase=warning.record.phase or None,
        kind=warning.kind,
        subject=warning.subject,
    )


def _broken_rule(expected: Ownership, piece: Piece, *, stated: bool, region: bool) -> str:
    if (piece.owner, piece.use) == (expected.owner, expected.use):
        return "node"
    if piece.owner == expected.owner:
        return "use"
    if stated:
        return "expect"
    if region:
        return "5"
    if piece.owner == "nobody":
        return "1"
    return "2" if expected.owner == "dax_cxl" else "3"


def _misowned(owned: OwnedRange, piece: Piece, rule: str, stated_at: str) -> Finding:
    expected, found = owned.expected, piece.ownership
    texts = (str(expected), str(found))
    if rule == "node":
        texts = (f"NUMA node {expected.node}", _node(piece.node))
        found = structs.replace(found, node=piece.node)
    name = f"{owned.name} ({stated_at})" if stated_at else owned.name
    stranded = " (stranded)" if piece.owner == "nobody" else ""
    return Finding(
        rule,
        f"{name}: expected {texts[0]}, found {texts[1]}{stranded}, by {piece.via}",
        piece.range,
        kind=rule if rule in ("node", "use") else "owner",
        subject=owned.name,
        expected=expected,
        observed=found,
    )


def _node(node: int | None) -> str:
    return "no NUMA node" if node is None else f"NUMA node {node}"


def _left_regions(observation: Observation) -> Iterator[Finding]:
    """Every region that is left where all of them must be gone, by sysfs or by iomem."""
    left = {one.name: one.range for one in observation.regions}
    for entry in observation.iomem.named(r"region\d+"):
        left[entry.name] = left.get(entry.name) or entry.range
    for name, span in left.items():
        text = f"{name} is left, but CXL must be given up, with every region"
        yield Finding("3", text, span, kind="region_left", subject=name)


def _unexpected_devices(
    state: FirmwareState, regions: Iterable[NamedRange], observation: Observation
) -> Iterator[Finding]:
    """Parts of dax devices where none may be."""
    allowed = [one.range for one in (*state.soft_reserved, *regions)]
    for device in observation.dax:
        for outside in (part for span in device.ranges for part in span.minus(allowed)):
            in_room = any(outside.overlaps(one) for one in state.hotplug_room)
            what = "memory hotplug room" if in_room else "neither Soft Reserved nor a region"
            yield Finding(
                "4",
                f"{device.name} of {device.parent} covers {what}",
                outside,
                kind="device_in_hotplug_room" if in_room else "device_on_other_memory",
                subject=device.name,
                observed=Ownership(owner=owner_of(device)),
            )


def _undecoded(observation: Observation) -> Iterator[Finding]:
    for one in observation.undecoded:
        yield Finding("decode", one.text, one.range, kind="undecoded")


def _with_evidence(
    finding: Finding, observation: Observation, warnings: Sequence[KernelWarning]
) -> Finding:
    """Add the lines of /proc/iomem and the kernel messages about the finding's range."""
    if finding.range is None:
        return finding
    return replace(
        finding,
        iomem=observation.iomem.within(finding.range).lines(),
        dmesg=_belonging(finding.range, observation, warnings),
    )


def _belonging(
    span: MemoryRange, observation: Observation, warnings: Sequence[KernelWarning]
) -> tuple[str, ...]:
    """The warnings about a range, by address or by the name of a device or region in it."""
    names = {
        entry.name
        for entry in observation.iomem.within(span).walk()
        if re.fullmatch(r"(dax\d+\.\d+|region\d+)", entry.name)
    }
    for device in observation.dax:
        if any(one.overlaps(span) for one in device.ranges):
            names.update((device.name, *re.findall(r"hmem\.\d+|region\d+", device.path)))
    found = []
    for one in warnings:
        text = one.record.text
        spans = [(int(a, 16), int(b, 16)) for a, b in _ADDRESSES.findall(text)]
        near = any(a <= span.end and span.start <= b for a, b in spans if a <= b)
        if near or any(re.search(rf"(\b|_){re.escape(name)}\b", text) for name in names):
            found.append(one.line)
    return tuple(found[:_MOST_LINES])
