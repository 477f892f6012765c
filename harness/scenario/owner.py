# SPDX-License-Identifier: GPL-2.0-or-later
"""Owners and uses of ranges, as scenario files write them; docs/contract.md defines them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

OwnerName = Literal["dax_cxl", "dax_hmem", "firmware_ram", "nobody"]
Use = Literal["system_ram", "offline", "devdax", "none"]

# SRAT entries divide a range into parts that are numbered: sr0[0], sr0[1].
RangeName = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]*(\[\d+\])?\Z", max_length=36)]


class Ownership(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The owner and the use of a range.

    Attributes:
        node: the NUMA node of its memory, as Linux numbers nodes; None if it is not stated.
    """

    owner: OwnerName
    use: Use = "none"
    node: Annotated[int, msgspec.Meta(ge=0)] | None = None

    def __str__(self) -> str:
        return self.owner if self.use == "none" else f"{self.owner}/{self.use}"
