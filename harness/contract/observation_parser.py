# SPDX-License-Identifier: GPL-2.0-or-later
"""Parse the sections that a guest prints into an Observation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from harness.contract.consistency import contradictions
from harness.contract.dmesg import DmesgError, parse_dmesg
from harness.contract.iomem import IomemError, parse_iomem
from harness.contract.observation import (
    SECTIONS,
    CxlDecoder,
    CxlRegion,
    DaxDevice,
    Observation,
    ObservationError,
)
from harness.platform.memory_range import MemoryRange

_LINK = re.compile(r"l\S+ .* (?P<name>\S+) -> (?P<target>\S+)")
_FOLDER = re.compile(r"d\S+ .* (?P<name>\S+)")
_NUMBER = re.compile(r"0x[0-9a-f]{1,16}|[0-9a-f]{1,20}")
_WORD = re.compile(r"[A-Za-z0-9_]+")


def split_sections(text: str, token: str) -> dict[str, str]:
    """The sections of the guest's `observe`, which starts each with a line `TOKEN NAME`.

    Raises:
        ObservationError: a section is missing or duplicate, or the end is missing.
    """
    sections: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        if line.startswith(f"{token} "):
            name = line[len(token) + 1 :].strip()
            if name in sections or "end" in sections or name not in (*SECTIONS, "end"):
                raise ObservationError(f"section {name!r} is out of order")
            current = sections.setdefault(name, [])
        elif current is not None:
            current.append(line)
    missing = [name for name in (*SECTIONS, "end") if name not in sections]
    if missing:
        raise ObservationError(f"no section {', '.join(missing)}: cut off or not ours")
    return {name: "".join(lines) for name, lines in sections.items()}


def parse_observation(sections: Mapping[str, str]) -> Observation:
    """Read the sections.

    Raises:
        ObservationError: one of them is not what it must be, or two contradict each other.
    """
    try:
        iomem = parse_iomem(sections["iomem"])
        dmesg = parse_dmesg(sections["dmesg"])
        dax_links = _links(sections["dax_links"])
        cxl_links = _links(sections["cxl_links"])
        dax_values = _values(sections["dax_values"], dax_links)
        cxl_values = _values(sections["cxl_values"], cxl_links)
        block_size, blocks = _blocks(sections["memory_blocks"])
        observation = Observation(
            release=sections["release"].strip(),
            iomem=iomem,
            dax=_dax_devices(dax_links, dax_values),
            dax_drivers=tuple(sorted(_folders(sections["dax_links"], "dax/drivers/"))),
            regions=_regions(cxl_links, cxl_values),
            decoders=_decoders(cxl_links, cxl_values),
            cxl_devices=_cxl_devices(cxl_links),
            cxl_drivers=tuple(sorted(_last(name) for name in _folders(sections["cxl_links"], ""))),
            offline=tuple(block for block, state in blocks if state != "online"),
            block_size=block_size,
            modules=tuple(_modules(sections["modules"])),
            cxl_list=_json(sections["cxl_list"], "cxl list"),
            daxctl_list=_json(sections["daxctl_list"], "daxctl list"),
            dmesg=dmesg,
        )
        problems = contradictions(observation, (block for block, _ in blocks))
        if problems:
            raise ObservationError(f"it contradicts itself: {'; '.join(problems)}")
        return observation
    except IomemError as error:
        raise ObservationError(f"/proc/iomem: {error}") from None
    except DmesgError as error:
        raise ObservationError(f"dmesg: {error}") from None
    except (ValueError, KeyError, IndexError) as error:
        if isinstance(error, ObservationError):
            raise
        raise ObservationError(f"sysfs: {error}") from None


def _lines(text: str) -> list[str]:
    """The lines of a section, which ends with the last of them."""
    *lines, last = text.split("\n")
    if last:
        raise ObservationError(f"cut off: {last[:80]!r}")
    return lines


def _links(text: str) -> dict[str, str]:
    links: dict[str, str] = {}
    for line in _lines(text):
        match = _LINK.fullmatch(line)
        if match is None:
            if _FOLDER.fullmatch(line) is None:
                raise ObservationError(f"not a link or folder of sysfs: {line[:80]!r}")
            continue
        name, target = match["name"], match["target"]
        if name in links:
            raise ObservationError(f"duplicate {name}")
        if not name.endswith("/driver") and _last(name) != _last(target):
            raise ObservationError(f"{name} leads to {target}")
        links[name] = target
    return links


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _folders(text: str, prefix: str) -> list[str]:
    matches = (_FOLDER.fullmatch(line) for line in _lines(text))
    return [m["name"].removeprefix(prefix) for m in matches if m and m["name"].startswith(prefix)]


def _values(text: str, links: Mapping[str, str]) -> dict[str, str]:
    """The attributes of the devices that these links lead to, by path."""
    values: dict[str, str] = {}
    for line in _lines(text):
        path, colon, value = line.partition(":")
        if not colon:
            raise ObservationError(f"not a sysfs value: {line[:80]!r}")
        if path in values:
            raise ObservationError(f"duplicate {path}")
        if "/".join(path.split("/")[:3]) not in links:
            raise ObservationError(f"{path} is of a device that does not exist")
        values[path] = value.strip()
    return values


def _number(text: str, base: int) -> int:
    """Parse a number as sysfs prints it; `int` accepts more than that."""
    if _NUMBER.fullmatch(text) is None:
        raise ValueError(f"not a number: {text[:40]!r}")
    return int(text, base)


def _modules(text: str) -> list[str]:
    names = [line.split(" ")[0] for line in _lines(text)]
    for name in names:
        if _WORD.fullmatch(name) is None or names.count(name) > 1:
            raise ValueError(f"not a list of modules: {name[:80]!r}")
    return names


def _dax_devices(links: dict[str, str], values: dict[str, str]) -> tuple[DaxDevice, ...]:
    devices = []
    for link, target in sorted(links.items()):
        match = re.fullmatch(r"dax/devices/(?P<name>[^/]+)", link)
        if match is None:
            continue
        ranges = []
        for path in values:
            mapping = re.fullmatch(rf"({re.escape(link)}/mapping\d+)/(start|end)", path)
            if mapping:
                end = _number(values[f"{mapping[1]}/end"], 16)
                span = MemoryRange(_number(values[f"{mapping[1]}/start"], 16), end)
                if mapping[2] == "start":
                    ranges.append(span)
        size = _number(values[f"{link}/size"], 10)
        if sum(one.size for one in ranges) != size:
            raise ObservationError(f"{match['name']} has size {size}, its mappings differ")
        driver = links.get(f"{link}/driver")
        # sysfs has no such file where the node is negative (drivers/dax/bus.c, dev_dax_visible).
        node = values.get(f"{link}/target_node")
        devices.append(
            DaxDevice(
                name=match["name"],
                ranges=tuple(sorted(ranges)),
                size=size,
                driver=driver.rpartition("/")[2] if driver else None,
                parent=_parent(target),
                path=target.lstrip("./"),
                target_node=None if node is None else _number(node, 10),
            )
        )
    return tuple(devices)


def _parent(target: str) -> str:
    """Which driver made a dax device, from its place among the devices."""
    above = target.split("/")[-2] if "/" in target else ""
    if re.fullmatch(r"dax_region\d+", above):
        return "dax_cxl"
    if re.fullmatch(r"hmem\.\d+", above):
        return "dax_hmem"
    return above


def _regions(links: dict[str, str], values: dict[str, str]) -> tuple[CxlRegion, ...]:
    regions = []
    for link in sorted(links):
        match = re.fullmatch(r"cxl/devices/(?P<name>region\d+)", link)
        if match is None:
            continue
        driver = links.get(f"{link}/driver")
        regions.append(
            CxlRegion(
                name=match["name"],
                range=_range(values.get(f"{link}/resource"), values.get(f"{link}/size")),
                committed=values.get(f"{link}/commit") == "1",
                ways=_number(values.get(f"{link}/interleave_ways", "0"), 10),
                driver=driver.rpartition("/")[2] if driver else None,
            )
        )
    return tuple(regions)


def _cxl_devices(links: dict[str, str]) -> dict[str, str | None]:
    names = [path.removeprefix("cxl/devices/") for path in links if path.count("/") == 2]
    drivers = {name: links.get(f"cxl/devices/{name}/driver") for name in names}
    return {name: _last(driver) if driver else None for name, driver in drivers.items()}


def _decoders(links: dict[str, str], values: dict[str, str]) -> tuple[CxlDecoder, ...]:
    decoders = []
    for link, target in sorted(links.items()):
        match = re.fullmatch(r"cxl/devices/(?P<name>decoder\d+\.\d+)", link)
        if match is None:
            continue
        decoders.append(
            CxlDecoder(
                name=match["name"],
                range=_range(values.get(f"{link}/start"), values.get(f"{link}/size")),
                region=values.get(f"{link}/region", ""),
                depth=target.count("/port") + target.count("/endpoint"),
            )
        )
    return tuple(decoders)


def _range(start: str | None, size: str | None) -> MemoryRange | None:
    if not start or not size:
        return None
    first, count = _number(start, 0), _number(size, 0)
    if count == 0 or first == (1 << 64) - 1:
        return None
    return MemoryRange.of_size(first, count)


def _blocks(text: str) -> tuple[int, list[tuple[MemoryRange, str]]]:
    """The size of memory blocks, and every block with its state."""
    lines = _lines(text)
    if not lines:
        return 1, []
    size = _number(lines[0], 16)
    if not size:
        raise ObservationError("memory blocks have no size")
    found: dict[MemoryRange, str] = {}
    for line in lines[1:]:
        match = re.fullmatch(r"/sys/devices/system/memory/memory(\d{1,16})/state:(\S+)", line)
        if match is None:
            raise ObservationError(f"not a memory block: {line[:80]!r}")
        block = MemoryRange.of_size(int(match[1]) * size, size)
        if block in found:
            raise ObservationError(f"duplicate memory block {match[1]}")
        found[block] = match[2]
    return size, list(found.items())


def _json(text: str, what: str) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ObservationError(f"{what}: {error}") from None
