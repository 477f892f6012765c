# SPDX-License-Identifier: GPL-2.0-or-later
"""Owners and uses, as scenario files write them; docs/contract.md says what they mean."""

from __future__ import annotations

from typing import Literal

import msgspec

OwnerName = Literal["dax_cxl", "dax_hmem", "nobody"]
Use = Literal["system_ram", "offline", "devdax", "none"]


class Ownership(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who owns a range, and what it is used for."""

    owner: OwnerName
    use: Use = "none"

    def __str__(self) -> str:
        return self.owner if self.use == "none" else f"{self.owner}/{self.use}"
