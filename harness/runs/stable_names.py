# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of devices that do not depend on who was first.

Linux numbers CXL memory devices, endpoints and regions, and the dax devices of regions, in the
order in which they appear, and `cxl_pci` probes its devices side by side (Linux, drivers/cxl/pci.c,
PROBE_PREFER_ASYNCHRONOUS): `mem0` of one guest is `mem1` of another. Each is named here by where it
is instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

_LINK = re.compile(r"(?P<name>(?:cxl|dax)/devices/\S+) -> (?P<target>\S+)$", re.MULTILINE)
_BLOCK = re.compile(
    r"^ *(?P<at>[0-9a-f]+)-[0-9a-f]+ : (?P<name>(?:endpoint|port)\d+)$", re.MULTILINE
)
_VALUE = re.compile(
    r"^(?:cxl|dax)/devices/(?P<name>[a-z]+[\d.]+)/resource:0x(?P<at>[0-9a-f]+)$", re.MULTILINE
)
_DECODER = re.compile(r"decoder\d+\.(\d+)")


@dataclass(frozen=True)
class StableNames:
    """What the devices of one observation are called, by the names that Linux gave them."""

    names: Mapping[str, str]

    def rename(self, text: str) -> str:
        """A text with all of these devices under their stable names."""
        return self._pattern.sub(lambda match: self.names[match[0]], text) if self.names else text

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest = sorted(self.names, key=len, reverse=True)
        known = "|".join(re.escape(name) for name in longest)
        return re.compile(rf"(?<![\w.@-])(?:{known})(?![\w@]|\.\d)")


def stable_names(sections: Mapping[str, str]) -> StableNames:
    """The names in these sections of an observation; what cannot be told apart keeps its name.

    A memory device is named by its PCI function, a port or endpoint by the address of its
    registers, a region or dax device by its memory, all others by what they belong to.
    """
    names: dict[str, str] = {}
    for match in _BLOCK.finditer(sections.get("iomem", "")):
        kind = match["name"].rstrip("0123456789")
        names[match["name"]] = f"{kind}@{match['at']}"
    values = sections.get("cxl_values", "") + sections.get("dax_values", "")
    for match in _VALUE.finditer(values):
        kind = match["name"].rstrip("0123456789.")
        names[match["name"]] = f"{kind}@{int(match['at'], 16):x}"
    links = sections.get("cxl_links", "") + sections.get("dax_links", "")
    found = [(match["name"], match["target"].split("/")) for match in _LINK.finditer(links)]
    for link, path in found:
        name, above = path[-1], path[-2] if len(path) > 1 else ""
        if link.endswith("/driver"):
            continue
        if re.fullmatch(r"mem\d+", name):
            names[name] = f"mem@{above}"
        elif re.fullmatch(r"dax_region\d+", name) and above in names:
            names[name] = f"dax_{names[above]}"
        elif re.fullmatch(r"hmem\.\d+", above) and name in names:
            names[above] = f"hmem@{names[name].partition('@')[2]}"
    for _link, path in found:
        decoder = _DECODER.fullmatch(path[-1])
        if decoder and len(path) > 1 and path[-2] in names:
            names[path[-1]] = f"{names[path[-2]]}.decoder{decoder[1]}"
    return StableNames(names)
