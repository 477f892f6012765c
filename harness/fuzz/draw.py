# SPDX-License-Identifier: GPL-2.0-or-later
"""Random layouts inside what the hardware model allows, built so that hardly any is refused.

Hypothesis draws and shrinks them: of each choice, the simplest stands first.
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

# MiB of a memory block of x86.
_BLOCK = 128

# What is behind a slot of a window: devices, a device of the hidden host bridge, nothing, devices
# of which the host bridge decodes more.
_KINDS_TOLD = (*("decoded",) * 4, *("lone",) * 3, "hole", "disagree")
_KINDS_UNTOLD = ("decoded", "decoded", "decoded", "hole")

# What may be gone, with what needs it; mostly nothing.
_GONE = (*((),) * 8, ("kmem",), ("cxl_acpi",), ("cxl_pci",), ("cxl_mem", "cxl_pci"))

# What the load may leave to others to ask for.
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
    """A profile and a scenario as their files have them, but for the expected owners.

    Attributes:
        profile: fields of the profile.
        scenario: fields of the scenario; `expect` has only the kernel's messages, and there is
            no `profile`.
    """

    profile: dict[str, Any]
    scenario: dict[str, Any]

    @property
    def key(self) -> str:
        """The same for the same layout."""
        return json.dumps([self.profile, self.scenario])


@dataclass
class _Room:
    """The windows, one directly after the other, in MiB from the first one's start."""

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

    def back(self, start: int, size: int) -> None:
        """Note that there is memory."""
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
    room = _windows(draw, tree)
    ram_node = draw(st.sampled_from((False, False, True)))
    described = draw(st.sampled_from(("nothing", "nothing", "ranges", "windows")))
    hmat = draw(st.sampled_from((False, True, described != "nothing")))
    spans = _spans(draw, room, apart=hmat and described == "ranges")
    reserved = {f"sr{number}": _position(room, span) for number, span in enumerate(spans)}
    nodes = [{"cpus": 2, "memory": "1G"}]
    if ram_node:
        # Behind 2816 MiB, QEMU puts all but 2 GiB of the RAM above 4 GiB.
        nodes = [{"cpus": 2, "memory": "2304M"}, {"memory": "512M"}]
        if draw(st.booleans()):
            reserved["srnode"] = {"node": 1}
    srat = _srat(draw, room, spans, described, len(nodes), hmat=hmat)
    profile: dict[str, Any] = {"summary": "Drawn by harness fuzz.", "nodes": nodes}
    if draw(st.sampled_from((False, False, True))):
        profile |= {"slots": 2, "maxmem": "8G"}
    if hmat:
        profile["hmat"] = [
            {"initiator": 0, "target": node, "latency": 110 + 100 * node, "bandwidth": "10000M"}
            for node in range(len(nodes))
        ]
    profile["host_bridges"] = draw_bridges(draw, tree)
    profile["windows"] = [_written(window) for window in room.windows]
    if f'"{HIDDEN}"' not in json.dumps(profile["windows"]):
        profile["host_bridges"].pop()
    firmware: dict[str, Any] = {
        "soft_reserved": reserved,
        "decoders": [_written(decoder) for decoder in room.decoders],
    }
    if srat:
        firmware["acpi"] = {"srat": srat}
    scenario = {
        "summary": "Drawn by harness fuzz.",
        "source": "harness fuzz",
        "firmware": firmware,
        "guest": _guest(draw),
        "expect": {"dmesg": room.lines},
    }
    return Layout(profile, scenario)


def _windows(draw: Draw, tree: DrawnTree) -> _Room:
    room = _Room()
    told = [bridge["name"] for bridge in tree.bridges if bridge["name"] != HIDDEN]
    kinds = ["told", "told", "untold", "interleaved"] if len(told) > 1 else ["told", "untold"]
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(kinds))
        if kind == "interleaved":
            targets = told if draw(st.booleans()) else told[::-1]
        elif kind == "told":
            targets = [draw(st.sampled_from(told))]
        else:
            targets = [draw(st.sampled_from((HIDDEN, told[0])))]
        _window(draw, tree, room, targets, untold=kind == "untold")
    return room


def _window(draw: Draw, tree: DrawnTree, room: _Room, targets: list[str], *, untold: bool) -> None:
    """Add a window: up to three slots, each with devices behind it, or with nothing."""
    kinds = _KINDS_UNTOLD if untold else _KINDS_TOLD
    slots: list[tuple[str, tuple[str, ...], int]] = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(kinds))
        devices = (HIDDEN_DEVICE,) if kind == "lone" else draw_turns(draw, tree, targets)
        slots.append((kind, devices, draw(st.integers(1, 3))))
    ways = max(len(targets), *(len(devices) for _, devices, _ in slots))
    start, at = room.end, 0
    parts: list[dict[str, Any]] = []
    number = len(room.windows)
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
                room.expect(*_NO_REGION)
            if untold and HIDDEN not in targets:
                room.expect(_NO_WINDOW)
        behind = [HIDDEN] if kind == "lone" else targets
        if parts and parts[-1]["targets"] == behind:
            parts[-1]["size"] += size
        else:
            parts.append({"targets": behind, "size": size})
        at += size
    window: dict[str, Any] = {"targets": targets, "size": at}
    if untold:
        window["hidden"] = True
    elif len(parts) > 1 or parts[0]["targets"] != targets:
        window["parts"] = parts
    granularity = draw(st.sampled_from((256, 256, 1024, 4096)))
    if granularity != 256:
        window["granularity"] = granularity
    room.windows.append(window)
    room.starts.append(start)
    room.decoders += decoders
    for where, size in backed:
        room.back(where, size)


