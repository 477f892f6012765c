# SPDX-License-Identifier: GPL-2.0-or-later
"""The judge: an observation against the expected owners and the contract."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from msgspec import structs

from harness.contract.boot_phases import BEFORE_STEPS
from harness.contract.dmesg import Complaint, complaints
from harness.contract.observation import Observation
from harness.contract.observed_owners import disagreements, double_claims, owner_of, pieces_of
from harness.contract.result import Finding, OwnedRange, Piece, Verdict
from harness.platform.firmware_state import FirmwareState, NamedRange
from harness.platform.memory_range import MemoryRange
from harness.scenario.scenario import ExpectedLine, Ownership

_ADDRESSES = re.compile(r"(?:0x)?([0-9a-f]{6,16})-(?:0x)?([0-9a-f]{6,16})")
_MOST_LINES = 12


@dataclass(frozen=True)
class Judgement:
    """The verdict on an observation: PASS or FAIL, and why.

    Attributes:
        verdict: PASS without findings.
        owners: every range that somebody should own.
        findings: what broke the contract.
        earlier: complaints from before the first step, which do not count.
    """

    verdict: Verdict
    owners: tuple[OwnedRange, ...]
    findings: tuple[Finding, ...]
    earlier: tuple[Complaint, ...] = ()


def judge(
    observation: Observation,
    state: FirmwareState,
    expected: Mapping[str, Ownership],
    expected_lines: Sequence[ExpectedLine] = (),
    *,
    quirks: Sequence[re.Pattern[str]] = (),
    boot_counts: bool = False,
    no_region: bool = False,
    stated_at: Mapping[str, str] = MappingProxyType({}),
) -> Judgement:
    """Hold an observation against the contract.

    Args:
        observation: what was read from the guest.
        state: what the firmware left, at real addresses.
        expected: owner by name of Soft Reserved range or decoder.
        expected_lines: kernel messages that do not count.
        quirks: more of them, which are QEMU's doing.
        boot_counts: whether the boot is a step of the scenario: with drivers built in, it is.
        no_region: whether no region may be left, see `leaves_no_region`.
        stated_at: fields of the scenario whose owners replace the contract's, by name.
    """
    allowed = [*(re.compile(line.pattern) for line in expected_lines), *quirks]
    everything = complaints(observation.dmesg, allowed)
    earlier = () if boot_counts else tuple(one for one in everything if _is_early(one))
    complained = tuple(one for one in everything if one not in earlier)

    def with_evidence(finding: Finding) -> Finding:
        return _with_evidence(finding, observation, complained)

    findings: list[Finding] = []
    owners: list[OwnedRange] = []
    reserved = {one.name for one in state.kernel_ranges()}
    for named in state.judged_ranges():
        if named.name not in expected:
            continue
        wanted = expected[named.name]
        pieces = pieces_of(named.range, observation)
        owned = OwnedRange(named.name, named.range, wanted, pieces)
        owners.append(owned)
        for piece in owned.wrong_pieces():
            at = stated_at.get(named.name, "")
            rule = _broken_rule(wanted, piece, stated=bool(at), region=named.name not in reserved)
            findings.append(with_evidence(_misowned(owned, piece, rule, at)))
        findings += (with_evidence(one) for one in _claimed_twice(named, observation))
    if no_region:
        findings += (with_evidence(one) for one in _left_regions(observation))
    regions = () if no_region else state.regions()
    others = (*_strangers(state, regions, observation), *_undecoded(observation))
    findings += (with_evidence(one) for one in others)
    findings.extend(disagreements(observation))
    findings.extend(map(_complained_of, complained))
    verdict = Verdict.FAIL if findings else Verdict.PASS
    return Judgement(verdict, tuple(owners), tuple(findings), earlier)


def _is_early(complaint: Complaint) -> bool:
    # A trace that reaches into the first step may have more in it than the boot's.
    return {complaint.record.phase, complaint.until or complaint.record.phase} <= {*BEFORE_STEPS}


def _complained_of(complaint: Complaint) -> Finding:
    return Finding(
        "6",
        str(complaint),
        dmesg=(complaint.line,),
        phase=complaint.record.phase or None,
        kind=complaint.kind,
        subject=complaint.subject,
    )


def _broken_rule(wanted: Ownership, piece: Piece, *, stated: bool, region: bool) -> str:
    if (piece.owner, piece.use) == (wanted.owner, wanted.use):
        return "node"
    if piece.owner == wanted.owner:
        return "use"
    if stated:
        return "expect"
    if region:
        return "5"
    if piece.owner == "nobody":
        return "1"
    return "2" if wanted.owner == "dax_cxl" else "3"


def _misowned(owned: OwnedRange, piece: Piece, rule: str, stated_at: str) -> Finding:
    wanted, found = owned.expected, piece.ownership
    texts = (str(wanted), str(found))
    if rule == "node":
        texts = (f"NUMA node {wanted.node}", _node(piece.node))
        found = structs.replace(found, node=piece.node)
    name = f"{owned.name} ({stated_at})" if stated_at else owned.name
    stranded = " (stranded)" if piece.owner == "nobody" else ""
    return Finding(
        rule,
        f"{name}: expected {texts[0]}, found {texts[1]}{stranded}, by {piece.via}",
        piece.range,
        kind=rule if rule in ("node", "use") else "owner",
        subject=owned.name,
        expected=wanted,
        observed=found,
    )


def _node(node: int | None) -> str:
    return "no NUMA node" if node is None else f"NUMA node {node}"


def _claimed_twice(named: NamedRange, observation: Observation) -> Iterator[Finding]:
    for part, claims in double_claims(named.range, observation):
        text = f"{named.name}: claimed twice, by {claims}"
        yield Finding("1", text, part, kind="double_claim", subject=named.name)


def _left_regions(observation: Observation) -> Iterator[Finding]:
    """Every region that is left where all of them must be gone, by sysfs or by iomem."""
    left = {one.name: one.range for one in observation.regions}
    for entry in observation.iomem.named(r"region\d+"):
        left[entry.name] = left.get(entry.name) or entry.range
    for name, span in left.items():
        text = f"{name} is left, but CXL must be given up, with every region"
        yield Finding("3", text, span, kind="region_left", subject=name)


def _strangers(
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
    finding: Finding, observation: Observation, complained: Sequence[Complaint]
) -> Finding:
    """Add the lines of /proc/iomem and the kernel messages about the finding's range."""
    if finding.range is None:
        return finding
    return replace(
        finding,
        iomem=observation.iomem.within(finding.range).lines(),
        dmesg=_belonging(finding.range, observation, complained),
    )


def _belonging(
    span: MemoryRange, observation: Observation, complained: Sequence[Complaint]
) -> tuple[str, ...]:
    """The complaints about a range, by address or by the name of something that lies in it."""
    names = {
        entry.name
        for entry in observation.iomem.within(span).walk()
        if re.fullmatch(r"(dax\d+\.\d+|region\d+)", entry.name)
    }
    for device in observation.dax:
        if any(one.overlaps(span) for one in device.ranges):
            names.update((device.name, *re.findall(r"hmem\.\d+|region\d+", device.path)))
    found = []
    for one in complained:
        text = one.record.text
        spans = [(int(a, 16), int(b, 16)) for a, b in _ADDRESSES.findall(text)]
        near = any(a <= span.end and span.start <= b for a, b in spans if a <= b)
        if near or any(re.search(rf"(\b|_){re.escape(name)}\b", text) for name in names):
            found.append(one.line)
    return tuple(found[:_MOST_LINES])
