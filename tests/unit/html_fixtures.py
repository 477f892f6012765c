# SPDX-License-Identifier: GPL-2.0-or-later
"""Results that try to break out of an HTML report."""

from __future__ import annotations

from typing import Any

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&"
NOW = 1_800_000_000.0


def hostile(result: dict[str, Any]) -> None:
    result["scenario"] = result["request"]["spec"] = HOSTILE
    result["reason"] = result["known_issue"] = HOSTILE
    for one in result["findings"]:
        one.update(text=HOSTILE, iomem=[HOSTILE], dmesg=[HOSTILE], rule=HOSTILE)
    for one in result["owners"]:
        one["name"] = HOSTILE
        one["observed"][0]["via"] = HOSTILE
    result.update(compared=3, differences=[difference(HOSTILE)])


def difference(text: str) -> dict[str, Any]:
    """A difference whose every text is one."""
    apart = {"only_here": [text], "only_there": [f"not {text}"]}
    return {"guest": 2, "evidence": text, "part": text, "others": 2, **apart}
