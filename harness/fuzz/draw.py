# SPDX-License-Identifier: GPL-2.0-or-later
"""Random layouts within the limits of QEMU's CXL devices, hardly any of which is refused.

Hypothesis draws and shrinks them: the simplest value of each choice comes first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from harness.fuzz.draw_devices import (
    GRAIN,
    HIDDEN,
    HIDDEN_DEVICE,
    Draw,
    DrawnTree,
    draw_bridges,
    draw_tree,
    draw_turns,
    size_text,
)

MODULES = ("cxl_acpi", "cxl_pci", "cxl_mem", "dax_hmem", "kmem", "dax_cxl")

# The size of a memory block on x86, in MiB.
_BLOCK = 128

# The content of a slot of a window in the CEDT: devices, a device of the hidden host bridge,
# nothing, or devices that decode less than their host bridge. Then of a window that is not in it.
_KINDS_LISTED = (*("decoded",) * 4, *("lone",) * 3, "hole", "disagree")
_KINDS_UNLISTED = ("decoded", "decoded", "decoded", "hole")

# Missing modules, with those that depend on them; mostly none.
_GONE = (*((),) * 8, ("kmem",), ("cxl_acpi",), ("cxl_pci",), ("cxl_mem", "cxl_pci"))

# Modules that the load does not name, and that other modules may request; mostly none.
_NOT_NAMED = (
    *((),) * 8,
    *(("cxl_pci", "cxl_mem"), ("cxl_mem",), ("cxl_acpi",), ("dax_cxl",), ("dax_hmem",), ("kmem",)),
)

_NO_REGION = (
    {
        "pattern": r"cxl_mem mem\d+: failed to find decoder mapping",
        "reason": "a host bridge decodes more than its device, so no region is assembled",
    },
    {
        "pattern": r"cxl_port endpoint\d+: failed to attach decoder\d+\.\d+ to region\d+: -6",
        "reason": "a host bridge decodes more than its device, so no region is assembled",
    },
)
_NO_WINDOW = {
    "pattern": r"mem\d+:decoder\d+\.\d+ no CXL window for range",
    "reason": "a device decodes where the CEDT mentions no window",
}


@dataclass(frozen=True)
class Layout:
    """The fields of a profile and of a scenario, without the expected owners.

    Attributes:
        scenario: without `profile`; `expect` has only kernel messages.
    """

    profile: dict[str, Any]
    scenario: dict[str, Any]

    @property
    def key(self) -> str:
        """Text that is the same only for equal layouts."""
        return json.dumps([self.profile, self.scenario])


@dataclass
class _Windows:
    """The windows, which are adjacent, in MiB from the start of the first.

    Attributes:
        starts: of each window.
        backed: start and end of each range with memory behind it.
        lines: the kernel messages to expect.
    """

    windows: list[dict[str, Any]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    decoders: list[dict[str, Any]] = field(default_factory=list)
    backed: list[tuple[int, int]] = field(default_factory=list)
    lines: list[dict[str, str]] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.starts[-1] + self.size(-1) if self.windows else 0

    def size(self, number: int) -> int:
        return int(self.windows[number]["size"])

    def window_at(self, at: int) -> int:
        return max(number for number, start in enumerate(self.starts) if start <= at)

    def span(self, decoder: dict[str, Any]) -> tuple[int, int]:
        """Start and end of a decoder."""
        start = self.starts[decoder["window"]] + decoder["offset"]
        return start, start + decoder["size"]

    def back(self, start: int, size: int) -> None:
        """Record a range with memory behind it."""
        end = start + size
        if self.backed and self.backed[-1][1] == start:
            start = self.backed.pop()[0]
        self.backed.append((start, end))

    def expect(self, *lines: dict[str, str]) -> None:
        self.lines += [line for line in lines if line not in self.lines]


@st.composite
def layouts(draw: Draw) -> Layout:
    """Layouts with one to three host bridges and windows, at most 3 GiB behind the windows."""
    tree = draw_tree(draw)
    space = _windows(draw, tree)
    ram_node = draw(st.sampled_from((False, False, True)))
    described = draw(st.sampled_from(("nothing", "nothing", "ranges", "windows")))
    hmat = draw(st.sampled_from((False, True, described != "nothing")))
    spans = _spans(draw, space, apart=hmat and described == "ranges")
    reserved = {f"sr{number}": _position(space, span) for number, span in enumerate(spans)}
    nodes = [{"cpus": 2, "memory": "1G"}]
    if ram_node:
        # Behind 2816 MiB, QEMU puts all but 2 GiB of the RAM above 4 GiB.
        nodes = [{"cpus": 2, "memory": "2304M"}, {"memory": "512M"}]
        if draw(st.booleans()):
            reserved["srnode"] = {"node": 1}
    srat = _srat(draw, space, spans, described, len(nodes), hmat=hmat)
    profile: dict[str, Any] = {"summary": "Drawn by harness fuzz.", "nodes": nodes}
    if draw(st.sampled_from((False, False, True))):
        profile |= {"slots": 2, "maxmem": "8G"}
    if hmat:
        profile["hmat"] = [
            {"initiator": 0, "target": node, "latency": 110 + 100 * node, "bandwidth": "10000M"}
            for node in range(len(nodes))
        ]
    profile["host_bridges"] = draw_bridges(draw, tree)
    profile["windows"] = [_written(window) for window in space.windows]
    if f'"{HIDDEN}"' not in json.dumps(profile["windows"]):
        profile["host_bridges"].pop()
    firmware: dict[str, Any] = {
        "soft_reserved": reserved,
        "decoders": [_written(decoder) for decoder in space.decoders],
    }
    if srat:
        firmware["acpi"] = {"srat": srat}
    scenario = {
        "summary": "Drawn by harness fuzz.",
        "source": "harness fuzz",
        "firmware": firmware,
        "guest": _guest(draw),
        "expect": {"dmesg": space.lines},
    }
    return Layout(profile, scenario)


def _windows(draw: Draw, tree: DrawnTree) -> _Windows:
    space = _Windows()
    listed = [bridge["name"] for bridge in tree.bridges if bridge["name"] != HIDDEN]
    kinds = (
        ["listed", "listed", "unlisted", "interleaved"]
        if len(listed) > 1
        else ["listed", "unlisted"]
    )
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(kinds))
        if kind == "interleaved":
            targets = listed if draw(st.booleans()) else listed[::-1]
        elif kind == "listed":
            targets = [draw(st.sampled_from(listed))]
        else:
            targets = [draw(st.sampled_from((HIDDEN, listed[0])))]
        _window(draw, tree, space, targets, unlisted=kind == "unlisted")
    return space


def _window(
    draw: Draw, tree: DrawnTree, space: _Windows, targets: list[str], *, unlisted: bool
) -> None:
    """Add a window with up to three slots, each with devices behind it or without."""
    kinds = _KINDS_UNLISTED if unlisted else _KINDS_LISTED
    slots: list[tuple[str, tuple[str, ...], int]] = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(kinds))
        devices = (HIDDEN_DEVICE,) if kind == "lone" else draw_turns(draw, tree, targets)
        slots.append((kind, devices, draw(st.integers(1, 3))))
    ways = max(len(targets), *(len(devices) for _, devices, _ in slots))
    start, at = space.end, 0
    parts: list[dict[str, Any]] = []
    number = len(space.windows)
    decoders = []
    backed = []
    for kind, devices, units in slots:
        size = units * GRAIN * ways
        decoder: dict[str, Any] = {"window": number, "offset": at, "size": size}
        if kind == "disagree" and units > 1:
            decoder |= {"size": size - GRAIN * ways, "ports_size": size}
        if kind != "hole" and tree.take(devices, decoder["size"]):
            decoders.append(decoder | {"devices": list(devices)})
            backed.append((start + at, decoder["size"]))
            if "ports_size" in decoder:
                space.expect(*_NO_REGION)
            if unlisted and HIDDEN not in targets:
                space.expect(_NO_WINDOW)
        behind = [HIDDEN] if kind == "lone" else targets
        if parts and parts[-1]["targets"] == behind:
            parts[-1]["size"] += size
        else:
            parts.append({"targets": behind, "size": size})
        at += size
    window: dict[str, Any] = {"targets": targets, "size": at}
    if unlisted:
        window["hidden"] = True
    elif len(parts) > 1 or parts[0]["targets"] != targets:
        window["parts"] = parts
    granularity = draw(st.sampled_from((256, 256, 1024, 4096)))
    if granularity != 256:
        window["granularity"] = granularity
    space.windows.append(window)
    space.starts.append(start)
    space.decoders += decoders
    for where, size in backed:
        space.back(where, size)


def _spans(draw: Draw, space: _Windows, *, apart: bool) -> list[tuple[int, int]]:
    """Soft Reserved ranges in MiB from the start of the first window, with memory behind them.

    Args:
        apart: whether ranges are adjacent, with an SRAT entry each.
    """
    spans: list[tuple[int, int]] = []
    counts = (1, 2, 3, 0) if apart else (1, 1, 2, 2, 0)
    for begin, end in space.backed:
        at = begin
        edges = sorted(
            {begin, end, *space.starts}
            | {edge for decoder in space.decoders for edge in space.span(decoder)}
        )
        for _ in range(draw(st.sampled_from(counts))):
            if at > end - _BLOCK:
                break
            starts = [edge for edge in edges if at <= edge < end]
            if apart and at > begin:
                starts = [at, *starts]
            start = _point(draw, starts, at, end - _BLOCK)
            stops = [edge for edge in reversed(edges) if start < edge <= end]
            stop = _ending(space, start, _point(draw, stops, start + _BLOCK, end), end)
            spans.append((start, stop))
            at = stop + (0 if apart else _BLOCK)
    return spans


def _point(draw: Draw, edges: list[int], first: int, last: int) -> int:
    """Draw an edge, or sometimes a memory block, or seldom a place within a block."""
    if edges and draw(st.sampled_from((True, False))):
        return draw(st.sampled_from(edges))
    step = draw(st.sampled_from((*(_BLOCK,) * 7, _BLOCK // 2)))
    return draw(st.sampled_from(range(first, last + 1, step)))


def _ending(space: _Windows, start: int, stop: int, end: int) -> int:
    """The possible end of a range: within its first window, or at the end of a later window."""
    first, last = space.window_at(start), space.window_at(stop - 1)
    while last > first and space.starts[last] + space.size(last) > end:
        last -= 1
    whole = space.starts[last] + space.size(last)
    return min(stop, whole) if last == first else whole


def _position(space: _Windows, span: tuple[int, int]) -> dict[str, Any]:
    first, last = space.window_at(span[0]), space.window_at(span[1] - 1)
    offset = span[0] - space.starts[first]
    position: dict[str, Any] = {"window": first}
    if offset:
        position["offset"] = size_text(offset)
    if last > first:
        position["last_window"] = last
    elif span != (space.starts[first], space.starts[first] + space.size(first)):
        position["size"] = size_text(span[1] - span[0])
    return position


def _srat(
    draw: Draw,
    space: _Windows,
    spans: list[tuple[int, int]],
    described: str,
    node: int,
    *,
    hmat: bool,
) -> list[dict[str, Any]]:
    """SRAT entries for ranges or windows, each with its own node.

    Memory outside of the windows in the CEDT always needs an entry: kmem uses no memory without a
    node. With a HMAT, all memory of an entry may get a dax device, so an entry must not cover a
    place without memory.
    """
    listed = [not window.get("hidden") for window in space.windows]
    pieces: list[tuple[int, int, int]] = []
    if described == "ranges":
        for number, (start, end) in enumerate(spans):
            for window in range(space.window_at(start), space.window_at(end - 1) + 1):
                begin = space.starts[window]
                piece = max(start, begin), min(end, begin + space.size(window))
                pieces.append((*piece, node + number))
    else:
        for window, begin in enumerate(space.starts):
            end = begin + space.size(window)
            inside = [span for span in spans if span[0] < end and begin < span[1]]
            whole = any(a <= begin and end <= b for a, b in space.backed)
            if not inside or (listed[window] and described == "nothing"):
                continue
            if whole or not hmat:
                pieces.append((begin, end, node + window))
            else:
                pieces += [(max(a, begin), min(b, end), node + window) for a, b in inside]
    entries = []
    for start, end, number in pieces:
        window = space.window_at(start)
        entry: dict[str, Any] = {"window": window, "node": number}
        if start != space.starts[window]:
            entry["offset"] = size_text(start - space.starts[window])
        if end != space.starts[window] + space.size(window):
            entry["size"] = size_text(end - start)
        entries.append(entry)
    if entries and draw(st.sampled_from((False, False, False, True))):
        entries = [entry | {"hotplug": True} for entry in entries]
    return entries


def _guest(draw: Draw) -> dict[str, Any]:
    gone = draw(st.sampled_from(_GONE))
    order = draw(st.permutations(MODULES))
    not_named = draw(st.sampled_from(_NOT_NAMED))
    guest: dict[str, Any] = {"load": [name for name in order if name not in {*gone, *not_named}]}
    if gone:
        guest["missing"] = list(gone)
    return guest


def _written(values: dict[str, Any]) -> dict[str, Any]:
    """Format sizes in MiB for a file, without offsets of 0."""
    shown: dict[str, Any] = {}
    for name, value in values.items():
        if name == "parts":
            shown[name] = [_written(part) for part in value]
        elif name in ("size", "offset", "ports_size"):
            if value:
                shown[name] = size_text(value)
        else:
            shown[name] = value
    return shown
