# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare the errors of wrong files with a table, and list all rows that differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from harness.core.errors import UsageError

# A change of a valid value, the end of the error's place, and a part of its message and hint.
Row = tuple[Any, str, str]


def differences(read: Callable[[Any], object], rows: Iterable[Row]) -> list[str]:
    """Read the value of each row, and describe each row whose error differs from it."""
    found = []
    for value, where, message in rows:
        try:
            read(value)
        except UsageError as error:
            place = str(error.where)
            if not place.endswith(f": {where}" if where else "") or message not in str(error):
                found.append(f"{value!r}: expected {where}: {message}\n    got {error}")
            if error.where is None or ".yaml:" not in place or not error.hint:
                found.append(f"{value!r}: no line or no hint\n    got {error}")
        else:
            found.append(f"{value!r}: no error, expected {where}: {message}")
    return found


def changed(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Set one field, such as `nodes.0.memory`, in nested values; `DELETE` removes it."""
    *above, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    at: Any = values
    for key in above:
        at = at[key]
    if value is DELETE:
        del at[last]
    else:
        at[last] = value
    return values


DELETE = object()