def _spans(draw: Draw, room: _Room, *, apart: bool) -> list[tuple[int, int]]:
    """Soft Reserved ranges, in MiB from the first window's start, none without memory behind it.

    Args:
        draw: draws.
        room: the windows.
        apart: whether ranges follow each other without a gap, each with an SRAT entry.
    """
    spans: list[tuple[int, int]] = []
    counts = (1, 2, 3, 0) if apart else (1, 1, 2, 2, 0)
    for begin, end in room.backed:
        at = begin
        edges = sorted(
            {begin, end, *room.starts}
            | {room.starts[one["window"]] + one["offset"] for one in room.decoders}
            | {room.starts[one["window"]] + one["offset"] + one["size"] for one in room.decoders}
        )
        for _ in range(draw(st.sampled_from(counts))):
            if at > end - _BLOCK:
                break
            starts = [one for one in edges if at <= one < end]
            if apart and at > begin:
                starts = [at, *starts]
            start = _point(draw, starts, at, end - _BLOCK)
            stops = [one for one in reversed(edges) if start < one <= end]
            stop = _ending(room, start, _point(draw, stops, start + _BLOCK, end), end)
            spans.append((start, stop))
            at = stop + (0 if apart else _BLOCK)
    return spans


def _point(draw: Draw, edges: list[int], first: int, last: int) -> int:
    """An edge of something, now and then any memory block's, seldom one within a block."""
    if edges and draw(st.sampled_from((True, False))):
        return draw(st.sampled_from(edges))
    step = draw(st.sampled_from((*(_BLOCK,) * 7, _BLOCK // 2)))
    return draw(st.sampled_from(range(first, last + 1, step)))


def _ending(room: _Room, start: int, stop: int, end: int) -> int:
    """Where a range may end: in the window in which it begins, or with a later one."""
    first, last = room.window_at(start), room.window_at(stop - 1)
    while last > first and room.starts[last] + room.size(last) > end:
        last -= 1
    whole = room.starts[last] + room.size(last)
    return min(stop, whole) if last == first else whole


def _position(room: _Room, span: tuple[int, int]) -> dict[str, Any]:
    first, last = room.window_at(span[0]), room.window_at(span[1] - 1)
    offset = span[0] - room.starts[first]
    position: dict[str, Any] = {"window": first}
    if offset:
        position["offset"] = size_text(offset)
    if last > first:
        position["last_window"] = last
    elif span != (room.starts[first], room.starts[first] + room.size(first)):
        position["size"] = size_text(span[1] - span[0])
    return position


def _srat(
    draw: Draw,
    room: _Room,
    spans: list[tuple[int, int]],
    described: str,
    node: int,
    *,
    hmat: bool,
) -> list[dict[str, Any]]:
    """Entries for ranges or windows, each of a node of its own.

    Memory outside windows needs one in any case: kmem takes nothing without a node. With a HMAT,
    an entry's memory may all get a dax device, so that none may reach where there is no memory.
    """
    told = [not window.get("hidden") for window in room.windows]
    pieces: list[tuple[int, int, int]] = []
    if described == "ranges":
        for number, (start, end) in enumerate(spans):
            for window in range(room.window_at(start), room.window_at(end - 1) + 1):
                begin = room.starts[window]
                piece = max(start, begin), min(end, begin + room.size(window))
                pieces.append((*piece, node + number))
    else:
        for window, begin in enumerate(room.starts):
            end = begin + room.size(window)
            inside = [span for span in spans if span[0] < end and begin < span[1]]
            whole = any(a <= begin and end <= b for a, b in room.backed)
            if not inside or (told[window] and described == "nothing"):
                continue
            if whole or not hmat:
                pieces.append((begin, end, node + window))
            else:
                pieces += [(max(a, begin), min(b, end), node + window) for a, b in inside]
    entries = []
    for start, end, number in pieces:
        window = room.window_at(start)
        entry: dict[str, Any] = {"window": window, "node": number}
        if start != room.starts[window]:
            entry["offset"] = size_text(start - room.starts[window])
        if end != room.starts[window] + room.size(window):
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
    """Sizes in MiB as a file has them; offsets of 0 are left out."""
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
